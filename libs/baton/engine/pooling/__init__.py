"""Pooling: requests whose answer is a vector. What a checkpoint says of it, from hidden states to answers, encoders."""
