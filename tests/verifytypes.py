"""Fail unless the public API of a package, by default the SDK, is typed to 100 %.

Usage: python tests/verifytypes.py [PACKAGE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    package = sys.argv[1] if len(sys.argv) > 1 else "umbel"
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--verifytypes",
        package,
        "--ignoreexternal",
        "--outputjson",
    ]
    # It looks for packages with the first python on the path, whatever runs it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    report = json.loads(result.stdout)
    completeness = report["typeCompleteness"]
    score = completeness["completenessScore"]
    if score == 1:
        return 0
    for symbol in completeness["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            print(
                f"{symbol['name']}: {'; '.join(d['message'] for d in symbol['diagnostics']) or 'type not known'}"
            )
    print(f"The public API is typed to {100 * score:.1f} %, not 100 %.")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
