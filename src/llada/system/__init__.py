"""Facts about the machine: what it is, what it can do, and whether it computes correctly."""
