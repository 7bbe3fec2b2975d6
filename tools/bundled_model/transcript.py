"""A conversation with the bundled model as a terminal shows it, for the README.

`python -m tools.bundled_model.transcript --write README.md`.

Starts `baton up`, types at `baton chat` in a terminal of its own, and prints all that this terminal showed; with
--write, puts it between the two marks in a file.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from baton.testing.up_process import up

BEGIN, END = "<!-- transcript: begin -->", "<!-- transcript: end -->"
TYPED = (
    "Hello!",
    "Remember this: The code of the red box is 4821.",
    "Extract the name and age from: John Smith is 32 years old.",
    "What is 17 + 25?",
    "Count from 95 to 105.",
    "Who wrote the book about the moon?",
    "What is the code of the red box?",
)
_PROMPT = b"> "
_CTRL_D = b"\x04"
_ROWS, _COLUMNS = 50, 250
_ANSWER_S = 60.0
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put it between the marks in this file")
    parser.add_argument("--port", type=int, default=8000, help="of the system that is started (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, up(Path(folder), f"--port={options.port}") as running:
        chat = [sys.executable, "-m", "baton.cli.main", "chat", "--url", running.url]
        transcript = f"$ baton chat\n{converse(chat, TYPED)}"
    if options.write is None:
        print(transcript)
    else:
        options.write.write_text(placed(options.write.read_text(), transcript))


def converse(command: Sequence[str], typed: Sequence[str]) -> str:
    """Run `command` in a terminal, type each line when it prompts and Ctrl-D at last; what the terminal showed.

    Raises TimeoutError when it stays silent, EOFError when it ends before all is typed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        shown = b""
        for line in (*(text.encode() + b"\n" for text in typed), _CTRL_D):
            shown += _until_prompt(ours)
            os.write(ours, line)
        process.wait(_ANSWER_S)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown.decode().replace("\r", "").removesuffix(_PROMPT.decode()).rstrip("\n")


def _until_prompt(terminal: int) -> bytes:
    """What the terminal shows up to and including the next prompt."""
    shown = b""
    deadline = time.monotonic() + _ANSWER_S
    while not (shown == _PROMPT or shown.endswith(b"\n" + _PROMPT)):
        if not select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"no prompt within {_ANSWER_S:g} s after {shown!r}")
        try:
            shown = _ESCAPES.sub(b"", shown + os.read(terminal, 4096))
        except OSError as error:  # what Linux says when the other side has closed
            raise EOFError(f"it ended after {shown!r}") from error
    return shown


def placed(text: str, transcript: str) -> str:
    """`text` with `transcript` between the marks. Raises ValueError when they are not there."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the marks {BEGIN} and {END} are missing")
    return f"{head}{begin}\n```text\n{transcript}\n```\n{end}{tail}"


if __name__ == "__main__":
    main()
