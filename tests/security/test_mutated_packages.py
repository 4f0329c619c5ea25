"""Mutated packages: none crashes a device, and none loads as anything but what the fleet signed.

Law: ``read_package`` of any bytes but the signed ones raises ``PackageError``. Of bytes that the fleet's own key
signed, it raises that or returns a package all of whose parts can be asked for.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model_packages import RELEASE, first, opened, resigned
from umbel._releases.package import verify_golden
from umbel.engines import load_engine
from umbel_proto.archive import read_archive, write_archive
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.manifest_json import parse_manifest
from umbel_proto.package import LABEL, MANIFEST, SIGNATURE, inspect_package, read_package

Mutation = Callable[[random.Random], bytes]

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**18), 0.5, -0.0, 1e308, 1e-320, "", "x", "\0", "\u202e",
    "\ud800", "../../etc/passwd", "params.safetensors", "manifest.json", "batch", "a" * 5000, [], {}, [[]], [None],
    {"name": "x"}, [0], ["batch"], {"": {}},
)  # fmt: skip


def files() -> dict[str, bytes]:
    return {name: bytes(view) for name, view in read_archive(first()).items()}


def flipped(source: random.Random) -> bytes:
    data = bytearray(first())
    for _ in range(source.choice((1, 1, 1, 2, 8))):
        # Half of them in the structure: the first headers and the manifest, and the directory at the end.
        span = source.choice((range(len(data)), range(4000), range(len(data) - 1000, len(data))))
        data[source.choice(span)] ^= 1 << source.randrange(8)
    return bytes(data)


def cut(source: random.Random) -> bytes:
    data = first()
    begin, end = sorted(source.randrange(len(data)) for _ in range(2))
    piece = data[begin : begin + source.choice((1, 4, 30, 1000))]
    return source.choice(
        (
            data[:end],
            data[begin:],
            data[:begin] + data[end:],
            data[:begin] + piece + data[begin:],
            data[:begin] + bytes(len(piece)) + data[begin + len(piece) :],
            data + source.randbytes(source.choice((1, 22, 200))),
            source.randbytes(8) + data,
            data[:end] + data[begin:end] + data[end:],
        )
    )


def rearranged(source: random.Random) -> bytes:
    """An archive in its legal form, of other files."""
    contents = files()
    names = list(contents)
    victim, other = source.sample(names, 2)
    match source.randrange(8):
        case 0:
            del contents[victim]
        case 1:
            contents[victim], contents[other] = contents[other], contents[victim]
        case 2:
            source.shuffle(names)
            contents = {name: contents[name] for name in names}
        case 3:
            contents[victim] += source.randbytes(source.choice((1, 100, 70_000)))
        case 4:
            contents[source.choice(("../up", "/etc/x", "zz", "a/b", victim.upper()))] = contents[victim]
        case 5:
            contents = {name + ("_" if name == victim else ""): data for name, data in contents.items()}
        case 6:
            contents[victim] = b""
        case _:
            contents |= {f"extra{number}": b"" for number in range(source.randrange(1, 50))}
    return write_archive(contents)


def zipped(source: random.Random) -> bytes:
    """The same files in a ZIP that other tools take for the same."""
    contents, out = list(files().items()), io.BytesIO()
    compression = source.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    twice = source.random() < 0.4
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in contents:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, source.choice((0, 2))))
            info.compress_type = compression
            if source.random() < 0.2:
                info.extra = struct.pack("<HH", 0xCAFE, 0)
            if source.random() < 0.2:
                info.comment = b"hello"
            archive.writestr(info, data)
        if twice:
            name, data = source.choice(contents)
            info = zipfile.ZipInfo(name)
            # zipfile warns of a name that stands twice; written under another, then renamed in place.
            info.filename = name[:-1] + "~"
            archive.writestr(info, data + b"!")
        if source.random() < 0.2:
            archive.writestr("folder/", b"")
        if source.random() < 0.2:
            archive.comment = b"PK\x05\x06 looks like an end"
    data = out.getvalue()
    if twice:
        data = data.replace(name[:-1].encode() + b"~", name.encode())
    return source.choice((data, data + first(), first() + data, data[:-22] + first()[-22:]))


def headers(source: random.Random) -> bytes:
    """A package with one number in its ZIP headers replaced."""
    data = bytearray(first())
    magic = source.choice((b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"))
    places, at = [], data.find(magic)
    while at >= 0:
        places.append(at)
        at = data.find(magic, at + 1)
    place, width = source.choice(places) + source.randrange(4, 42), source.choice((1, 2, 4))
    value = source.choice(
        (0, 1, 8, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data), source.randrange(1 << 32))
    )
    data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def edited(source: random.Random) -> bytes:
    """A manifest edited, and signed by nobody or by another key."""
    contents = files()
    body = json.loads(contents[MANIFEST])
    mutate(body, source)
    contents[MANIFEST] = json.dumps(body, sort_keys=True, indent=1).encode()
    if source.random() < 0.3:
        contents[SIGNATURE] = STRANGER.sign(LABEL, contents[MANIFEST])
    elif source.random() < 0.1:
        contents[SIGNATURE] = source.choice(
            (b"", bytes(64), contents[SIGNATURE][:-1], contents[SIGNATURE] * 2)
        )
    return write_archive(contents)


STRANGER = SigningKey.generate()


def mutate(body: Any, source: random.Random) -> None:
    """Change one place of a JSON document, at any depth."""
    places = list(_places(body))
    holder, key = source.choice(places)
    match source.randrange(5):
        case 0:
            del holder[key]
        case 1 | 2:
            holder[key] = copy.deepcopy(source.choice(HOSTILE))
        case 3:
            other, of = source.choice(places)
            holder[key] = copy.deepcopy(other[of])
        case _ if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case _:
            holder[source.choice(("", "x", key + "_", key.upper()))] = copy.deepcopy(holder[key])


def _places(body: Any) -> Any:
    for key in list(body) if isinstance(body, dict) else range(len(body)):
        yield body, key
        if isinstance(body[key], dict | list):
            yield from _places(body[key])


@pytest.mark.parametrize(
    ("mutation", "count"),
    [(flipped, 3500), (cut, 1500), (rearranged, 1500), (zipped, 500), (headers, 1500), (edited, 1500)],
)
def test_no_mutated_package_loads_or_crashes(mutation: Mutation, count: int) -> None:
    source = random.Random(mutation.__name__)
    changed = 0
    for _ in range(count):
        data = mutation(source)
        if data == first():
            continue
        changed += 1
        with pytest.raises(PackageError):
            read_package(data, release_key=RELEASE.public)
        try:
            inspect_package(data)
        except PackageError:
            continue
    assert changed > 0.9 * count


def test_a_manifest_signed_by_the_right_key_crashes_nothing_whatever_it_says() -> None:
    source = random.Random(7)
    loaded = 0
    for number in range(2000):
        try:
            data = resigned(first(), lambda body: mutate(body, source))
        except UnicodeEncodeError:  # json writes no half of a character: no such file can be
            continue
        try:
            package = read_package(data, release_key=RELEASE.public)
        except PackageError:
            continue
        loaded += 1
        manifest = package.manifest
        assert parse_manifest(manifest.to_json()) == manifest
        package.split(package.parameters())
        if number % 10:
            continue
        for name in manifest.variants:
            try:
                verify_golden(package, load_engine(package, name))
            except (PackageError, UsageError):
                continue
    assert 20 < loaded < 1500


def test_no_change_to_a_manifest_of_numbers_crashes_its_reader() -> None:
    whole = json.loads(files()[MANIFEST])
    for key in ("labels", "decision_threshold"):
        del whole[key]
    whole |= {
        "kind": "regression",
        "targets": [{"name": "a", "unit": "m"}, {"name": "b", "unit": ""}],
        "outputs": [{"name": "values", "dtype": "float32", "shape": ["batch", 2]}],
    }
    parse_manifest(json.dumps(whole).encode())
    source, loaded = random.Random(9), 0
    for _ in range(3000):
        body = copy.deepcopy(whole)
        mutate(body, source)
        # Half of them where kinds differ.
        if source.random() < 0.5:
            body[source.choice(("kind", "targets", "outputs", "labels"))] = source.choice(HOSTILE)
        try:
            manifest = parse_manifest(json.dumps(body).encode())
        except PackageError:
            continue
        loaded += 1
        assert parse_manifest(manifest.to_json()) == manifest
    assert 20 < loaded < 1500


def test_no_change_to_a_contract_of_columns_crashes_its_reader() -> None:
    whole = json.loads(files()[MANIFEST])
    column = {
        "name": "c0", "minimum": 0.0, "maximum": 16.0, "values": [], "allow_missing": False, "unit": "", "action": "clip",
    }  # fmt: skip
    columns = [{**column, "name": f"c{number}"} for number in range(7)]
    columns.append({**column, "name": "c7", "values": [0.0, 1.0, 16.0]})
    whole["contract"][0] |= {"action": "reject", "max_age_s": 5.0, "stale": "flag", "columns": columns}
    whole["label_thresholds"] = {"3": 0.9}
    whole["telemetry_epsilon"] = {"labels": 1.0, "input": 0.5}
    manifest = parse_manifest(json.dumps(whole).encode())
    assert json.loads(manifest.to_json()) == whole
    source, loaded = random.Random(10), 0
    for number in range(3000):
        body = copy.deepcopy(whole)
        # Half of them inside of the contract.
        mutate(body["contract"] if number % 2 else body, source)
        try:
            manifest = parse_manifest(json.dumps(body).encode())
        except PackageError:
            continue
        loaded += 1
        assert parse_manifest(manifest.to_json()) == manifest
        with contextlib.suppress(UsageError):
            manifest.contract.check(np.full((2, 1, 8, 8), 15.5))
    assert 20 < loaded < 1500


def test_manifest_bytes_signed_by_the_right_key_crash_nothing_whatever_they_are() -> None:
    source = random.Random(8)
    contents = files()
    original = contents[MANIFEST]
    for _ in range(1000):
        raw = bytearray(original)
        begin = source.randrange(len(raw))
        raw[begin : begin + source.choice((0, 1, 1, 1, 40))] = source.choice(
            (b"", b"\0", b"\xff", b"[", b"}", b'"', b"9", b"1e999", b"NaN", b"\\ud800", source.randbytes(2))
        )
        contents[MANIFEST] = bytes(raw)
        contents[SIGNATURE] = RELEASE.sign(LABEL, contents[MANIFEST])
        try:
            package = read_package(write_archive(contents), release_key=RELEASE.public)
        except PackageError:
            continue
        assert parse_manifest(package.manifest.to_json()) == package.manifest


@pytest.mark.parametrize("name", ["params.safetensors", "golden.safetensors", "int8.safetensors"])
def test_tensors_signed_by_the_right_key_crash_nothing_whatever_they_say(name: str) -> None:
    source = random.Random(name)
    raw = opened(first()).file(name)
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(300):
        broken = bytearray(raw)
        for _ in range(source.choice((1, 3))):
            place = source.randrange(source.choice((8, header, len(raw))))
            broken[place] = source.randrange(256)
        data = resigned(first(), lambda body: None, **{name: bytes(broken[: source.choice((None, -1, 9))])})
        try:
            package = read_package(data, release_key=RELEASE.public)
            for variant in package.manifest.variants:
                verify_golden(package, load_engine(package, variant))
        except PackageError:
            continue
