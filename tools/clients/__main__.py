"""`python -m tools.clients [NAME ...]`: set up each client's environment, run its checks, and tell the results.

The system under test is `baton up` with the bundled model, or the one at `--url`. Environments are kept in `--folder`
and are made anew only when a client's requirement changes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

from baton.testing.up_process import up as started_up

HERE = Path(__file__).parent
CLIENTS = {
    "langchain-openai": ("check_langchain.py", "langchain-openai>=1"),
    "litellm": ("check_litellm.py", "litellm>=1.80 mcp"),
    "instructor": ("check_instructor.py", "instructor>=1.11"),
    "pydantic-ai": ("check_pydantic_ai.py", "pydantic-ai-slim[openai]>=1"),
    "schemathesis": ("check_schemathesis.py", "schemathesis>=4"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.clients", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *CLIENTS], help="clients to check; all of them by default")
    parser.add_argument("--url", help="a server that runs already, without /v1")
    parser.add_argument("--folder", type=Path, default=Path(".venv") / "clients", help="where environments are kept")
    asked = parser.parse_args()
    failures = 0
    with server(asked.url) as (url, model):
        for name in asked.names or CLIENTS:
            script, requirement = CLIENTS[name]
            python = environment(asked.folder / name, requirement)
            print(installed(python, requirement), flush=True)
            failures += check(python, HERE / script, url, model)
    print(f"{failures} failed" if failures else "all passed")
    return 1 if failures else 0


@contextlib.contextmanager
def server(url: str | None) -> Iterator[tuple[str, str]]:
    """The URL and the model's name."""
    if url is None:
        with tempfile.TemporaryDirectory() as folder, started_up(Path(folder)) as up:
            yield up.url, up.model
        return
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
        yield url, json.load(response)["data"][0]["id"]


def environment(folder: Path, requirement: str) -> Path:
    """The interpreter of an environment that has what is required."""
    python, stamp = folder.absolute() / "bin" / "python", folder / "requirement"
    if not stamp.is_file() or stamp.read_text() != requirement:
        print(f"setting up {requirement}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirement.split()], check=True)
        stamp.write_text(requirement)
    return python


def installed(python: Path, requirement: str) -> str:
    """The versions of the client, and of the openai package where it is there."""
    names = [requirement.partition(">")[0].partition("[")[0], "openai"]
    code = f"""if True:
        from importlib import metadata
        found = {{d.name: d.version for d in metadata.distributions()}}
        print(", ".join(f"{{name}} {{found[name]}}" for name in {names} if name in found))"""
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def check(python: Path, script: Path, url: str, model: str) -> int:
    """Run a script's checks and tell their results. Returns how many failed."""
    env = {**os.environ, "BASE_URL": url, "MODEL": model, "PYTHONPATH": str(HERE)}
    done = subprocess.run([python, script], env=env, capture_output=True, text=True, timeout=900)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    for result in results:
        print(f"  {result['check']:24} {'ok' if result['ok'] else 'FAILED: ' + result['error']}")
    failed = sum(not result["ok"] for result in results)
    if failed or not results:
        print(done.stderr[-4000:], file=sys.stderr)
    return failed or int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
