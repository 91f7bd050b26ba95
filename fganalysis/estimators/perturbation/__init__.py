"""Guesses along random directions, at the weights or the activations."""
