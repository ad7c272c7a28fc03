"""Text: its sources, its preparation, and the batches that training reads."""
