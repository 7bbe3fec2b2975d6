"""Write the module table of docs/architecture.md from the first line of each module's docstring.

python tools/module_map.py          rewrite the table
python tools/module_map.py --check  exit 1 when it is out of date
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- modules: begin -->", "<!-- modules: end -->"
SOURCES = ("services/baton", "libs/baton")
GENERATED = ("_pb2.py", "_pb2_grpc.py")


def first_line(path: Path) -> str:
    """First line of the module's docstring; a module without one is an error."""
    doc = ast.get_docstring(ast.parse(path.read_text()))
    if not doc:
        raise SystemExit(f"{path.relative_to(ROOT)}: no module docstring")
    return doc.splitlines()[0].replace("|", "\\|")


def table() -> str:
    lines: list[str] = []
    for source in SOURCES:
        for package in sorted(p for p in (ROOT / source).iterdir() if (p / "__init__.py").exists()):
            lines += [f"\n### `baton.{package.name}` ({source}/{package.name})\n"]
            lines.append(first_line(package / "__init__.py"))
            if rows := list(_rows(package)):
                lines += ["", "| module | what it is |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _rows(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        empty_init = path.name == "__init__.py" and not path.read_text().strip()
        if path == package / "__init__.py" or path.name.endswith(GENERATED) or empty_init:
            continue
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        yield f"| [`{name}`](../{path.relative_to(ROOT)}) | {first_line(path)} |"


def main() -> None:
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    wanted = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if "--check" in sys.argv:
        if wanted != page:
            raise SystemExit("docs/architecture.md: the module table is out of date; run `make docs`")
        return
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
