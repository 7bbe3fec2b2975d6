"""Taking a model's text apart: reasoning, content and tool calls, one module per format.

A format is a class whose `parse` reads the text as if it were all there (`Reader`) and says what it finds (`Sink`); it
is suspended where the text ends so far. `OutputParser` runs one for each choice; `registry` knows them by name and
finds the one that fits a chat template. Knows no tokens, no HTTP and no API's shapes.
"""
