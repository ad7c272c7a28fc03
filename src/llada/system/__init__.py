"""What the machine is and can do, and whether it does it right."""
