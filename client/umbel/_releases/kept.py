"""The int8 form that a device made of a package, kept beside it, so that the next start runs it.

The file is bound to its package by the package's hash, and damage to it is noticed by its own. It holds the int8
tensors and the ranges they were made from, never an input. From the ranges the form is made again when a release brings
new parameters of the same graphs: nobody has to calibrate after every round.

A file is 32 bytes, SHA-256 of the rest; 4 bytes, length of the JSON that follows; and arrays in the safetensors format.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from umbel._home.files import write_atomically
from umbel._quantize.quantize import int8_variant
from umbel._releases.choice import Clock, choose, same_answers
from umbel._releases.package import verify_golden
from umbel._releases.packages import QUANTIZED
from umbel.engines import Engine, EngineOptions, load_engine
from umbel.engines.onnx import OnnxEngine, open_session
from umbel_proto import quantization
from umbel_proto.errors import PackageError, UmbelError
from umbel_proto.manifest import CALIBRATION, QUANTIZATION
from umbel_proto.package import GOLDEN, Package
from umbel_proto.quantization import Ranges, parse_mapping
from umbel_proto.tensors import load_tensors

_FORMAT = 1
_HASH = 32
_RANGES = "ranges"
_TENSOR = "int8."
BEFORE = " before"
"""After the name of an int8 form that runs, where another is made here."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a device decided about the forms of a package.

    Args:
        sha256: The package.
        graphs: Hash of what turns parameters and ranges into int8 tensors.
        variant: The variant to run; empty for the one that was fastest when the package was installed.
        own: Whether with the tensors that were made here, instead of the package's.
        tensors: Those, by name.
        ranges: What they were made from, shape (activations, 2).
    """

    sha256: str
    graphs: str
    variant: str
    own: bool
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)
    ranges: Ranges = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the file."""
        facts = {"format": _FORMAT, "sha256": self.sha256, "graphs": self.graphs, "variant": self.variant}
        head = json.dumps({**facts, "own": self.own}).encode()
        arrays = {f"{_TENSOR}{name}": np.asarray(value, order="C") for name, value in self.tensors.items()}
        body = len(head).to_bytes(4, "big") + head + safetensors.numpy.save({**arrays, _RANGES: self.ranges})
        return hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, raw: bytes) -> Kept:
        """Read the file.

        Raises:
            PackageError: It is damaged, or of another umbel.
        """
        body = memoryview(raw)[_HASH:]
        if len(body) < 4 or hashlib.sha256(body).digest() != raw[:_HASH]:
            raise PackageError("The int8 form that was made here is damaged: quantize the model again.")
        end = 4 + int.from_bytes(body[:4], "big")
        try:
            facts = json.loads(bytes(body[4:end]))
            known = facts["format"] == _FORMAT
            arrays = load_tensors(body[end:], QUANTIZED)
            ranges = arrays.pop(_RANGES)
            tensors = {name.removeprefix(_TENSOR): value for name, value in arrays.items()}
            kept = cls(
                str(facts["sha256"]),
                str(facts["graphs"]),
                str(facts["variant"]),
                bool(facts["own"]),
                tensors,
                ranges,
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise PackageError(
                "The int8 form that was made here cannot be read: quantize the model again."
            ) from exc
        if not known:
            raise PackageError(
                "The int8 form that was made here is of another umbel: quantize the model again."
            )
        return kept


def graphs_of(package: Package) -> str:
    """Return the hash of what turns parameters and ranges into int8 tensors; empty where a package has none of it."""
    manifest = package.manifest
    if CALIBRATION not in manifest.graphs:
        return ""
    names = (manifest.graphs[CALIBRATION], manifest.documents[QUANTIZATION])
    return hashlib.sha256("".join(manifest.files[name].sha256 for name in names).encode()).hexdigest()


def forms(package: Package, own: Engine, running: Engine) -> dict[str, Engine]:
    """Return what is to be compared: the float form, the int8 form that was made here, and what runs now."""
    reference = package.manifest.default_variant
    compared = {reference: running if running.variant == reference else load_engine(package, reference)}
    compared[own.variant] = own
    if running.variant != reference:
        compared[f"{running.variant}{BEFORE if running.variant == own.variant else ''}"] = running
    return compared


def keep(folder: Path, kept: Kept) -> None:
    """Write the decision beside its package, in one step.

    Raises:
        StorageError: The disk is full or damaged.
    """
    write_atomically(folder / QUANTIZED, kept.to_bytes())


def kept_engine(
    package: Package,
    installed: str,
    folder: Path,
    before: Path | None,
    *,
    options: EngineOptions | None = None,
    clock: Clock = time.perf_counter,
) -> Engine | None:
    """Return the form that this device chose for a package, loaded; None where it chose none. It raises nothing.

    Where the package is a newer one of the same graphs, its int8 form is made from the ranges of the one before.

    Args:
        package: The package.
        installed: The variant that was fastest when it was installed.
        folder: Where it is.
        before: Where the version before it is, if there is one.
        options: How its engine may use the device.
        clock: What forms are timed with, seconds.
    """
    try:
        kept = _read(folder)
        if kept is None and before is not None:
            kept = _renewed(package, installed, _read(before), clock)
            if kept is not None:
                keep(folder, kept)
        if kept is None or kept.sha256 != package.sha256 or not kept.variant:
            return None
        if kept.own:
            engine: Engine = OnnxEngine(package, kept.variant, kept.tensors, options=options)
            if not same_on_golden(package, engine):
                raise PackageError(
                    f"The int8 form of {package.manifest.model} that was made here has gone wrong."
                )
            return engine
        engine = load_engine(package, kept.variant, options=options)
        verify_golden(package, engine)
    except UmbelError as exc:
        log.warning("%s", exc)
        return None
    return engine


def same_on_golden(package: Package, engine: Engine) -> bool:
    """Whether a form made here says of the golden inputs what the float form said where the package was made."""
    manifest, golden = package.manifest, package.tensors(GOLDEN)
    x, _ = manifest.contract.check(golden["x"])
    return same_answers(
        manifest.kind, engine.answers(x), golden[f"{manifest.default_variant}.{manifest.answer}"]
    )


def _read(folder: Path) -> Kept | None:
    try:
        raw = (folder / QUANTIZED).read_bytes()
    except OSError:
        return None
    return Kept.from_bytes(raw)


def _renewed(package: Package, installed: str, before: Kept | None, clock: Clock) -> Kept | None:
    """Return what to run of a package whose parameters are new, by the ranges of the one before it."""
    if before is None or not before.graphs or before.graphs != graphs_of(package):
        return None
    manifest = package.manifest
    x, _ = manifest.contract.check(package.tensors(GOLDEN)["x"])
    arrays = package.split(package.parameters())
    mapping = parse_mapping(package.file(manifest.documents[QUANTIZATION]))
    derived = list(mapping["derived"])
    if derived:
        file = manifest.graphs[CALIBRATION]
        session = open_session(package.file(file), file, arrays, optimized=False)
        arrays |= dict(zip(derived, session.run(derived, {manifest.inputs[0].name: x[:1]}), strict=True))
    tensors = quantization.fill(mapping, arrays, before.ranges)
    own, reference = int8_variant(package), manifest.default_variant
    engines = forms(package, OnnxEngine(package, own, tensors), load_engine(package, installed))
    choice = choose(engines, x, reference=reference, kind=manifest.kind, clock=clock)
    chosen = choice.variant == own
    # The ranges are kept in any case: the next release may be worth it.
    return Kept(package.sha256, before.graphs, own if chosen else "", chosen, tensors, before.ranges)
