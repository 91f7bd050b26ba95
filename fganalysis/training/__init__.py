"""Training by any gradient, its checkpoints, networks and datasets."""
