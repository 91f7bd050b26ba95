"""What is drawn and computed from a snapshot: guesses, spectra, subspaces, curvature."""
