"""Parameters, activations, memory: what a network and a training step cost."""
