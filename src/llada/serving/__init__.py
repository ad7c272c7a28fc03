"""A server for one checkpoint: an engine that batches at step level, OpenAI's API, and every step as it happens."""
