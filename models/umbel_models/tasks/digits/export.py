"""Make the committed files of the digits task with torch, or check them.

    python -m umbel_models.tasks.digits.export            write the graphs and params.safetensors
    python -m umbel_models.tasks.digits.export --check    compare them with what this torch makes

Tracing takes about 20 s and 0.9 GB of packages; devices, the demo and the rest of the workbench need
neither.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.numpy

from umbel_models.graphs.export import export
from umbel_models.graphs.same import require_same
from umbel_models.tasks.digits.task import DIGITS, FILES, files
from umbel_proto.errors import UmbelError

HERE = Path(__file__).parent


def make() -> Mapping[str, bytes]:
    """Return the files' bytes, by name. Takes about 20 s."""
    module = DIGITS.module()
    graphs = export(module, DIGITS.loss, DIGITS.contract.fields[0].shape)
    parameters = {name: value.detach().numpy() for name, value in module.named_parameters()}
    assert graphs.explain is not None
    made = (graphs.infer, graphs.gradient, graphs.clipped, graphs.explain)
    files = (*made, safetensors.numpy.save(parameters))
    return dict(zip(FILES, files, strict=True))


def check(made: Mapping[str, bytes], committed: Mapping[str, bytes]) -> None:
    """Compare what was made with what is committed.

    Bytes are equal with the same torch and exporter; another version may order a graph differently, and
    then every output must agree on random inputs.

    Raises:
        VerificationError: A committed file computes something else.
    """
    for name in FILES:
        if made[name] != committed[name]:
            require_same(name, made[name], committed[name])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line above; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m umbel_models.tasks.digits.export")
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed files, write nothing"
    )
    try:
        made = make()
        if parser.parse_args(arguments).check:
            check(made, files())
        else:
            for name, data in made.items():
                (HERE / name).write_bytes(data)
    except UmbelError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
