"""What every engine owes: the golden outputs, whatever the batch, from any number of threads.

The next engine joins with one line in ``VARIANTS``.
"""

from __future__ import annotations

import functools
import gc
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
from umbel._predict.model import Model, Prediction
from umbel._releases.package import verify_golden
from umbel.engines import Engine, EngineOptions, load_engine
from umbel_models import tflite
from umbel_models.cli import app
from umbel_models.pack import build, repack
from umbel_models.quantize import embed
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.errors import PackageError, UmbelError, UsageError
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
    probabilities, logits = engine.outputs(examples(5)).values()
    assert probabilities.dtype == logits.dtype == np.float32
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, shifted / shifted.sum(axis=1, keepdims=True), atol=0.01)
    np.testing.assert_array_equal(engine.answers(examples(5)), probabilities)


def test_an_example_is_answered_alike_alone_and_in_any_batch(engine: Engine) -> None:
    alone = np.concatenate([engine.answers(row[None]) for row in examples(9)])
    for count in (9, 1, 64, 2, 300, 33, 3):
        made = engine.answers(examples(count))
        assert made.shape == (count, 10)
        np.testing.assert_allclose(made[:9], alone[:count], rtol=1e-4, atol=1e-5)


def test_what_it_returned_is_not_changed_by_what_it_is_asked_next(engine: Engine) -> None:
    first = engine.answers(examples(4))
    kept = first.copy()
    engine.answers(examples(4)[::-1].copy())
    np.testing.assert_array_equal(first, kept)


def test_eight_threads_that_ask_at_once_are_answered_as_one_is(engine: Engine) -> None:
    counts = [1, 3, 1, 16, 2, 1, 7, 5]
    expected = [engine.answers(examples(count)) for count in counts]
    together = threading.Barrier(len(counts))

    def ask(place: int) -> bool:
        together.wait()
        shifted = [(place + step) % len(counts) for step in range(40)]
        return all(
            np.allclose(engine.answers(examples(counts[i])), expected[i], rtol=1e-4, atol=1e-5)
            for i in shifted
        )

    with ThreadPoolExecutor(len(counts)) as pool:
        assert all(pool.map(ask, range(len(counts))))


def test_a_seat_answers_each_example_as_a_batch_of_it_does(engine: Engine) -> None:
    seat = engine.seat()
    assert seat is not None
    assert (seat.example.shape, seat.answer.shape) == ((1, 1, 8, 8), (1, 10))
    for row in examples(30):
        seat.example[0] = row
        seat.run()
        np.testing.assert_allclose(seat.answer, engine.answers(row[None]), rtol=1e-4, atol=1e-5)


def test_seats_are_apart_from_one_another_and_from_batches(engine: Engine) -> None:
    one, other = engine.seat(), engine.seat()
    assert one is not None
    assert other is not None
    first, second = examples(2)
    one.example[0], other.example[0] = first, second
    one.run()
    kept = one.answer.copy()
    other.run()
    engine.answers(examples(7))
    np.testing.assert_array_equal(one.answer, kept)
    one.run()
    np.testing.assert_array_equal(one.answer, kept)
    assert not np.array_equal(other.answer, kept)


def test_a_seat_outlives_the_engine_it_came_from() -> None:
    for variant in VARIANTS:
        seat = load_engine(package(), variant).seat()
        assert seat is not None
        gc.collect()
        seat.example[0] = examples(1)[0]
        seat.run()
        expected = load_engine(package(), variant).answers(examples(1))
        np.testing.assert_allclose(seat.answer, expected, rtol=1e-4, atol=1e-5)


def test_a_model_predicts_from_eight_threads_at_once_as_from_one(engine: Engine) -> None:
    model, rows = Model(package(), engine), examples(64)
    right = [answer.probabilities for row in rows if isinstance(answer := model.predict(row), Prediction)]

    def ask(place: int) -> bool:
        order = [(place * 8 + step) % len(rows) for step in range(len(rows))]
        said = {step: model.predict(rows[step]) for step in order}
        return all(
            isinstance(each, Prediction) and np.array_equal(each.probabilities, right[step])
            for step, each in said.items()
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [EngineOptions(threads=2), EngineOptions(arena=False)])
def test_how_an_engine_may_use_the_device_changes_no_answer(variant: str, options: EngineOptions) -> None:
    expected = load_engine(package(), variant).answers(examples(5))
    engine = load_engine(package(), variant, options=options)
    np.testing.assert_allclose(engine.answers(examples(5)), expected, rtol=1e-4, atol=1e-5)


def test_a_provider_that_is_not_here_is_named_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"has no ImaginaryExecutionProvider here: choose of .*CPU"):
        load_engine(package(), "fp32", options=EngineOptions(providers=("ImaginaryExecutionProvider",)))


def test_a_model_takes_no_more_memory_than_it_is_given_and_says_so() -> None:
    tight = load_engine(package(), "fp32", options=EngineOptions(arena_bytes=256 * 1024))
    wide = load_engine(package(), "fp32", options=EngineOptions(arena_bytes=64 * 2**20))
    model, x = Model(package(), tight), examples(5000)
    assert isinstance(model.predict(x[0]), Prediction)
    with pytest.raises(UmbelError, match=r"digits 2 \(fp32\) could not compute an answer .* fewer examples"):
        model.predict(x)
    for ask in (model.run, model.predict_proba, lambda x: model.explain(x, method="occlusion")):
        with pytest.raises(UmbelError, match=r"digits 2 \(fp32\) could not compute an answer"):
            ask(x)
    assert isinstance(model.predict(x[0]), Prediction)
    unlimited = load_engine(package(), "fp32")
    np.testing.assert_array_equal(wide.answers(x), unlimited.answers(x))


def test_options_that_make_no_sense_are_refused() -> None:
    for wrong in ({"threads": 0}, {"providers": ()}, {"arena_bytes": 0}, {"arena": False, "arena_bytes": 9}):
        with pytest.raises(UsageError):
            EngineOptions(**wrong)  # type: ignore[arg-type]
    for odd in ({"threads": 1.5}, {"threads": "2"}, {"threads": True}, {"arena_bytes": 1e9}):
        with pytest.raises(UsageError, match="give a whole number"):
            EngineOptions(**odd)  # type: ignore[arg-type]
    listed = EngineOptions(providers=["CPUExecutionProvider"])  # type: ignore[arg-type]
    assert hash(listed) == hash(EngineOptions())
    with pytest.raises(UsageError, match="providers is one text"):
        EngineOptions(providers="CPUExecutionProvider")  # type: ignore[arg-type]


def test_engines_agree_on_the_label(engine: Engine) -> None:
    x = packages.digits().held_out.x
    reference = load_engine(package(), "fp32").answers(x).argmax(axis=1)
    assert (engine.answers(x).argmax(axis=1) == reference).mean() >= 0.995


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
        for made, wanted in zip(outputs.values(), expected.values(), strict=True):
            assert made.shape == wanted.shape
            np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_the_variants_of_a_later_version_have_its_parameters() -> None:
    x = packages.digits().held_out.x
    for variant in VARIANTS:
        labels = load_engine(package(), variant).answers(x).argmax(axis=1)
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
        "from umbel._releases.package import load_package\n"
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
