"""Guesses from the output error through fixed or learned matrices."""
