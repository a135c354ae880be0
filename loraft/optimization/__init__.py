"""The optimizers and the learning-rate schedules, by their names in a config."""
