"""What a confidence of each cell of telemetry's is taken to be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from umbel_proto.histogram import CONFIDENCE as EDGES


def confidences() -> NDArray[np.float64]:
    """Return what a confidence of each cell is taken to be: the middle of the cell's log-odds."""
    logits = np.log(np.array(EDGES) / (1 - np.array(EDGES)))
    step = logits[1] - logits[0]
    middles = np.concatenate(([logits[0] - step / 2], (logits[:-1] + logits[1:]) / 2, [logits[-1] + step]))
    return np.asarray(1 / (1 + np.exp(-middles)), np.float64)
