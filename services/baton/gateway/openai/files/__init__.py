"""OpenAI's files: what batches read and write."""
