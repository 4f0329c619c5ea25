"""Load a model from a local file, without a fleet: a package, or a bare graph."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from umbel._predict.graph import Graph
from umbel._predict.model import Model
from umbel._releases.package import verify_golden
from umbel.engines import EngineOptions, load_engine, require_options
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_proto.keys import VerifyKey
from umbel_proto.package import SUFFIX, read_package, read_unsigned


class UnverifiedPackageWarning(UserWarning):
    """A package was loaded without asking who signed it."""


def load(
    path: str | Path,
    *,
    release_key: bytes | str | Path | None = None,
    variant: str | None = None,
    engine: EngineOptions | None = None,
    labels: Sequence[str] = (),
    output: str | None = None,
    logits: bool = False,
    decision_threshold: float = 0.0,
) -> Model | Graph:
    """Load a model from a file of this machine. It needs no fleet and no network, and counts nothing.

    Of a package every hash is checked and its golden vectors are run, with or without a key: one that is damaged,
    or computes here what it should not, is never loaded. Without a key nobody knows who made it: the model says
    ``verified`` is False, and a warning says so once. A bare graph has neither hashes nor a signature: which file
    to trust is for who loads it to know.

    Args:
        path: A package, ``.umbel``, or a bare graph, ``.onnx`` or ``.tflite``; weights that an ``.onnx`` file keeps
            in files beside it are found there.
        release_key: Of a package, the fleet's public release key: its 32 bytes or PEM, or the file that holds them.
        variant: Of a package, the variant to run; by default the package's own.
        engine: How the engine may use this machine; of a bare ``.tflite`` its threads alone.
        labels: Of a bare graph that classifies, the name of each class in the order of its output, two or more.
            Without them it answers with numbers.
        output: Of a bare graph, the name of the output that answers, with labels of shape (batch, classes); by
            default the only one that can.
        logits: Of a bare graph, whether that output holds logits instead of probabilities.
        decision_threshold: Of a bare graph, the confidence from which a prediction needs no review, in [0, 1].

    Returns:
        A ``Model`` of a package, a ``Graph`` of a bare graph. Both are asked alike, about one example or a batch of
        any size: ``predict`` and ``predict_proba`` where they classify, else ``estimate``; ``run`` for every output;
        ``explain``. ``inputs`` says what they take: of each input its name, type and shape, the batch first.

    Raises:
        UsageError: The file is not there, is none of these, or cannot be opened; or something was given that does
            not belong to its kind, or is out of range.
        PackageError: The package is altered, not signed by the key, or does not compute here what it should.
        MissingExtraError: Its engine is not installed.
    """
    given: object = path
    if not isinstance(given, str | os.PathLike):
        raise UsageError(f"A {type(given).__name__} is no path of a model: give one, as text or a Path.")
    file = Path(path)
    kind = file.suffix.lower()
    names = _names(labels)
    require_options(engine)
    if kind == SUFFIX:
        if names or output is not None or logits or decision_threshold:
            raise UsageError(
                "A package names its labels, outputs and threshold itself: load it without them."
            )
        return _package(file, release_key, variant, engine)
    if kind not in (".onnx", ".tflite"):
        raise UsageError(
            f"{file} is no model that umbel loads: give a file that ends in .umbel, .onnx or .tflite."
        )
    if release_key is not None or variant is not None:
        raise UsageError(
            "A bare graph has no signature and no variants: load it without release_key and variant."
        )
    from umbel.engines.bare import OnnxGraph, Runner

    runner: Runner
    if kind == ".onnx":
        with _opened(file):  # onnxruntime opens it by its name, and says of every fault the same.
            pass
        runner = OnnxGraph(file, options=engine)
    else:
        try:
            from umbel.engines.bare_tflite import TfliteGraph
        except ImportError as exc:
            raise MissingExtraError("tflite", f"{file.name}") from exc
        runner = TfliteGraph(_read(file), file, options=engine)
    return Graph(
        runner,
        file,
        labels=names,
        output=output,
        logits=logits,
        decision_threshold=decision_threshold,
    )


def _names(labels: Any) -> tuple[str, ...]:
    """Return the names of classes, from a list, an array or what else holds some."""
    # Of a text every letter would be a class, of a dictionary every key; a set has no order.
    if not isinstance(labels, str | bytes | Mapping | set | frozenset):
        with suppress(TypeError):  # It holds nothing.
            return tuple(str(name) for name in labels)
    raise UsageError(
        f"labels is a {type(labels).__name__}: give a list of names, one for each class, in the order of its output."
    )


def _package(
    file: Path, release_key: bytes | str | Path | None, variant: str | None, options: EngineOptions | None
) -> Model:
    data = _read(file)
    if release_key is None:
        package = read_unsigned(data)
        warnings.warn(
            f"{file} is whole, but nobody checked who made it: load it with release_key=, the fleet's public "
            "release key.",
            UnverifiedPackageWarning,
            stacklevel=3,
        )
    else:
        package = read_package(data, release_key=_key(release_key))
    engine = load_engine(package, variant, options=options)
    verify_golden(package, engine)
    return Model(package, engine)


def _key(given: bytes | str | Path) -> VerifyKey:
    if isinstance(given, bytes):
        return VerifyKey.read(given)
    content = _read(Path(given))
    try:
        return VerifyKey.read(content)
    except UsageError as exc:
        raise UsageError(f"{given} is no public release key, such as a fleet's release.pub: {exc}") from exc


def _read(file: Path) -> bytes:
    with _opened(file) as content:
        return content.read()


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with file.open("rb") as content:
            yield content
    except FileNotFoundError as exc:
        raise UsageError(f"There is no file {file}.") from exc
    except OSError as exc:
        raise UsageError(f"{file} cannot be read: {exc.strerror}.") from exc
