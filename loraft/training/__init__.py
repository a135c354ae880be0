"""Training: the loss, the optimizer, the one loop, its checkpoints and its events."""
