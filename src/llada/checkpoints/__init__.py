"""Checkpoints as folders and by name: the official layouts, adapters, and guards against untrusted content."""
