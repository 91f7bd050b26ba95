"""The gradient on some rows of the batch."""
