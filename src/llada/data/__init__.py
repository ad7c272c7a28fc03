"""Text: where it comes from, its tokenizer, and the prepared folder that training reads."""
