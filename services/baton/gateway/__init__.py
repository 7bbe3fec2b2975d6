"""The HTTP edge: OpenAI's API in front of the routers. Owns chat templates and tokenizing; knows no torch."""
