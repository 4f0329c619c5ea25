"""Examples from an .npz file: the form in which a device's data is handed to umbel."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Inputs, and their labels or targets where there are any.

    Args:
        x: Inputs, shape (n, ...), float32 or integers.
        y: Labels, int64, shape (n,), or targets, float32, shape (n, ...); or None. Which of them a model takes is
            for the model to say.
        places: Where each falls when some are held back, uniform in uint64, shape (n,): the same for copies,
            so that they stay together. None: its place in the file says it.
    """

    x: NDArray[np.generic] = field(repr=False)
    y: NDArray[Any] | None = field(repr=False)
    places: NDArray[np.uint64] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.x)


def read_examples(path: Path) -> Examples:
    """Read ``x`` and, if it is there, ``y`` from an .npz file.

    Args:
        path: The file. Its ``x`` is numeric, its ``y`` too, with a row for each of ``x``.

    Raises:
        UsageError: The file is missing or holds something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in ("x", "y") if name in archive}
    except FileNotFoundError as exc:
        raise UsageError(f"There is no file {path}.") from exc
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror or 'it is no .npz file'}.") from exc
    except (ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError):
        # Without its cause: numpy quotes what it cannot read, and a traceback would show it.
        raise UsageError(f"{path} is no .npz file of plain arrays: write it with numpy.savez.") from None
    if "x" not in arrays:
        raise UsageError(f"{path} holds no array called x.")
    x = arrays["x"]
    if x.ndim < 1 or x.dtype.kind not in "fiub" or len(x) == 0:
        raise UsageError(f"The x in {path} has shape {x.shape} and type {x.dtype}: give rows of numbers.")
    if x.dtype.kind == "f":
        x = x.astype(np.float32, copy=False)
    return Examples(x, _answers(arrays["y"], len(x), path) if "y" in arrays else None)


def _answers(y: NDArray[np.generic], rows: int, path: Path) -> NDArray[Any]:
    if y.shape[:1] != (rows,) or y.dtype.kind not in "fiu":
        raise UsageError(
            f"The y in {path} has shape {y.shape} and type {y.dtype}: give a label, or numbers, for each of the "
            f"{rows} rows of x."
        )
    return y.astype(np.float32 if y.dtype.kind == "f" else np.int64)
