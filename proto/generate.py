"""Compile the .proto files; with --check, fail if the committed code is not what they give.

Usage: python proto/generate.py [--check]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
WIRE = ROOT / "umbel_proto" / "wire"


def compile_into(out: Path) -> None:
    """Compile every .proto file under ``wire`` into ``out``."""
    include = Path(protoc.__file__).parent / "_proto"
    sources = sorted(str(path) for path in WIRE.glob("*.proto"))
    args = [
        "protoc",
        f"-I{ROOT}",
        f"-I{include}",
        f"--python_out={out}",
        f"--pyi_out={out}",
    ]
    if protoc.main([*args, *sources]) != 0:
        raise SystemExit("protoc failed: see its message above.")


def main() -> int:
    """Write the generated modules, or compare them with the committed ones."""
    check = "--check" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        compile_into(Path(folder))
        fresh = {p.name: p.read_bytes() for p in (Path(folder) / "umbel_proto" / "wire").iterdir()}
    old = {p.name: p.read_bytes() for p in WIRE.glob("*_pb2*")}
    stale = sorted(name for name in fresh.keys() | old.keys() if fresh.get(name) != old.get(name))
    if check:
        if stale:
            print(f"Generated code is stale: {', '.join(stale)}. Run  python proto/generate.py  and commit.")
            return 1
        return 0
    for name in stale:
        if name in fresh:
            (WIRE / name).write_bytes(fresh[name])
        else:
            (WIRE / name).unlink()
    print(f"{len(fresh)} generated files, {len(stale)} changed.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
