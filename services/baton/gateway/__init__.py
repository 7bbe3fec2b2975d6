"""The HTTP edge: OpenAI's, Anthropic's and Ollama's APIs, chat templates, tokenizing. Knows no torch."""
