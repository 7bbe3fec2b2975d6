"""One module per family of skills; each skill is a function of a scene to the messages of one episode."""
