"""Where a run stands after a round, as a file: parameters, and what the next round needs beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy

from umbel_proto.package import Package
from umbel_server.files import read_file, write_atomically
from umbel_server.learning.optimize import Moments, Vector

_CLIP = "umbel:clip"
_MOMENT = "umbel:moment:"


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """Where a run stands.

    Args:
        round: The last completed round; 0 before the first.
        parameters: After it, shape (dim,).
        clip: C of the next round, model units.
        moments: What the server's optimizer remembers.
    """

    round: int
    parameters: Vector = field(repr=False)
    clip: float
    moments: Moments = field(default_factory=dict, repr=False)


def path_of(directory: Path, number: int) -> Path:
    """Return where the position after a round is kept."""
    return directory / f"round-{number:05d}.safetensors"


def save(position: Position, directory: Path, package: Package) -> None:
    """Write a position, atomically."""
    arrays = dict(package.manifest.split(position.parameters))
    arrays[_CLIP] = np.array([position.clip], np.float64)
    arrays |= {_MOMENT + name: moment for name, moment in position.moments.items()}
    write_atomically(path_of(directory, position.round), safetensors.numpy.save(arrays))


def load(directory: Path, number: int, package: Package) -> Position:
    """Read the position after a round.

    Raises:
        StorageError: The file cannot be read.
        UsageError: It is of another model.
    """
    arrays = safetensors.numpy.load(read_file(path_of(directory, number), "checkpoint"))
    clip = float(arrays.pop(_CLIP)[0])
    moments = {
        name.removeprefix(_MOMENT): arrays.pop(name) for name in list(arrays) if name.startswith(_MOMENT)
    }
    return Position(number, package.manifest.join(arrays), clip, moments)
