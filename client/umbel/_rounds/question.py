"""What a query counts on this device: its local examples, and what the model says of them. Only their tally goes on.

Source: docs/spec/queries.md, sections 2 and 3.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel._data.consent import QUERIES, Consent
from umbel._data.dataset import DataSet
from umbel._data.examples import read_examples
from umbel._home.directory import DeviceHome
from umbel._rounds.conditions import Conditions, NotNowError
from umbel.engines.onnx import OnnxEngine
from umbel_proto.analytics.query import CONFIDENCE, FAIRNESS, LABEL, PREDICTION, Query
from umbel_proto.analytics.rules import place_of
from umbel_proto.analytics.tally import Numbers, Rows, tally
from umbel_proto.errors import ContractError, UmbelError
from umbel_proto.manifest import CLASSIFICATION, Manifest
from umbel_proto.package import Package

log = logging.getLogger(__name__)

BATCH = 1024
"""So many examples the model is asked about at a time."""


class NotAllowedError(NotNowError):
    """The device's user does not allow it. To the server the device is away; its own log has the reason."""

    def __init__(self, reason: str) -> None:
        UmbelError.__init__(self, reason)


def check_owner(home: DeviceHome, conditions: Conditions) -> None:
    """Go on only if the device's user allows queries.

    Raises:
        NotAllowedError: The user does not, or was not asked where the fleet or the owner demands it.
        StorageError: Nobody knows.
    """
    said = Consent(home).decision(QUERIES)
    if said.state == "revoked":
        raise NotAllowedError(f"Queries are not allowed on this device: {said.by} took back consent to them.")
    demanded = conditions.rules.stricter(conditions.policy).consent
    if demanded and said.state != "granted":
        raise NotAllowedError(
            "The user of this device was not asked for consent to queries, which is demanded: ask, and run  "
            f"umbel data consent --grant --purpose queries --home {home.path}"
        )


def answer(
    home: DeviceHome,
    data: Path | None,
    package: Package,
    query: Query,
    *,
    clock: Callable[[], float] = time.time,
) -> NDArray[np.float32]:
    """Return this device's answer, shape (query.dim,).

    What it has no example of it answers with zeros: a refusal would tell that, with no noise and at no charge.

    Args:
        home: The device's files.
        data: An ``.npz`` file with ``x`` and perhaps ``y``; None for the local data set.
        package: The query's package; it has every field that is asked about.
        query: The question.
        clock: Returns Unix time, seconds.

    Raises:
        UsageError: The file cannot be read.
        StorageError: The local data set is damaged.
        PackageError: onnxruntime cannot run the graph.
    """
    x, y = _examples(home, data, package.manifest, clock)
    if not len(x):
        log.info("has no example to answer query %s with: it answers with zeros", query.id)
        return np.zeros(query.dim, np.float32)
    column = _Columns(package, x, y)
    return tally(
        query,
        Rows(
            column.of(query.field),
            column.of(LABEL) if query.kind == FAIRNESS else None,
            column.of(query.cohort) if query.cohort else None,
        ),
    )


class _Columns:
    """Examples, column by column."""

    def __init__(self, package: Package, x: NDArray[np.generic], y: Numbers) -> None:
        self._package, self._x, self._y = package, x, y

    def of(self, field: str) -> Numbers:
        """Return a field of every example, shape (n,); NaN where it has no finite value."""
        match field:
            case "label":
                return self._y
            case "prediction" | "confidence":
                return self._said(field)
            case _:
                values = self._x[:, place_of(field, self._package.manifest)].astype(np.float64)
        return np.where(np.isfinite(values), values, np.nan)

    def _said(self, field: str) -> Numbers:
        manifest = self._package.manifest
        engine = OnnxEngine(self._package, "fp32")
        parts = [engine.answers(self._x[begin : begin + BATCH]) for begin in range(0, len(self._x), BATCH)]
        said = np.concatenate(parts).astype(np.float64).reshape(len(self._x), -1)
        finite = np.isfinite(said).all(axis=1)
        if manifest.kind != CLASSIFICATION:
            values = said[:, 0]
        else:
            assert field in (PREDICTION, CONFIDENCE)
            values = said.argmax(axis=1).astype(np.float64) if field == PREDICTION else said.max(axis=1)
        return np.where(finite, values, np.nan)


def _examples(
    home: DeviceHome, data: Path | None, manifest: Manifest, clock: Callable[[], float]
) -> tuple[NDArray[np.generic], Numbers]:
    """Return the examples that keep the contract, and what is right of each: a label's number, or a target."""
    only = manifest.contract.fields[0]
    if data is None:
        with DataSet(home, manifest, clock=clock) as kept:
            found = kept.examples()
        x = np.array([each.x for each in found], only.dtype).reshape(len(found), *only.shape)
        return x, np.array([_number(each.y) for each in found], np.float64)
    file = read_examples(data)
    rows = [(number, row) for number, each in enumerate(file.x) if (row := _kept(manifest, each)) is not None]
    x = np.array([row for _, row in rows], only.dtype).reshape(len(rows), *only.shape)
    if file.y is None:
        return x, np.full(len(rows), np.nan)
    y = file.y.reshape(len(file.y), -1)[[number for number, _ in rows], 0].astype(np.float64)
    known = np.isfinite(y)
    if manifest.kind == CLASSIFICATION:
        known &= (y >= 0) & (y < len(manifest.labels)) & (y == np.floor(y))
    return x, np.where(known, y, np.nan)


def _kept(manifest: Manifest, example: NDArray[np.generic]) -> NDArray[np.generic] | None:
    """Return an example as the graph takes it; None if it breaks the contract, or cannot be judged."""
    try:
        batch, _ = manifest.contract.check(example)
    except ContractError:
        return None
    row: NDArray[np.generic] = batch[0]
    return row


def _number(y: int | tuple[float, ...] | None) -> float:
    if y is None:
        return float("nan")
    return float(y[0]) if isinstance(y, tuple) else float(y)
