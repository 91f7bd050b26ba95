"""Guesses from the loss of an auxiliary head."""
