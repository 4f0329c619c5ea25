"""``umbel model bench`` of a package for two engines: the real command, in a process of its own.

Laws: every variant is there with its engine, in the table and as JSON; figures are positive, and that of the default,
which is named, is no difference at all; a variant without its engine is left out, and the package that is missing named.
No time is asserted.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_packages import RELEASE, digits
from umbel_models.pack import build
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.package import read_package

ENGINES = {"fp32": "onnx", "int8": "onnx", "tflite": "tflite", "tflite-int8": "tflite"}
NUMBER = r"[\d,]+\.\d"


@functools.cache
def lite() -> bytes:
    return build(DIGITS, key=RELEASE, calibration=digits().calibration.x, lite=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "digits.umbel").write_bytes(lite())
    (tmp_path / "release.pub").write_bytes(RELEASE.public.raw)
    return tmp_path


def bench(folder: Path, *options: str, before: str = "pass") -> str:
    script = f"import sys; {before}; from umbel.cli import main; main()"
    words = ["model", "bench", "digits.umbel", "--release-key", "release.pub", *options]
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stderr.splitlines() if " variant " in line] == list(ENGINES)
    return done.stdout


def test_the_json_has_every_variant_and_engine_and_names_the_default(folder: Path) -> None:
    body = json.loads(bench(folder, "--json"))
    assert {name: form["engine"] for name, form in body["variants"].items()} == ENGINES
    assert body["default_variant"] == "fp32"
    assert body["skipped"] == {}
    manifest = read_package(lite(), release_key=RELEASE.public).manifest
    for name, form in body["variants"].items():
        assert form["bytes"] >= manifest.files[manifest.variants[name].file].size > 0
        assert form["latency_us"].keys() == {"1", "64"}
        assert all(0 < each["p50"] <= each["p95"] for each in form["latency_us"].values())
        assert form["agreement"] > 0.8
        assert 0 <= form["difference"] < 0.1
    # fp32's own answers again, those of LiteRT to the last bits, those of int8 not.
    differences = {name: form["difference"] for name, form in body["variants"].items()}
    assert max(differences["fp32"], differences["tflite"]) < 1e-5 < differences["int8"]
    assert differences["tflite-int8"] > 1e-5
    for each in body["graphs"].values():
        assert 0 < each["p50"] <= each["p95"]


def test_the_table_has_every_variant_and_engine_and_names_the_default(folder: Path) -> None:
    text = bench(folder)
    row = rf"^(\S+) +(onnx|tflite) +[\d,]+ +[\d.]+% +\S+ +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}$"
    assert dict(re.findall(row, text, re.M)) == ENGINES
    assert "Equal labels and differences are from fp32, the package's default." in text.splitlines()
    assert re.search(rf"^explain +{NUMBER} +{NUMBER}$", text, re.M)
    assert "was not measured" not in text


def test_a_variant_without_its_engine_is_left_out_and_the_missing_package_named(folder: Path) -> None:
    text = bench(folder, before="sys.modules['ai_edge_litert'] = None")
    assert re.findall(r"^(\S+) +(?:onnx|tflite) ", text, re.M) == ["fp32", "int8"]
    said = [line for line in text.splitlines() if "was not measured" in line]
    assert [line.split()[0] for line in said] == ["tflite", "tflite-int8"]
    assert all("pip install 'umbel[tflite]'" in line for line in said)
