"""A model is quantized on its device, and what is faster and says the same is run, kept and told.

Laws: the forms are compared on samples that calibrated nothing; what was chosen runs at the next start, only with its
own package and only undamaged; a release with new parameters is made int8 again from the kept ranges, as if it had been
calibrated with the same; no input is kept or told.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import umbel
from model_packages import RELEASE, digits, opened, release, resigned
from regression_tasks import diabetes, patients
from umbel._predict.answer import Estimate
from umbel._predict.loaded import Loaded
from umbel._predict.model import Model
from umbel._predict.shadow import Candidate
from umbel._quantize.here import parts, quantize_here
from umbel._quantize.quantize import quantize
from umbel._quantize.report import reason
from umbel._releases.choice import Measured
from umbel._releases.follow import Follower
from umbel._releases.kept import Kept, keep, kept_engine
from umbel._releases.packages import QUANTIZED, Installed
from umbel._releases.shelf import Shelf
from umbel._telemetry.comparison import ComparisonWindow
from umbel._telemetry.window import PredictionWindow
from umbel.engines import load_engine
from umbel.engines.onnx import OnnxEngine
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.package import GOLDEN, Package

FAST_INT8 = (2.0, 1.0)
SLOW_INT8 = (1.0, 2.0)


def scripted(costs: tuple[float, ...], *, before: int = 0) -> Callable[[], float]:
    """A clock by which the forms take what they are said to: in turns of five calls each, as they are timed."""
    calls, now = itertools.count(), [0.0]

    def clock() -> float:
        number = next(calls) - before - 1  # the first call says when to end
        if number >= 0:
            now[0] += costs[number // 10 % len(costs)]
        return now[0]

    return clock


def samples(rows: int = 400) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return digits().train.x[:rows], digits().train.y[:rows]


def loaded(data: bytes | None = None, variant: str = "fp32") -> Loaded:
    package = opened(data or release(2))
    return Loaded(package, load_engine(package, variant))


def own_tensors(package: Package, rows: int = 400) -> dict[str, NDArray[Any]]:
    used, _ = parts(rows)
    return quantize(package, package.parameters(), samples(rows)[0][used])


# --- the choice


def test_a_faster_form_that_says_the_same_is_chosen_and_runs_with_what_was_calibrated_here() -> None:
    of = loaded()
    made = quantize_here(of, *samples(), clock=scripted(FAST_INT8, before=1))
    report = made.report
    assert report.choice == "int8"
    assert report.why == "int8 takes 0.50 of the time of fp32 and says the same."
    assert [form.name for form in report.forms] == ["fp32", "int8"]
    x = digits().held_out.x[:50]
    expected = OnnxEngine(of.package, "int8", own_tensors(of.package)).answers(x)
    np.testing.assert_array_equal(made.engine.answers(x), expected)


def test_a_slower_form_is_not_chosen_and_what_ran_goes_on() -> None:
    of = loaded()
    made = quantize_here(of, *samples(), clock=scripted(SLOW_INT8, before=1))
    assert made.engine is of.engine
    assert made.kept is None
    assert (
        made.report.why
        == "int8 takes 2.00 of the time of fp32, and at most 0.95 would be worth it: fp32 runs."
    )


def test_the_figures_are_of_the_samples_held_back() -> None:
    of, (x, y) = loaded(), samples(200)
    report = quantize_here(of, x, y).report
    used, held = parts(200)
    assert len(held) == report.held_back == 50
    assert sorted([*used, *held]) == list(range(200))
    tensors = quantize(of.package, of.package.parameters(), x[used])
    engines = {"fp32": of.engine, "int8": OnnxEngine(of.package, "int8", tensors)}
    labels = {name: engine.answers(x[held]).argmax(1) for name, engine in engines.items()}
    for form in report.forms:
        assert form.accuracy == (labels[form.name] == y[held]).mean()
        assert form.agreement == (labels[form.name] == labels["fp32"]).mean()
        assert form.latency_us > 0
    small, large = report.forms[1].bytes, report.forms[0].bytes
    assert small < 0.6 * large
    arrays = of.package.split(of.package.parameters())
    assert large == len(of.package.file("infer.onnx")) + len(of.package.file("params.safetensors"))
    assert sum(value.nbytes for value in arrays.values()) < large


def test_a_form_that_says_something_else_of_the_golden_inputs_is_not_chosen() -> None:
    # Calibrated with blank images alone, int8 clips everything that is not blank.
    blank = np.zeros((400, 1, 8, 8), np.float32)
    made = quantize_here(loaded(), blank, None, clock=scripted(FAST_INT8, before=1))
    assert made.report.choice == "fp32"
    assert "does not say the same as fp32 of the golden inputs" in made.report.why


def test_another_form_that_runs_is_compared_too_and_gives_way() -> None:
    of = loaded(variant="int8")
    made = quantize_here(of, *samples(), clock=scripted((3.0, 1.0, 2.0), before=1))
    assert [form.name for form in made.report.forms] == ["fp32", "int8", "int8 before"]
    assert made.report.choice == "int8"
    stays = quantize_here(of, *samples(), clock=scripted((3.0, 2.0, 1.0), before=1))
    assert stays.report.choice == "int8 before"
    assert stays.report.why == "int8 before is faster still."
    assert stays.engine is of.engine
    back = quantize_here(of, *samples(), clock=scripted((1.0, 2.0, 2.0), before=1))
    assert back.report.choice == "fp32"
    assert back.kept is not None
    assert (back.kept.variant, back.kept.own) == ("fp32", False)


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (
            Measured(1.0, agreement=0.98),
            "gives only 98.0% of the 100 samples the same label, and 99.5% are needed",
        ),
        (Measured(1.0, agreement=0.98, accuracy=0.9), "is right on 90.0% of the samples instead of 95.0%"),
        (Measured(1.0, difference=0.2), "its numbers differ by 20.0% of their spread"),
        (Measured(1.0, difference=0.01, error=1.1), "its error is 10.0% larger"),
    ],
)
def test_the_reason_is_said(shown: Measured, sentence: str) -> None:
    base = Measured(
        2.0, agreement=1.0, accuracy=None if shown.accuracy is None else 0.95, error=shown.error and 1.0
    )
    said = reason("int8", "fp32", "fp32", {"fp32": base, "int8": shown}, golden=True, held_back=100)
    assert sentence in said
    assert said.endswith(": fp32 runs.")


def test_a_report_prints_as_a_table() -> None:
    text = str(quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1)).report)
    assert text.splitlines()[0].split() == ["form", "bytes", "latency", "us", "agreement", "accuracy"]
    assert text.splitlines()[2].startswith("int8 *")
    assert text.endswith("Compared on 100 samples held back.")


def test_a_model_of_numbers_is_quantized_by_how_far_they_are_off() -> None:
    package = diabetes()
    data = patients().train
    model = Model(package, load_engine(package))
    report = model.quantize(data.x, data.y)
    assert all(form.agreement is None and form.error is not None for form in report.forms)
    assert model.quantize(data.x).forms[1].error is None


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (samples(31)[0], None, "31 samples are too few to quantize with: give at least 32"),
        (samples(40)[0] + 100, None, "over 16"),
        (samples(40)[0], samples(39)[1], "one label for each"),
        (samples(40)[0], samples(40)[1] + 5, r"0\.\.9"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(x: Any, y: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Model(opened(release(2)), load_engine(opened(release(2)))).quantize(x, y)


# --- what is kept


@dataclass
class Windows:
    """Telemetry that sends nothing."""

    open: dict[tuple[str, int, str, str], PredictionWindow] = field(default_factory=dict)

    def window(
        self, *, model: str, version: int, variant: str, engine: str, scope: object = None
    ) -> PredictionWindow:
        window = PredictionWindow(model=model, version=version, variant=variant, engine=engine, now_s=0.0)
        return self.open.setdefault((model, version, variant, engine), window)

    def counters(self, variant: str) -> dict[str, int]:
        taken = [window.take(0.0) for (*_, name, _), window in self.open.items() if name == variant]
        return {name: count for each in taken if each is not None for name, count in each.counters.items()}


@dataclass
class World:
    """A device's shelf, what follows it and what it tells."""

    root: Path
    windows: Windows = field(default_factory=Windows)

    @functools.cached_property
    def shelf(self) -> Shelf:
        return Shelf(self.root / "shelf", RELEASE.public)

    def install(self, data: bytes) -> Installed:
        return self.shelf.install(data, clock=itertools.count().__next__)

    def started(self) -> Model:
        """Return the model as a process finds it that has just begun."""
        return Follower(self.shelf, self.windows, clock=lambda: 0.0).model("digits", None)

    def quantize(self, model: Model, costs: tuple[float, ...] = FAST_INT8) -> None:
        of = model._loaded
        assert model._adopt is not None
        model._adopt(model, of, quantize_here(of, *samples(), clock=scripted(costs, before=1)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def answers(model: Model) -> NDArray[np.float32]:
    return model.predict_proba(digits().held_out.x[:60])


def test_what_was_chosen_runs_at_once_and_at_the_next_start(world: World) -> None:
    installed = world.install(release(2))
    model = world.started()
    world.quantize(model)
    package = opened(release(2))
    expected = OnnxEngine(package, "int8", own_tensors(package)).answers(digits().held_out.x[:60])
    for each in (model, world.started()):
        assert each.variant == "int8"
        np.testing.assert_array_equal(answers(each), expected)
    assert not np.array_equal(answers(model), load_engine(package, "int8").answers(digits().held_out.x[:60]))
    follower = Follower(world.shelf, world.windows, clock=lambda: 0.0)
    assert follower.model("digits", "fp32").variant == "fp32"  # who asks for a form gets it
    assert (world.shelf.folder(installed.sha256) / QUANTIZED).stat().st_mode & 0o077 == 0


def test_the_public_call_keeps_and_tells_too(world: World) -> None:
    world.install(release(2))
    model = world.started()
    report = model.quantize(*samples())
    assert isinstance(report, umbel.Quantization)
    assert model.variant == report.choice
    assert world.started().variant == report.choice


def test_telemetry_hears_figures_that_add_up(world: World) -> None:
    world.install(release(2))
    world.quantize(world.started())
    float_form, int8 = world.windows.counters("fp32"), world.windows.counters("int8")
    assert float_form == {
        "quantize.measured": 1, "quantize.latency_ns": 2_000_000_000, "quantize.compared": 100, "quantize.agreed": 100,
    }  # fmt: skip
    assert int8.pop("quantize.agreed") >= 99
    assert int8 == {
        "quantize.measured": 1, "quantize.latency_ns": 1_000_000_000, "quantize.compared": 100, "quantize.chosen": 1,
    }  # fmt: skip


def test_predictions_are_counted_with_the_form_that_made_them(world: World) -> None:
    world.install(release(2))
    model = world.started()
    world.quantize(model)
    world.windows.counters("int8")
    model.predict(digits().held_out.x[0])
    assert world.windows.counters("int8")["predictions"] == 1
    assert "predictions" not in world.windows.counters("fp32")


def test_no_sample_is_in_what_is_kept(world: World) -> None:
    installed = world.install(release(2))
    world.quantize(world.started())
    raw = (world.shelf.folder(installed.sha256) / QUANTIZED).read_bytes()
    assert not any(row.tobytes()[:64] in raw for row in samples()[0])


def test_a_bit_flipped_on_the_disk_is_noticed_and_the_installed_form_runs(
    world: World, tmp_path: Path
) -> None:
    package = opened(release(2))
    made = quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1))
    assert made.kept is not None
    raw = made.kept.to_bytes()
    assert Kept.from_bytes(raw).tensors.keys() == made.kept.tensors.keys()
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(raw), 200).tolist():
        changed = bytearray(raw)
        changed[at] ^= 1 << int(rng.integers(8))
        (tmp_path / QUANTIZED).write_bytes(bytes(changed))
        assert kept_engine(package, "fp32", tmp_path, None) is None
    for size in (0, 10, 36, len(raw) // 2, len(raw) - 1):
        with pytest.raises(PackageError, match="quantize the model again"):
            Kept.from_bytes(raw[:size])


def test_what_was_made_of_another_package_is_not_run(tmp_path: Path) -> None:
    made = quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1))
    assert made.kept is not None
    keep(tmp_path, made.kept)
    assert kept_engine(opened(release(2)), "fp32", tmp_path, None) is not None
    other = opened(resigned(release(2), lambda body: body.update(version=9)))
    assert kept_engine(other, "fp32", tmp_path, None) is None


def test_what_says_something_else_of_the_golden_inputs_now_is_not_run(tmp_path: Path) -> None:
    package = opened(release(2))
    made = quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1))
    assert made.kept is not None
    blank = quantize(package, package.parameters(), np.zeros((40, 1, 8, 8), np.float32))
    keep(tmp_path, replace(made.kept, tensors=blank))
    assert kept_engine(package, "fp32", tmp_path, None) is None


def test_a_newer_version_that_came_meanwhile_is_not_replaced(world: World) -> None:
    world.install(release(2))
    model = world.started()
    before = model._loaded
    newer = loaded(release(3))
    model._replace(newer)
    made = quantize_here(before, *samples(), clock=scripted(FAST_INT8, before=1))
    assert model._adopt is not None
    model._adopt(model, before, made)
    assert model._loaded is newer


# --- a release with new parameters


def test_new_parameters_are_made_int8_again_from_the_kept_ranges(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    made = quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1))
    assert made.kept is not None
    keep(before, made.kept)
    package = opened(
        resigned(release(3), lambda body: body.update(version=4))
    )  # the same parameters: so the tensors must be those that calibrating anew would give
    engine = kept_engine(package, "fp32", after, before, clock=scripted(FAST_INT8))
    assert engine is not None
    assert engine.variant == "int8"
    x = digits().held_out.x[:60]
    np.testing.assert_array_equal(
        engine.answers(x), OnnxEngine(package, "int8", own_tensors(package)).answers(x)
    )
    again = kept_engine(package, "fp32", after, None)
    assert again is not None
    np.testing.assert_array_equal(again.answers(x), engine.answers(x))


def test_where_the_new_form_is_slower_the_installed_one_runs_and_the_ranges_go_on(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    made = quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1))
    assert made.kept is not None
    keep(folders[0], made.kept)
    second, third = (opened(resigned(release(2), lambda body, n=n: body.update(version=n))) for n in (5, 6))
    assert kept_engine(second, "fp32", folders[1], folders[0], clock=scripted(SLOW_INT8)) is None
    engine = kept_engine(third, "fp32", folders[2], folders[1], clock=scripted(FAST_INT8))
    assert engine is not None
    assert engine.variant == "int8"


def test_parameters_that_the_ranges_do_not_fit_are_left_as_released(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    made = quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1))
    assert made.kept is not None
    keep(before, replace(made.kept, ranges=np.full_like(made.kept.ranges, 1e-3)))
    package = opened(resigned(release(2), lambda body: body.update(version=7)))
    assert kept_engine(package, "fp32", after, before, clock=scripted(FAST_INT8)) is None


def test_ranges_of_other_graphs_are_not_used(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    made = quantize_here(loaded(), *samples(), clock=scripted(FAST_INT8, before=1))
    assert made.kept is not None
    package = opened(resigned(release(2), lambda body: body.update(version=8)))
    # Everything fits but what says that the graphs are the same.
    for kept, of in ((made.kept, diabetes()), (replace(made.kept, graphs="0" * 64), package)):
        keep(before, kept)
        assert kept_engine(of, "fp32", after, before, clock=scripted(FAST_INT8)) is None
        assert not (after / QUANTIZED).exists()


def test_numbers_agree_within_a_share_of_how_far_they_spread() -> None:
    package = diabetes()
    golden = package.tensors(GOLDEN)
    engine = load_engine(package)
    spread = golden[f"{engine.variant}.{package.manifest.answer}"].std(axis=0, dtype=np.float64)
    x = golden["x"][0]
    right = engine.answers(x[np.newaxis].astype(np.float32))[0]
    for apart, agrees in [(0.0, 1), (0.09, 1), (0.11, 0), (np.nan, 0)]:
        window = ComparisonWindow(model="d", version=3, variant="fp32", engine="onnx", now_s=0.0)
        asked = Candidate(package, engine, window, within=0.1)
        asked.compare(x, Estimate((right + apart * spread).astype(np.float32), 2))
        told = window.take(1.0)
        assert told is not None
        assert told.counters["shadow.agreed"] == agrees
        assert [each.name for each in told.histograms] == ["shadow.latency_us"]
