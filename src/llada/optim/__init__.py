"""Optimizers, the learning rate over a run, and the moving average of the weights."""
