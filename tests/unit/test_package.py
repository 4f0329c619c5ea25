"""A package is exactly what the fleet's key signed, or it is nothing."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model_packages import RELEASE, first, opened, resigned
from umbel_proto.archive import read_archive, write_archive
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import Manifest
from umbel_proto.manifest_json import parse_manifest
from umbel_proto.package import GOLDEN, MANIFEST, PARAMETERS, inspect_package, read_package, write_package


def refused(data: bytes) -> str:
    with pytest.raises(PackageError) as caught:
        read_package(data, release_key=RELEASE.public)
    return str(caught.value)


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update(values)


def test_a_package_gives_back_what_was_put_in() -> None:
    package = opened(first())
    files = {name: package.file(name) for name in package.manifest.files}
    assert write_package(package.manifest, files, RELEASE) == first()
    assert package.size == len(first())


def test_any_zip_tool_reads_a_package() -> None:
    with zipfile.ZipFile(io.BytesIO(first())) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[:2] == ["manifest.json", "manifest.sig"]
        assert archive.read("grad.onnx") == opened(first()).file("grad.onnx")


def test_no_changed_byte_goes_unnoticed() -> None:
    data = first()
    source = random.Random(1)
    structure = [*range(160), *range(len(data) - 600, len(data))]
    for position in {*structure, *source.sample(range(len(data)), 500)}:
        broken = bytearray(data)
        broken[position] ^= 1 << source.randrange(8)
        refused(bytes(broken))


def test_no_cut_or_lengthened_package_loads() -> None:
    data = first()
    source = random.Random(2)
    for end in [*range(100), *source.sample(range(len(data)), 200), len(data) - 1]:
        refused(data[:end])
    refused(data + b"\0")
    refused(data[1:])
    refused(b"")


@given(st.binary(max_size=200))
def test_noise_is_refused_as_a_package(noise: bytes) -> None:
    refused(noise)
    refused(b"PK\x03\x04" + noise)


@given(st.dictionaries(st.text("abc./", min_size=1, max_size=9), st.binary(max_size=50), max_size=5))
def test_an_archive_has_one_form_and_gives_back_its_files(files: dict[str, bytes]) -> None:
    data = write_archive(files)
    assert {name: bytes(view) for name, view in read_archive(data).items()} == files
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_a_zip_of_the_same_files_in_another_form_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, view in read_archive(first()).items():
            archive.writestr(name, bytes(view))
    assert "damaged" in refused(out.getvalue())


def test_a_package_of_another_key_is_refused() -> None:
    package = opened(first())
    files = {name: package.file(name) for name in package.manifest.files}
    assert "not signed" in refused(write_package(package.manifest, files, SigningKey.generate()))


def test_an_edited_manifest_is_refused_though_the_archive_is_whole() -> None:
    files = {name: bytes(view) for name, view in read_archive(first()).items()}
    files[MANIFEST] = files[MANIFEST].replace(b'"version": 1', b'"version": 2')
    assert "not signed" in refused(write_archive(files))


def test_an_exchanged_file_is_refused_though_the_archive_is_whole() -> None:
    files = {name: bytes(view) for name, view in read_archive(first()).items()}
    files["infer.onnx"] = files["infer.onnx"][:-1] + b"\0"
    assert "infer.onnx is not what its manifest says" in refused(write_archive(files))


def test_a_file_that_the_manifest_does_not_list_is_refused() -> None:
    files = {name: bytes(view) for name, view in read_archive(first()).items()}
    assert "not the ones its manifest lists" in refused(write_archive({**files, "zzz": b""}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed(format=1), "format 1"),
        (changed(version=0), "version 0"),
        (changed(version=True), "version of the manifest is bool"),
        (changed(surprise=1), "surprise"),
        (changed(model="../up"), "not a name"),
        (changed(labels=["0"]), "fewer than two labels"),
        (changed(labels=["0", "1"]), "probabilities and logits of 2 labels"),
        (changed(default_variant="int4"), "no variant 'int4'"),
        (changed(decision_threshold=1.5), "decision threshold"),
        (changed(contract=[]), "at least one field"),
        (lambda body: body["graphs"].update(gradient="other.onnx"), "other.onnx"),
        (changed(lineage={"deep": {}}), "lineage"),
        (lambda body: body.pop("labels"), "labels"),
        (lambda body: body["parameters"].append(body["parameters"][0]), "twice"),
        (lambda body: body["parameters"].pop(), "names differ"),
        (lambda body: body["parameters"][0].update(shape=[16, 1, 9]), "conv1.weight"),
        (lambda body: body["parameters"][0].update(shape=[16, 0, 9]), "without elements"),
        (lambda body: body["inputs"][0].update(shape=["batch", 64]), "does not describe"),
        (lambda body: body["variants"]["fp32"].update(tolerance=2.0), "tolerance"),
        (lambda body: body["contract"][0].update(maximum=float("inf")), "not a number"),
        (lambda body: body["files"]["infer.onnx"].update(sha256="0" * 63), "malformed"),
    ],
)
def test_even_the_fleet_cannot_sign_nonsense(change: Callable[[dict[str, Any]], None], sentence: str) -> None:
    assert sentence in refused(resigned(first(), change))


def test_a_key_that_stands_twice_in_the_manifest_is_refused() -> None:
    with pytest.raises(PackageError, match="twice"):
        parse_manifest(b'{"format": 2, "format": 2}')


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"\xff", b"{" * 5000, b"[" * 100_000, b'{"format": NaN}']
)
def test_a_manifest_that_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(PackageError):
        parse_manifest(raw)


def test_parameters_that_are_not_finite_are_refused() -> None:
    arrays = opened(first()).tensors(PARAMETERS)
    arrays["hidden.bias"] = np.full_like(arrays["hidden.bias"], np.nan)
    broken = resigned(first(), changed(), **{PARAMETERS: safetensors.numpy.save(arrays)})
    assert "not finite" in refused(broken)


def test_golden_vectors_must_cover_every_variant() -> None:
    golden = opened(first()).tensors(GOLDEN)
    del golden["int8.logits"]
    assert "golden" in refused(resigned(first(), changed(), **{GOLDEN: safetensors.numpy.save(golden)}))


def test_a_file_that_is_no_safetensors_is_refused() -> None:
    assert "safetensors" in refused(
        resigned(first(), changed(), **{PARAMETERS: b"\x08\0\0\0\0\0\0\0{}      "[:12]})
    )


def test_the_parameter_vector_splits_and_joins_to_the_same_bytes() -> None:
    package = opened(first())
    vector = package.parameters()
    assert vector.shape == (package.manifest.dim,) == (13_706,)
    assert package.manifest.join(package.split(vector)).tobytes() == vector.tobytes()
    assert list(package.split(vector)) == [parameter.name for parameter in package.manifest.parameters]


def test_a_vector_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="13706 parameters"):
        opened(first()).split(np.zeros(5, np.float32))


def test_the_manifest_reads_back_equal() -> None:
    manifest: Manifest = opened(first()).manifest
    assert parse_manifest(manifest.to_json()) == manifest


def test_inspecting_asks_for_no_key_and_still_refuses_damage() -> None:
    assert inspect_package(first()).model == "digits"
    with pytest.raises(PackageError):
        inspect_package(first()[:-1])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(PackageError, match=r"no file 'calib2\.onnx'"):
        opened(first()).file("calib2.onnx")
