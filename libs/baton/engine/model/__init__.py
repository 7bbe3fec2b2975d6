"""The decoder model: what a checkpoint says (files, config, rope), its weights, and the forward pass (decoder)."""
