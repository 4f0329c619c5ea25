"""``umbel predict``: ask a model about rows of an .npz file, or about JSON lines as they come."""

from __future__ import annotations

import datetime
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel_proto.errors import UsageError

if TYPE_CHECKING:
    from umbel._predict.graph import Graph
    from umbel._predict.model import Estimate, Model, Prediction

AT = "at"
"""In a line about a package's input: when that was measured."""


def open_file(
    file: Path, *, release_key: Path | None, variant: str | None, labels: str, logits: bool
) -> Model | Graph:
    """Load a local model; that nobody checked who made it is said as a warning on the standard error stream."""
    from umbel._predict.open import load

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = load(
            file,
            release_key=release_key,
            variant=variant,
            labels=[each.strip() for each in labels.split(",") if each.strip()],
            logits=logits,
        )
    for each in said:
        sys.stderr.write(f"Warning: {each.message}\n")
    return model


def moment(value: object) -> float:
    """Return a time, Unix seconds, that somebody gave as a number or in ISO 8601 with its distance from UTC.

    Raises:
        UsageError: It is neither.
    """
    try:
        at_s = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        at_s = math.nan
        if isinstance(value, str):
            try:
                read = datetime.datetime.fromisoformat(value)
            except ValueError:
                pass
            else:
                at_s = read.timestamp() if read.tzinfo is not None else math.nan
    if not math.isfinite(at_s):
        raise UsageError(
            f"{str(value)[:40]!r} is no time: give Unix seconds, or ISO 8601 with Z or an offset, such as "
            "2026-05-01T12:00:00Z."
        )
    return at_s


def ask(model: Model | Graph, x: object, at_s: float | None) -> Prediction | Estimate | list[Any]:
    """Return a model's answer about one example, or the answers about a batch.

    Args:
        model: An installed or a local one.
        x: What it is asked about.
        at_s: When that was measured, Unix seconds; None where nobody said.

    Raises:
        UsageError: The model refuses it, or has no contract that a time could matter to.
    """
    from umbel._predict.graph import Graph

    if isinstance(model, Graph):
        if at_s is not None:
            raise UsageError("A bare graph has no contract that bounds an example's age: leave out --at.")
        return model.predict(x) if model.labels else model.estimate(x)
    return model.predict(x, at=at_s) if model.labels else model.estimate(x, at=at_s)


def answer_lines(
    model: Model | Graph, lines: Iterable[str], write: Callable[[str], object], *, at_s: float | None = None
) -> None:
    """Answer every line of JSON, an example or an object of named inputs, with a line of JSON.

    Args:
        model: An installed or a local one.
        lines: What it is asked about; in an object about a package's input, ``at`` says when that was measured.
        write: Takes an answer.
        at_s: When examples were measured whose line does not say, Unix seconds.

    Raises:
        UsageError: A line is no JSON, or the model refuses it. The lines before it are answered.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            write(json.dumps(_told(ask(model, *_question(model, json.loads(line), at_s)))))
        except (ValueError, RecursionError) as exc:
            raise UsageError(
                f"Line {number} is no JSON: give one array, or one object of named inputs."
            ) from exc
        except UsageError as exc:
            raise UsageError(f"Line {number}: {exc}") from exc


def _question(model: Model | Graph, given: object, at_s: float | None) -> tuple[object, float | None]:
    """Return what a line asks about, and when that was measured."""
    from umbel._predict.graph import Graph

    if isinstance(model, Graph) or not isinstance(given, dict):
        return given, at_s
    name = model.inputs[0].name
    if set(given) - {AT} != {name}:
        raise UsageError(f"Give an object with {name!r}, and {AT!r} for when it was measured.")
    return given[name], moment(given[AT]) if AT in given else at_s


def _told(said: object) -> object:
    from umbel._predict.model import Estimate

    def told(each: Any) -> dict[str, Any]:
        if isinstance(each, Estimate):
            return {"values": each.values.tolist()}
        return {
            "label": each.label,
            "name": each.name,
            "confidence": each.confidence,
            "decision": each.decision,
        }

    return [told(each) for each in said] if isinstance(said, list) else told(said)
