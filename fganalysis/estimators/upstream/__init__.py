"""Guesses from noise at the next tap, brought down through the upstream Jacobian."""
