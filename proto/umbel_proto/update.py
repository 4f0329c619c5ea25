"""A parameters-only update: what training made of a package's parameters, and of which package.

``NAME.params`` is a safetensors file of the trainable parameters alone. Its metadata holds one entry, ``umbel``,
a JSON object that names the base package and has a digest over all of it. A run leaves one; ``umbel model pack``
makes the next version of it. It is not signed: a release is what the release key signs, after somebody looked.

Source: docs/spec/package.md, section 6.
"""

from __future__ import annotations

import hmac
import json
from typing import Any

import numpy as np
import safetensors.numpy

from umbel_proto.encoding import digest
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.manifest import FloatVector, Manifest
from umbel_proto.package import Package
from umbel_proto.tensors import load_tensors

FORMAT = 1
LABEL = "umbel/1/update"
SUFFIX = ".params"
KEY = "umbel"
_METADATA = "__metadata__"
_LENGTH_BYTES = 8  # of a safetensors header's size, little-endian


def write_update(base: Package, vector: FloatVector) -> bytes:
    """Return the update file of new parameters: the same input gives the same bytes.

    Args:
        base: The package that training started from.
        vector: The new trainable parameters, shape (dim,).

    Raises:
        UsageError: They are not of this model, or not finite.
    """
    arrays = base.manifest.split(vector)
    base.manifest.join(arrays)  # refuses values that are not finite
    # One entry, because safetensors writes several in any order.
    facts = json.dumps(_facts(base, vector), sort_keys=True, separators=(",", ":"))
    return bytes(safetensors.numpy.save(arrays, {KEY: facts}))


def is_update(raw: bytes) -> bool:
    """Say whether the bytes are of an update file, rather than of a plain file of arrays or of anything else."""
    try:
        return KEY in _metadata(raw)
    except (ValueError, RecursionError):
        return False


def read_update(raw: bytes, base: Package) -> FloatVector:
    """Return the trainable parameters of an update, shape (dim,).

    Args:
        raw: The file.
        base: The package that it must have been made from.

    Raises:
        PackageError: The file is damaged, is no update, or was made from another package.
    """
    arrays = load_tensors(raw, "The update")
    try:
        found = _metadata(raw)
        facts = json.loads(found[KEY], object_pairs_hook=_object) if found.keys() == {KEY} else None
    except (ValueError, TypeError, RecursionError) as exc:
        raise _damaged() from exc
    if not isinstance(facts, dict):
        raise _damaged()
    manifest = base.manifest
    if facts.get("base_sha256") != base.sha256:
        raise PackageError(
            f"The update was not made from this package of {manifest.model} {manifest.version}: give the one it was "
            "trained from."
        )
    try:
        vector = manifest.join(arrays)
    except UsageError as exc:
        raise PackageError(f"The update does not fit its base: {exc}") from exc
    expected = _facts(base, vector)
    # Compared as JSON, where 1, 1.0 and true are three things.
    same = hmac.compare_digest(json.dumps(facts, sort_keys=True), json.dumps(expected, sort_keys=True))
    if not same:
        raise _damaged()
    return vector


def _facts(base: Package, vector: FloatVector) -> dict[str, Any]:
    manifest: Manifest = base.manifest
    raw = np.ascontiguousarray(vector, "<f4").tobytes()
    return {
        "format": FORMAT,
        "model": manifest.model,
        "base_version": manifest.version,
        "base_sha256": base.sha256,
        "digest": digest(LABEL, manifest.model, manifest.version, base.sha256, raw).hex(),
    }


def _metadata(raw: bytes) -> dict[str, str]:
    size = int.from_bytes(raw[:_LENGTH_BYTES], "little")
    header = json.loads(raw[_LENGTH_BYTES : _LENGTH_BYTES + size], object_pairs_hook=_object)
    found = header.get(_METADATA, {}) if isinstance(header, dict) else {}
    return found if isinstance(found, dict) else {}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _damaged() -> PackageError:
    return PackageError("The update is damaged, or is no update of umbel: fetch it from its run again.")
