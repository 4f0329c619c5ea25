"""Products of matrices in onnxruntime, a few rows at a time, on whichever thread asks.

numpy's would wake a thread for each core, which then spins beside those that compute.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from umbel.engines.onnx import open_session
from umbel.train.factors import product

Matrix = NDArray[np.float32]


class Multiplier:
    """Multiplies matrices."""

    def __init__(self) -> None:
        self._session = open_session(product(), "a product of matrices", planned=False)

    def __call__(self, left: Matrix, right: Matrix, out: Matrix) -> None:
        """Write ``left @ right``, shape (n, m), to ``out``; all three lie in row-major order."""
        binding = self._session.io_binding()
        for name, array in (("left", left), ("right", right)):
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_output("product", "cpu", 0, np.float32, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)
