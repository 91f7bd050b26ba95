"""Closed forms for mean, second moment and cosine of gradient estimators: NumPy and SciPy only, no sampling."""
