"""Training: configuration and presets, the loop, what is written and shown while it runs."""
