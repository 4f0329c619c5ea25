"""A small table for tests of responsible training: a logistic law, two cohorts, and columns that tell of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from umbel_models.task import Examples


def table(count: int, *, seed: int, gap: float = 2.0) -> Examples:
    """Seven columns: 0..2 decide the label, 3 and 4 tell of the cohort, 5 and 6 are noise."""
    rng = np.random.default_rng(seed)
    cohort = rng.integers(2, size=count)
    merit = rng.normal(size=(count, 3))
    score = merit @ [1.5, 1.0, -1.0] + rng.logistic(size=count) + gap * (cohort - 0.5)
    proxies = (2 * cohort - 1)[:, None] * 1.2 + rng.normal(size=(count, 2))
    x = np.concatenate([merit, proxies, rng.normal(size=(count, 2))], axis=1)
    return Examples(x.astype(np.float32), (score > 0).astype(np.int64), cohort.astype(np.int64))


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 2))
