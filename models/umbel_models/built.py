"""A task as a signed package, from Python: what ``umbel model build`` writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from umbel_models import files
from umbel_models.pack import build
from umbel_models.task import Task
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package


@dataclass(frozen=True, slots=True, eq=False)
class BuiltPackage:
    """A package that was built, read back and its signature checked.

    Args:
        data: The file's bytes: equal for equal tasks, keys and versions.
        package: What it holds: manifest, graphs, parameters, card.
        notes: What came out otherwise than one might expect, in plain sentences.
    """

    data: bytes = field(repr=False)
    package: Package
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write the file: it is there whole or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        files.write(path, self.data)


def export(
    task: Task,
    *,
    key: SigningKey,
    version: int = 1,
    lite: bool = False,
    progress: Callable[[str], object] | None = None,
) -> BuiltPackage:
    """Export a task's graphs, verify them, and return its first package, with the module's initial parameters.

    Args:
        task: The task.
        key: The fleet's release key, which signs the package.
        version: The version to give it, >= 1.
        lite: Whether to add TFLite variants, for devices that have LiteRT.
        progress: Told of each step before it begins.

    Raises:
        MissingExtraError: What exports is not installed: ``umbel[models]``.
        UsageError: The module holds what cannot be exported, or the task's data breaks its contract.
        PackageError: A graph does not compute what torch does.
    """
    notes: list[str] = []
    told = progress or (lambda step: None)
    data = build(task, key=key, version=version, lite=lite, progress=told, note=notes.append)
    return BuiltPackage(data, read_package(data, release_key=key.public), tuple(notes))
