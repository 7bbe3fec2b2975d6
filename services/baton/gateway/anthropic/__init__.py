"""Anthropic's Messages API: request models, wire format, errors."""
