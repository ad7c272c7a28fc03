"""Optimizers, the learning rate over a run, the moving average of the weights."""
