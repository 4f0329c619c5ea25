"""Write the vectors that are made from code: all of them, or check that the files hold what it gives.

A change on the wire gets a version, and new vectors beside the old ones; secagg.json and privacy.json are
of the first version and are made no more.

Usage: cd tests && python -m vectors.make [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vectors import make_encoding, make_messages, make_primitives, make_round, make_telemetry

HERE = Path(__file__).resolve().parent
MADE: Mapping[str, Callable[[], dict[str, Any]]] = {
    "primitives.json": make_primitives.vectors,
    "messages.json": make_messages.vectors,
    "round.json": make_round.vectors,
    "encoding.json": make_encoding.vectors,
    "telemetry.json": make_telemetry.vectors,
}


def text_of(vectors: dict[str, Any]) -> str:
    """One case a line: short to read, and a change shows which case it is in."""
    parts = []
    for name, value in vectors.items():
        if isinstance(value, list):
            lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in value)
            parts.append(f" {json.dumps(name)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    stale = 0
    for name, vectors in MADE.items():
        text = text_of(vectors())
        path = HERE / name
        if "--check" in sys.argv[1:]:
            stale += not path.exists() or path.read_text() != text
        else:
            path.write_text(text)
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
