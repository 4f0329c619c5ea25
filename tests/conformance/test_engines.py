"""What every engine owes: the golden outputs, whatever the batch, from any number of threads.

The next engine joins with one line in ``VARIANTS``.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import model_packages as packages
from umbel._package import verify_golden
from umbel.engines import Engine, load_engine
from umbel_models import tflite
from umbel_models.cli import app
from umbel_models.pack import build, repack
from umbel_models.quantize import embed
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.errors import PackageError
from umbel_proto.package import Package, write_package

VARIANTS = {"fp32": "onnx", "int8": "onnx", "tflite": "tflite", "tflite-int8": "tflite"}


@functools.cache
def package() -> Package:
    """Return trained digits with a variant for every engine."""
    calibration = packages.digits().calibration.x
    first = build(DIGITS, key=packages.RELEASE, calibration=calibration, lite=True)
    data = repack(
        packages.opened(first),
        packages.training().parameters,
        calibration=calibration,
        version=2,
        key=packages.RELEASE,
    )
    return packages.opened(data)


@pytest.fixture(params=VARIANTS)
def engine(request: pytest.FixtureRequest) -> Engine:
    return load_engine(package(), request.param)


def examples(count: int) -> NDArray[np.float32]:
    return np.resize(packages.digits().held_out.x, (count, 1, 8, 8))


def test_it_says_which_variant_and_engine_it_is(engine: Engine) -> None:
    assert VARIANTS[engine.variant] == engine.name
    assert package().manifest.variants[engine.variant].engine == engine.name


def test_it_gives_the_golden_outputs(engine: Engine) -> None:
    verify_golden(package(), engine)


def test_it_gives_probabilities_and_logits_that_belong_together(engine: Engine) -> None:
    probabilities, logits = engine.outputs(examples(5))
    assert probabilities.dtype == logits.dtype == np.float32
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, shifted / shifted.sum(axis=1, keepdims=True), atol=0.01)
    np.testing.assert_array_equal(engine.probabilities(examples(5)), probabilities)


def test_an_example_is_answered_alike_alone_and_in_any_batch(engine: Engine) -> None:
    alone = np.concatenate([engine.probabilities(row[None]) for row in examples(9)])
    for count in (9, 1, 64, 2, 300, 33, 3):
        made = engine.probabilities(examples(count))
        assert made.shape == (count, 10)
        np.testing.assert_allclose(made[:9], alone[:count], rtol=1e-4, atol=1e-5)


def test_what_it_returned_is_not_changed_by_what_it_is_asked_next(engine: Engine) -> None:
    first = engine.probabilities(examples(4))
    kept = first.copy()
    engine.probabilities(examples(4)[::-1].copy())
    np.testing.assert_array_equal(first, kept)


def test_eight_threads_that_ask_at_once_are_answered_as_one_is(engine: Engine) -> None:
    counts = [1, 3, 1, 16, 2, 1, 7, 5]
    expected = [engine.probabilities(examples(count)) for count in counts]
    together = threading.Barrier(len(counts))

    def ask(place: int) -> bool:
        together.wait()
        shifted = [(place + step) % len(counts) for step in range(40)]
        return all(
            np.allclose(engine.probabilities(examples(counts[i])), expected[i], rtol=1e-4, atol=1e-5)
            for i in shifted
        )

    with ThreadPoolExecutor(len(counts)) as pool:
        assert all(pool.map(ask, range(len(counts))))


def test_engines_agree_on_the_label(engine: Engine) -> None:
    x = packages.digits().held_out.x
    reference = load_engine(package(), "fp32").probabilities(x).argmax(axis=1)
    assert (engine.probabilities(x).argmax(axis=1) == reference).mean() >= 0.995


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_that_is_no_model_is_refused(variant: str) -> None:
    file = package().manifest.variants[variant].file
    data = packages.resigned(packed(package()), lambda body: None, **{file: b"x" * 64})
    with pytest.raises(PackageError, match="cannot run"):
        load_engine(packages.opened(data), variant)


def packed(opened: Package) -> bytes:
    contents = {name: opened.file(name) for name in opened.manifest.files}
    return write_package(opened.manifest, contents, packages.RELEASE)


def test_a_tflite_file_of_a_fixed_batch_answers_any_number_of_examples() -> None:
    model = embed(package().file("infer.onnx"), package().split(package().parameters()))
    fixed = tflite.convert(model.SerializeToString(), batch=4)
    data = packages.resigned(packed(package()), lambda body: None, **{tflite.FLOAT_FILE: fixed})
    engine = load_engine(packages.opened(data), "tflite")
    verify_golden(package(), engine)
    reference = load_engine(package(), "fp32")
    for count in (1, 3, 4, 5, 8, 11):
        outputs, expected = engine.outputs(examples(count)), reference.outputs(examples(count))
        for made, wanted in zip(outputs, expected, strict=True):
            assert made.shape == wanted.shape
            np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_the_variants_of_a_later_version_have_its_parameters() -> None:
    x = packages.digits().held_out.x
    for variant in VARIANTS:
        labels = load_engine(package(), variant).probabilities(x).argmax(axis=1)
        assert (labels == packages.digits().held_out.y).mean() > 0.95


def test_a_package_has_tflite_variants_where_they_were_asked_for(tmp_path: Path) -> None:
    key = tmp_path / "release.key"
    key.write_bytes(packages.RELEASE.to_pem())
    for option, expected in (("--tflite", set(VARIANTS)), (None, {"fp32", "int8"})):
        out = tmp_path / f"digits{option}.umbel"
        words = ["build", "digits", "--key", str(key), "--out", str(out), *filter(None, [option])]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert set(packages.opened(out.read_bytes()).manifest.variants) == expected


def test_without_litert_the_sentence_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "digits.umbel"
    path.write_bytes(packed(package()))
    program = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "from pathlib import Path\n"
        "from umbel._package import load_package\n"
        "from umbel.engines import load_engine\n"
        "from umbel_proto.keys import VerifyKey\n"
        "key = VerifyKey(bytes.fromhex(sys.argv[2]))\n"
        "package = load_package(Path(sys.argv[1]), release_key=key)\n"
        "try: load_engine(package, 'tflite')\n"
        "except Exception as exc: print(type(exc).__name__, exc)\n"
    )
    arguments = [sys.executable, "-c", program, str(path), packages.RELEASE.public.raw.hex()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError")
    assert "pip install 'umbel[tflite]'" in done.stdout
