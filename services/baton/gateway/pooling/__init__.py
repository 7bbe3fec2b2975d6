"""Requests whose answer is a vector: what the checkpoint says of them, texts to tokens, and running them."""
