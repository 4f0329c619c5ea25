"""A model package: one signed file with a model's graphs, parameters, golden vectors and manifest.

``NAME.umbel`` is a ZIP archive (``umbel_proto.archive``) of

====================  =======================================================================
``manifest.json``     ``umbel_proto.manifest``: what everything else is, and its SHA-256
``manifest.sig``      Ed25519 signature of the release key over the bytes of ``manifest.json``
``infer.onnx``        x -> probabilities, logits, or values; its parameters are external, by name
``params.safetensors``  the parameters, trainable and frozen, float32, once for all graphs
``golden.safetensors``  inputs ``x`` and, for each variant, ``VARIANT.OUTPUT``
``grad.onnx``         parameters, x, y, w -> gradients, loss (models that can be trained)
``dpgrad.onnx``       parameters, x, y, w, clip -> sums of per-example clipped gradients, loss, norms
``explain.onnx``      x, baseline, target -> attributions, logits or values, residual
``int8.onnx``         the quantized graph (where there is one)
``card.json``         what the model is for, and its figures
``baseline.json``     histograms of what it was made for
====================  =======================================================================

Bytes in, bytes out: reading and writing files is the caller's business.

Source: docs/spec/package.md.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.archive import read_archive, write_archive
from umbel_proto.errors import PackageError, UsageError, VerificationError
from umbel_proto.keys import SIGNATURE_BYTES, SigningKey, VerifyKey
from umbel_proto.manifest import INSIDE, FileEntry, FloatVector, Manifest
from umbel_proto.manifest_json import parse_manifest
from umbel_proto.tensors import load_tensors

LABEL = "umbel/1/package"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
PARAMETERS = "params.safetensors"
GOLDEN = "golden.safetensors"
SUFFIX = ".umbel"
MAX_DOCUMENT_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Package:
    """A package whose hashes hold, and whose signature does where it is verified.

    Args:
        manifest: What it declares.
        sha256: Hash of the whole file, 64 hexadecimal digits: the package's name on a shelf.
        size: Length of the whole file, bytes.
        verified: Whether the signature was checked with a release key: ``read_package`` gives no other.
    """

    manifest: Manifest
    sha256: str
    size: int
    _files: Mapping[str, memoryview] = field(repr=False)
    verified: bool = True

    def file(self, name: str) -> bytes:
        """Return one file's bytes.

        Raises:
            PackageError: The package has no such file.
        """
        return bytes(self._view(name))

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of one ``.safetensors`` file, by name.

        Raises:
            PackageError: The package has no such file, or it holds something else.
        """
        return load_tensors(self._view(name), name)

    def parameters(self) -> FloatVector:
        """Return the vector of the trainable parameters, shape (dim,), in the manifest's order.

        Raises:
            PackageError: The arrays are not those of the manifest.
        """
        return self._parted()[0]

    def frozen(self) -> dict[str, NDArray[np.float32]]:
        """Return the parameters that training leaves as they are, by name: what gradient graphs take.

        Raises:
            PackageError: The arrays are not those of the manifest.
        """
        return self._parted()[1] if self.manifest.frozen else {}

    def split(self, vector: FloatVector) -> dict[str, NDArray[np.float32]]:
        """Return all parameters by name, as the graphs that predict and explain take them.

        Args:
            vector: Values of the trainable ones, shape (dim,); the frozen ones are the package's.

        Raises:
            UsageError: The vector has another shape: it is not of this model.
            PackageError: The package's arrays are not those of the manifest.
        """
        return {**self.manifest.split(vector), **self.frozen()}

    def weights(self, variant: str) -> dict[str, NDArray[Any]]:
        """Return the arrays that a variant's graph takes by name; none where it holds them itself.

        Raises:
            PackageError: The package's arrays are not those of the manifest.
        """
        name = self.manifest.variants[variant].weights
        return {} if name == INSIDE else self.tensors(name)

    def _view(self, name: str) -> memoryview:
        try:
            return self._files[name]
        except KeyError:
            raise PackageError(
                f"Package {self.manifest.model} {self.manifest.version} has no file {name!r}."
            ) from None

    def _parted(self) -> tuple[FloatVector, dict[str, NDArray[np.float32]]]:
        # Not copied before they are joined: a device has the package, the vector and no third of their size.
        arrays = load_tensors(self._view(PARAMETERS), PARAMETERS, copied=False)
        try:
            vector, frozen = self.manifest.part(arrays)
        except UsageError as exc:
            raise PackageError(str(exc)) from exc
        return vector, {name: array.copy() for name, array in frozen.items()}


def write_package(manifest: Manifest, files: Mapping[str, bytes], key: SigningKey) -> bytes:
    """Return the package of ``files``, signed: the same input gives the same bytes.

    Args:
        manifest: What the package declares; its ``files`` are computed here.
        files: Every file but the manifest and its signature.
        key: The fleet's release key.

    Raises:
        PackageError: The files are not what the manifest says: nothing is written that could not be read.
    """
    listed = {
        name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())
    }
    body = replace(manifest, files=listed).to_json()
    data = write_archive(
        {MANIFEST: body, SIGNATURE: key.sign(LABEL, body), **{name: files[name] for name in listed}},
    )
    read_package(data, release_key=key.public)
    return data


def read_package(data: bytes, *, release_key: VerifyKey) -> Package:
    """Verify a package: its form, its signature, every hash, and that its parts fit together.

    What the graphs compute is not run here: see the golden vectors.

    Raises:
        PackageError: Anything is not as it must be. A package with one byte changed never passes.
    """
    files = _open(data)
    body, signature = bytes(files[MANIFEST]), bytes(files[SIGNATURE])
    try:
        if len(signature) != SIGNATURE_BYTES:
            raise VerificationError("A signature of another length.")
        release_key.verify(LABEL, body, signature)
    except VerificationError as exc:
        raise PackageError(
            "The package is not signed by this fleet's release key: do not install it."
        ) from exc
    return _whole(data, files, verified=True)


def read_unsigned(data: bytes) -> Package:
    """Check a package as ``read_package`` does, but for who signed it. A device never installs what this gives.

    For a local file that a developer chose and may trust for reasons of their own.

    Raises:
        PackageError: Anything else is not as it must be.
    """
    return _whole(data, _open(data), verified=False)


def _whole(data: bytes, files: Mapping[str, memoryview], *, verified: bool) -> Package:
    manifest = parse_manifest(bytes(files[MANIFEST]))
    if list(files)[2:] != sorted(manifest.files):
        raise PackageError("The package's files are not the ones its manifest lists.")
    for name, entry in manifest.files.items():
        actual = hashlib.sha256(files[name]).hexdigest()
        if len(files[name]) != entry.size or not hmac.compare_digest(actual, entry.sha256):
            raise PackageError(
                f"The package's {name} is not what its manifest says: fetch the package again."
            )
    package = Package(manifest, hashlib.sha256(data).hexdigest(), len(data), files, verified)
    _check_parts(package)
    return package


def inspect_package(data: bytes) -> Manifest:
    """Return what a package declares, without asking who signed it. For looking at it, never for running it.

    Raises:
        PackageError: It is no package.
    """
    return parse_manifest(bytes(_open(data)[MANIFEST]))


def _open(data: bytes) -> dict[str, memoryview]:
    files = read_archive(data)
    if list(files)[:2] != [MANIFEST, SIGNATURE]:
        raise PackageError("The file is no model package: its manifest and signature are missing.")
    return files


def _check_parts(package: Package) -> None:
    manifest = package.manifest
    variants = manifest.variants.values()
    needed = {PARAMETERS, GOLDEN, *manifest.graphs.values(), *manifest.documents.values()}
    needed |= {variant.file for variant in variants} | {variant.weights for variant in variants} - {INSIDE}
    missing = sorted(needed - manifest.files.keys())
    if missing:
        raise PackageError(f"The manifest speaks of {missing[0]}, which the package does not hold.")
    package.parameters()
    for name in sorted({variant.weights for variant in variants} - {INSIDE, PARAMETERS}):
        package.tensors(name)
    for name in manifest.documents.values():
        if manifest.files[name].size > MAX_DOCUMENT_BYTES:
            raise PackageError(f"The package's {name} has more than {MAX_DOCUMENT_BYTES >> 20} MiB.")
    _check_golden(manifest, package.tensors(GOLDEN))


def _check_golden(manifest: Manifest, golden: Mapping[str, NDArray[Any]]) -> None:
    inputs = golden.get("x", np.empty(0))
    answers = {f"{variant}.{spec.name}" for variant in manifest.variants for spec in manifest.outputs}
    shape = (*inputs.shape[:1], *manifest.answer_shape)
    held = {name for name, array in golden.items() if array.shape == shape and array.dtype == np.float32}
    if golden.keys() != answers | {"x"} or not answers <= held or not inputs.shape or not len(inputs):
        raise PackageError("The package's golden vectors do not cover every variant and output.")
