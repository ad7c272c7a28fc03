"""Checkpoints as folders and by name: the official layouts, adapters, and what a stranger may have put there."""
