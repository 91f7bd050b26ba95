"""From raw numbers to quantities with intervals: NumPy arrays only."""
