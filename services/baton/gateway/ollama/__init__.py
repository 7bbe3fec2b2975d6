"""Ollama's API: chat, generate, and what it tells of models. Newline-delimited JSON instead of events."""
