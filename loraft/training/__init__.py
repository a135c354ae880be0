"""Training: the one loop, its steps, its checkpoints and its events."""
