"""Reads what a package says about itself: JSON from whoever, strictly, as ``umbel_proto.manifest`` writes it.

Source: docs/spec/package.md, section 2.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from umbel_proto.contract import Column, DataContract, Field
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.ids import ModelName
from umbel_proto.manifest import (
    BATCH,
    CLASSIFICATION,
    MAX_MANIFEST_BYTES,
    REGRESSION,
    FileEntry,
    Manifest,
    Parameter,
    Scalar,
    Target,
    TensorSpec,
    Variant,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Nothing that means a folder to anybody who unpacks the archive with another tool.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def parse_manifest(raw: bytes) -> Manifest:
    """Read ``manifest.json``, strictly: every key is known, present once and of its type.

    Raises:
        PackageError: It is anything else.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise PackageError(f"The manifest has {len(raw)} bytes, more than {MAX_MANIFEST_BYTES}.")
    try:
        body = json.loads(
            raw, object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
        )
        return _manifest(body)
    except (ValueError, RecursionError, UsageError) as exc:
        raise PackageError(f"The manifest cannot be used: {exc}") from exc


def _manifest(body: object) -> Manifest:
    # Packages of classifiers are older than kinds: theirs name none.
    regression = isinstance(body, dict) and "kind" in body
    own: dict[str, type[Any]] = (
        {"kind": str, "targets": list} if regression else {"labels": list, "decision_threshold": float}
    )
    for key in ("label_thresholds", "telemetry_epsilon"):
        if isinstance(body, dict) and key in body:
            own[key] = dict
    top = _take(
        body,
        "the manifest",
        format=int, model=str, version=int, parameters=list, frozen=list, inputs=list, outputs=list,
        contract=list, variants=dict, default_variant=str, graphs=dict, documents=dict, lineage=dict, files=dict,
        **own,
    )  # fmt: skip
    _require(not regression or top["kind"] == REGRESSION, f"has kind {top.get('kind')!r}: update umbel")
    return Manifest(
        format=top["format"],
        model=ModelName(top["model"]),
        version=top["version"],
        parameters=_parameters(top["parameters"]),
        frozen=_parameters(top["frozen"]),
        inputs=_specs(top["inputs"]),
        outputs=_specs(top["outputs"]),
        contract=DataContract(tuple(_field(item) for item in top["contract"])),
        variants={name: _variant(item) for name, item in top["variants"].items()},
        default_variant=top["default_variant"],
        kind=top.get("kind", CLASSIFICATION),
        labels=tuple(_typed(label, str, "a label") for label in top.get("labels", ())),
        decision_threshold=top.get("decision_threshold", 0.0),
        label_thresholds=_named(top, "label_thresholds", "a threshold"),
        telemetry_epsilon=_named(top, "telemetry_epsilon", "an epsilon"),
        targets=tuple(_target(item) for item in top.get("targets", ())),
        graphs={name: _typed(item, str, "a graph") for name, item in top["graphs"].items()},
        documents={name: _typed(item, str, "a document") for name, item in top["documents"].items()},
        lineage={_typed(name, str, "a fact's name"): _scalar(item) for name, item in top["lineage"].items()},
        files={_file_name(name): _file(item) for name, item in top["files"].items()},
    )


def _parameters(items: list[object]) -> tuple[Parameter, ...]:
    taken = [_take(item, "a parameter", name=str, shape=list) for item in items]
    return tuple(Parameter(p["name"], _shape(p["shape"])) for p in taken)


def _field(item: object) -> Field:
    # Contracts of one range are older than columns: they have none of the further keys.
    more = isinstance(item, dict) and "columns" in item
    further: dict[str, type[Any]] = {"action": str, "max_age_s": float, "stale": str, "columns": list}
    values = _take(
        item,
        "a contract field",
        name=str, dtype=str, shape=list, minimum=float, maximum=float, allow_missing=bool, unit=str,
        **(further if more else {}),
    )  # fmt: skip
    columns = tuple(_column(column) for column in values.get("columns", ()))
    made = Field(**{**values, "shape": _shape(values["shape"]), "columns": columns})
    _require(made.plain != more, "has a contract field whose further keys say nothing")
    return made


def _column(item: object) -> Column:
    values = _take(
        item,
        "a column",
        name=str, minimum=float, maximum=float, values=list, allow_missing=bool, unit=str, action=str,
    )  # fmt: skip
    known = tuple(_typed(value, float, "a value of a column") for value in values["values"])
    return Column(**{**values, "values": known})


def _named(top: Mapping[str, Any], key: str, what: str) -> dict[str, float]:
    """Return numbers by name, of a key that is there only if it has some."""
    _require(top.get(key) != {}, f"has {key}, and none of them")
    return {_typed(k, str, "a name"): _typed(v, float, what) for k, v in top.get(key, {}).items()}


def _target(item: object) -> Target:
    return Target(**_take(item, "a target", name=str, unit=str))


def _variant(item: object) -> Variant:
    return Variant(**_take(item, "a variant", engine=str, file=str, weights=str, tolerance=float))


def _file(item: object) -> FileEntry:
    values = _take(item, "a file", sha256=str, size=int)
    if not _SHA256.fullmatch(values["sha256"]) or values["size"] < 0:
        raise ValueError("a file's hash or size is malformed")
    return FileEntry(**values)


def _file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError("a file's name holds something other than letters, digits, dots, dashes")
    return name


def _specs(items: list[object]) -> tuple[TensorSpec, ...]:
    taken = [_take(item, "a tensor", name=str, dtype=str, shape=list) for item in items]
    return tuple(
        TensorSpec(
            t["name"],
            t["dtype"],
            tuple(size if size == BATCH else _typed(size, int, "a dimension") for size in t["shape"]),
        )
        for t in taken
    )


def _shape(sizes: list[object]) -> tuple[int, ...]:
    return tuple(_typed(size, int, "a dimension") for size in sizes)


def _scalar(value: object) -> Scalar:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("lineage holds something other than text and numbers")
    return _typed(value, type(value), "lineage")  # type: ignore[no-any-return]


def _typed(value: object, kind: type[Any], what: str) -> Any:
    # bool is an int to Python, and JSON writes 1.0 and 1 for the same float: neither may pass for the other.
    if type(value) is not kind:
        raise ValueError(f"{what} is {type(value).__name__}, not {kind.__name__}")
    # Names and facts are shown on terminals: no escape sequence, no line break, no half of a character.
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{what} holds characters that cannot be printed")
    return value


def _take(item: object, what: str, **kinds: type[Any]) -> dict[str, Any]:
    values: dict[str, Any] = _typed(item, dict, what)
    if values.keys() != kinds.keys():
        odd = sorted(values.keys() ^ kinds.keys())[0]
        raise ValueError(f"{what} lacks {odd!r} or should not have it")
    return {key: _typed(values[key], kind, f"{key} of {what}") for key, kind in kinds.items()}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of a float's range")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(f"The manifest {otherwise}.")
