"""Generates the gRPC stubs from proto/ into libs/; with --check, fails when the committed ones are not current."""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
LIBS = ROOT / "libs"


def generate(target: Path) -> None:
    sources = [str(path.relative_to(PROTO)) for path in sorted(PROTO.rglob("*.proto"))]
    includes = [f"-I{PROTO}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        sys.exit("protoc failed")


def stale() -> list[Path]:
    """Committed stubs that differ from what the .proto files give, and those that no .proto file gives."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        expected = {path.relative_to(fresh): path.read_bytes() for path in fresh.rglob("*_pb2*")}
    present = {path.relative_to(LIBS): path.read_bytes() for path in LIBS.rglob("*_pb2*.py*") if path.suffix != ".pyc"}
    return sorted(path for path in expected.keys() | present.keys() if expected.get(path) != present.get(path))


def main() -> int:
    if "--check" not in sys.argv[1:]:
        generate(LIBS)
        return 0
    differing = stale()
    if differing:
        print(f"stubs are not current, run `make proto`: {', '.join(map(str, differing))}", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
