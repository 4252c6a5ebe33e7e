"""Training: from flags to a folder with checkpoints, metrics and pictures."""
