"""The reverse process: text from masks."""
