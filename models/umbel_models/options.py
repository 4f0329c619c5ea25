"""What several commands of ``umbel model`` are asked for, and how they tell what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from umbel_models.task import TASKS

TaskArgument = Annotated[
    str, typer.Argument(help=f"A Python file with one Task, or the task {', '.join(sorted(TASKS))}.")
]
KeyOption = Annotated[Path, typer.Option("--key", help="The fleet's release key, a PEM file.")]
ReleaseKeyOption = Annotated[
    Path | None,
    typer.Option("--release-key", help="The fleet's public release key: its 32 bytes, or PEM."),
]
OutOption = Annotated[Path, typer.Option("--out", help="The package to write.")]
LineageOption = Annotated[
    str | None,
    typer.Option("--lineage", help="Facts about its origin: a JSON object, or a file that holds one."),
]
SectionsOption = Annotated[
    Path | None, typer.Option("--sections", help="For its card: what umbel model assess --json printed.")
]
VersionOption = Annotated[int, typer.Option(min=1, help="The version to give it.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything drawn at random.")]


def progress() -> Callable[[str], None]:
    """Return what tells each step on standard error, with the seconds since now."""
    begin = time.monotonic()

    def tell(step: str) -> None:
        typer.echo(f"{time.monotonic() - begin:6.1f} s  {step}", err=True)

    return tell
