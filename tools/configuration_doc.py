"""Writes docs/configuration.md from the settings classes; with --check, fails when the file is not current."""

from __future__ import annotations

import sys
from pathlib import Path

from baton.cli.flags import default_text
from baton.cli.serve import settings_class
from baton.cli.services import SERVICES
from baton.cli.up.settings import UpSettings
from baton.runtime.settings import ServiceSettings, Settings, Spec, specs
from baton.runtime.sources import OTHER_VARIABLES
from tools.generated import write_or_check

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"

INTRODUCTION = """# Configuration

Generated from the settings classes by `make docs`; `make check` fails when it is not current.

A setting can be given in three places. The later one wins:

1. a TOML file, `--config FILE` (or the variable `BATON_CONFIG`), with one table per section;
2. an environment variable `BATON_<SECTION>_<KEY>`;
3. a flag, `--key-with-dashes`.

```toml
[gateway]
port = 8080

[worker]
model = "/models/llama"
kv_memory_bytes = "4GiB"
```

Everything is validated once, at start. Unknown keys, variables and flags are refused, and the nearest known name is
suggested. One file may serve all services: each reads its own section. Lists are written `a,b` in variables and flags.
Sizes in bytes may be written `256MiB`; suffixes are powers of 1024. `baton up` passes `--config` and the environment on
to the services that it starts; where `baton up` itself decides (addresses, names, sockets), its choice wins.
"""

SECTION_NOTES = {
    "up": """`baton up`: the whole system on one machine. `status.json` in its runtime folder says what runs:

```json
{"pid": 1, "url": "http://127.0.0.1:8000", "model": "name", "ready": true,
 "services": [{"name": "prefill-0", "kind": "prefill", "pid": 2, "phase": "ready", "starts": 1,
               "address": "127.0.0.1:20001", "metrics": "127.0.0.1:20002"}]}
```

`phase` is starting, ready, restarting or stopped; `pid` is null while a service does not run.""",
    "gateway": "`baton gateway`: HTTP.",
    "router": "`baton router`: placement and the life of requests.",
    "worker": "`baton prefill`, `baton decode` and `baton unified`.",
    "kv_agent": "`baton kv-agent`: the data plane of a worker's node.",
}


def document() -> str:
    parts = [INTRODUCTION]
    classes: dict[str, type[Settings]] = {UpSettings.section: UpSettings}
    classes |= {cls.section: cls for cls in map(settings_class, SERVICES)}
    common = specs(ServiceSettings)
    for section, cls in classes.items():
        inherited = common if issubclass(cls, ServiceSettings) else {}
        own = [spec for name, spec in specs(cls).items() if name not in inherited]
        parts.append(f"## [{section}]\n\n{SECTION_NOTES[section]}\n\n{table(own)}\n")
    note = "Each of `[gateway]`, `[router]`, `[worker]` and `[kv_agent]` also has these; SECTION stands for its name."
    parts.append(f"## In every service\n\n{note}\n\n{table(list(common.values()))}\n")
    others = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in OTHER_VARIABLES.items())
    parts.append(f"## Other variables\n\n| variable | meaning |\n|---|---|\n{others}\n")
    return "\n".join(parts)


def table(rows: list[Spec]) -> str:
    head = "| key | variable | flag | type, unit | default | meaning |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(row, rows)])


def row(spec: Spec) -> str:
    kind = f"{spec.type_name}, {spec.unit}" if spec.unit else spec.type_name
    meaning = spec.description + (f": {', '.join(map(str, spec.choices))}" if spec.choices else "")
    default = f"`{default_text(spec)}`" if default_text(spec) else "none"
    variable = spec.env if spec.section else f"BATON_SECTION_{spec.name.upper()}"
    cells = [f"`{spec.name}`", f"`{variable}`", f"`{spec.flag}`", kind, default, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    return write_or_check(TARGET, document())


if __name__ == "__main__":
    sys.exit(main())
