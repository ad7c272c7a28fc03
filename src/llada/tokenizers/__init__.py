"""Tokenizers: characters, byte pairs, and chat templates."""
