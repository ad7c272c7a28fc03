"""Text to ids and back: characters, byte pairs, chat templates."""
