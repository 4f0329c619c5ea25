"""``umbel model``: build, pack, show."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import Result
from typer.testing import CliRunner

from model_packages import RELEASE, digits, first, opened, release, training
from umbel_models.card import Card
from umbel_models.cli import app
from umbel_proto.errors import PackageError, StorageError, UmbelError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.package import read_package
from umbel_proto.update import write_update


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "release.pem").write_bytes(RELEASE.to_pem())
    (tmp_path / "release.pub").write_bytes(RELEASE.public.raw)
    (tmp_path / "base.umbel").write_bytes(first())
    vector = training().parameters
    (tmp_path / "trained.safetensors").write_bytes(safetensors.numpy.save(opened(first()).split(vector)))
    np.savez(tmp_path / "x.npz", x=digits().calibration.x)
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    words = [word.replace("@", f"{folder}/") for word in arguments]
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


PACK = ("pack", "@base.umbel", "--params", "@trained.safetensors", "--calibration", "@x.npz",
        "--version", "2", "--key", "@release.pem", "--out", "@next.umbel")  # fmt: skip


def test_build_writes_the_first_package(folder: Path) -> None:
    result = run(
        folder, "build", "digits", "--out", "@digits.umbel", "--key", "@release.pem", "--version", "3"
    )
    assert "digits 3" in result.output
    package = read_package((folder / "digits.umbel").read_bytes(), release_key=RELEASE.public)
    assert package.manifest.version == 3
    assert not list(folder.glob(".digits*"))


def test_pack_writes_the_next_version(folder: Path) -> None:
    run(folder, *PACK, "--lineage", '{"run": "r1", "rounds": 10}')
    package = read_package((folder / "next.umbel").read_bytes(), release_key=RELEASE.public)
    assert package.manifest.version == 2
    assert package.manifest.lineage["rounds"] == 10
    np.testing.assert_array_equal(package.parameters(), training().parameters)


def test_pack_takes_the_update_of_a_run_and_evaluates_it(folder: Path) -> None:
    (folder / "trained.params").write_bytes(write_update(opened(first()), training().parameters))
    np.savez(folder / "heldout.npz", x=digits().held_out.x, y=digits().held_out.y)
    result = run(folder, *PACK, "--params", "@trained.params", "--heldout", "@heldout.npz")
    assert "evaluating every variant" in result.stderr
    package = read_package((folder / "next.umbel").read_bytes(), release_key=RELEASE.public)
    np.testing.assert_array_equal(package.parameters(), training().parameters)
    card = Card.from_json(package.file("card.json"))
    assert {metric.kind: metric.value for metric in card.metrics}["examples"] == len(digits().held_out.y)


OWN = """
from dataclasses import replace
from umbel_models.tasks.digits import task as digits


def even(said, y):
    return float((said.argmax(1) % 2 == y % 2).mean())


task = replace(digits.DIGITS, metrics={"right about even": even})
"""


def figures(folder: Path, name: str) -> dict[str, float]:
    package = read_package((folder / name).read_bytes(), release_key=RELEASE.public)
    return {each.kind: each.value for each in Card.from_json(package.file("card.json")).metrics}


def test_pack_computes_what_a_task_tells_of_its_own_or_says_that_the_card_lacks_it(folder: Path) -> None:
    held_out = digits().held_out
    np.savez(folder / "heldout.npz", x=held_out.x, y=held_out.y)
    (folder / "own.py").write_text(OWN)
    lacks = "does not tell of right about even, as that of 2 does"
    given = (*PACK, "--heldout", "@heldout.npz")
    assert lacks not in run(folder, *given, "--task", "@own.py").stdout
    before = figures(folder, "base.umbel")
    told = figures(folder, "next.umbel")
    assert told.keys() - before.keys() == {"right about even"}
    assert told["accuracy"] < told["right about even"] < 1
    later = ("pack", "@next.umbel", *given[2:], "--version", "3", "--out", "@third.umbel")
    assert lacks in run(folder, *later).stdout
    assert figures(folder, "third.umbel").keys() == before.keys()
    assert lacks not in run(folder, *later[:-6], "--version", "3", "--out", "@third.umbel").stdout
    assert figures(folder, "third.umbel") == {}


def test_pack_refuses_the_update_of_another_package(folder: Path) -> None:
    (folder / "trained.params").write_bytes(write_update(opened(release(2)), training().parameters))
    with pytest.raises(PackageError, match="not made from this package"):
        run(folder, *PACK, "--params", "@trained.params")
    assert not (folder / "next.umbel").exists()


def test_lineage_may_stand_in_a_file(folder: Path) -> None:
    (folder / "facts.json").write_text('{"run": "r2"}')
    run(folder, *PACK, "--lineage", "@facts.json")
    package = read_package((folder / "next.umbel").read_bytes(), release_key=RELEASE.public)
    assert package.manifest.lineage["run"] == "r2"


def test_show_tells_what_a_package_declares(folder: Path) -> None:
    text = run(folder, "show", "@base.umbel", "--release-key", "@release.pub").output
    assert f"digits 1, {len(first()):,} bytes" in text
    assert "verified" in text
    assert re.search(r"trainable +13,706 in 8 arrays", text)
    assert re.search(r"frozen +0 in 0 arrays", text)
    assert "0..16 grey levels" in text
    sizes = {name: entry.size for name, entry in opened(first()).manifest.files.items()}
    together = sizes["int8.onnx"] + sizes["int8.safetensors"]
    assert re.search(rf"int8 +onnx +int8\.onnx +int8\.safetensors +{together:,} +0\.1", text)
    assert re.search(rf"clipped_gradient +dpgrad\.onnx +{sizes['dpgrad.onnx']:,}", text)
    assert re.search(r"accuracy +0\.\d+ +0\.\d+ to 0\.\d+", text)
    assert "not checked" in run(folder, "show", "@base.umbel").output


def test_show_gives_json(folder: Path) -> None:
    body = json.loads(run(folder, "show", "@base.umbel", "--json").output)
    assert body["model"] == "digits"
    assert body["signature_checked"] is False
    assert body["card"]["bomFormat"] == "CycloneDX"


def test_show_prints_the_card_and_the_data_sheet(folder: Path) -> None:
    text = run(folder, "show", "@base.umbel", "--card").output
    card, _, sheet = text.partition("# Data sheet")
    assert card == Card.from_json(opened(first()).file("card.json")).to_markdown() + "\n"
    assert "Thirteen writers" in card
    assert "# Data sheet" + sheet == opened(first()).file("datasheet.md").decode()


def test_bench_measures_every_variant_and_graph(folder: Path) -> None:
    result = run(folder, "bench", "@base.umbel", "--release-key", "@release.pub", "--json")
    body = json.loads(result.stdout)
    assert body["variants"].keys() == {"fp32", "int8"}
    assert body["variants"]["fp32"]["agreement"] == 1.0
    assert body["variants"]["fp32"]["difference"] < 1e-5
    assert 0 < body["variants"]["int8"]["difference"] < 0.1
    files = opened(first()).manifest.files
    weights = files["infer.onnx"].size + files["params.safetensors"].size
    assert body["variants"]["fp32"]["bytes"] == weights
    for form in body["variants"].values():
        assert form["latency_us"].keys() == {"1", "64"}
        assert all(0 < each["p50"] <= each["p95"] for each in form["latency_us"].values())
    assert body["graphs"].keys() == opened(first()).manifest.graphs.keys() - {"calibration"}
    assert "variant int8" in result.stderr


def test_bench_gives_a_table(folder: Path) -> None:
    text = run(folder, "bench", "@base.umbel", "--release-key", "@release.pub").stdout
    assert re.search(r"fp32 +onnx +[\d,]+ +100\.0% +\S+ +[\d,.]+ +[\d,.]+ +[\d,.]+ +[\d,.]+$", text, re.M)
    assert re.search(r"^gradient +[\d,.]+ +[\d,.]+$", text, re.M)


def test_bench_runs_nothing_that_the_fleet_did_not_sign(folder: Path) -> None:
    (folder / "release.pub").write_bytes(SigningKey.generate().public.raw)
    with pytest.raises(PackageError, match="not signed"):
        run(folder, "bench", "@base.umbel", "--release-key", "@release.pub")


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (
            ("build", "letters", "--out", "@o", "--key", "@release.pem"),
            UsageError,
            "or give a Python file that ends",
        ),
        (("build", "digits", "--out", "@o", "--key", "@none.pem"), UsageError, "cannot be read"),
        (
            ("build", "digits", "--out", "@o", "--key", "@x.npz"),
            UsageError,
            "private key. Give a fleet's keys/release.key",
        ),
        (("build", "digits", "--out", "@o", "--key", "@none.pem"), UsageError, "umbel fleet create"),
        # Before its minutes of work: a command that ends in nothing to write to.
        (
            ("build", "@none.py", "--out", "@", "--key", "@release.pem"),
            StorageError,
            "it is a folder. Name a file in it",
        ),
        (("pack", "@none", *PACK[2:], "--out", "@no/o"), StorageError, "/no first."),
        (
            ("split", "digits", "--out", "@x.npz"),
            StorageError,
            "cannot be made a folder: File exists. Name a folder",
        ),
        (("assess", "digits", "--plot", "@no/o.png"), StorageError, "/no first."),
        (("build", "digits", "--out", "@no/o", "--key", "@release.pem"), StorageError, "Make the folder "),
        (
            ("build", "digits", "--out", "@x.npz/o", "--key", "@release.pem"),
            StorageError,
            "Name a file in a folder",
        ),
        (
            (*PACK, "--params", "@x.npz"),
            UsageError,
            "x.npz does not hold arrays in the safetensors format. Give a run's",
        ),
        (
            (*PACK, "--calibration", "@release.pem"),
            UsageError,
            "an array x. Write one with numpy.savez(file, x=...).",
        ),
        (
            (*PACK, "--calibration", "@none.npz"),
            UsageError,
            "cannot be read: No such file or directory. Give an .npz",
        ),
        (
            (*PACK, "--heldout", "@x.npz"),
            UsageError,
            "x.npz holds no y. Write one with numpy.savez(file, x=..., y=...).",
        ),
        ((*PACK, "--heldout", "@release.pem"), UsageError, "not an .npz file with arrays x and y. Write"),
        ((*PACK, "--lineage", "{"), UsageError, "--lineage"),
        (("build", "@none.py", "--out", "@o", "--key", "@release.pem"), UsageError, "no file"),
        ((*PACK, "--lineage", '{"a": []}'), UsageError, "flat JSON object"),
        (("pack", "@x.npz", *PACK[2:]), PackageError, "no package"),
        ((*PACK, "--task", "digits"), UsageError, "give --heldout as well"),
        ((*PACK, "--heldout", "@x.npz", "--task", "digits"), UsageError, "no metrics of its own"),
        ((*PACK, "--heldout", "@x.npz", "--task", "credit"), UsageError, "give the task of digits"),
        ((*PACK, "--heldout", "@x.npz", "--task", "@none.py"), UsageError, "no file"),
        (("show", "@x.npz"), PackageError, "no package"),
        (("show", "@base.umbel", "--release-key", "@x.npz"), UsageError, "bytes, this one "),
        (("show", "@base.umbel", "--release-key", "@x.npz"), UsageError, "Give a fleet's keys/release.pub"),
        (
            ("show", "@base.umbel", "--release-key", "@release.pem"),
            UsageError,
            "PEM. Give a fleet's keys/release.pub",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    folder: Path, arguments: tuple[str, ...], error: type[UmbelError], sentence: str
) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(error) as caught:
        run(folder, *arguments)
    assert sentence in str(caught.value)
    assert sorted(folder.iterdir()) == before


def test_a_full_disk_is_told_and_keeps_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(folder.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device\. Free some space"):
        run(folder, "build", "digits", "--out", "@base.umbel", "--key", "@release.pem")
    assert sorted(folder.iterdir()) == before
    assert (folder / "base.umbel").read_bytes() == first()


def test_a_package_of_another_fleet_is_no_base(folder: Path) -> None:
    (folder / "release.pem").write_bytes(SigningKey.generate().to_pem())
    with pytest.raises(PackageError, match="not signed by this fleet"):
        run(folder, *PACK)
