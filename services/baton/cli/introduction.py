"""What `baton chat` says before the first message on a terminal: who answers, and what to try with Baton's own model.

Of any other model nothing is known here but its name.
"""

from __future__ import annotations

from baton.models import TINY

EXAMPLES = (
    "The code of the red box is 4821. What is the code of the red box?",
    "Extract the name and age from: John Smith is 32 years old.",
    "What is 17 + 25?",
)
COMMANDS = """\
  /reset         forget the conversation
  /system TEXT   set the system prompt; without TEXT there is none
  /help          this list
  /quit          end, as does Ctrl-D
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer."""

_ABILITIES = (
    "A tiny model that comes with Baton: it can remember what you tell it, repeat, spell and reverse words, count,\n"
    "add and subtract, sort numbers, extract JSON and call tools, and knows nothing about the world. Things to try:"
)


def introduction(model: str, url: str) -> str:
    """Lines for a person who is about to talk to `model` at `url`."""
    lines = [f"{model} at {url}; /help lists the commands."]
    if model == TINY:
        lines += [_ABILITIES, *(f"  {example}" for example in EXAMPLES)]
    return "\n".join(lines)
