"""The table of a smaller model: what it says is what a device will see."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from model_packages import RELEASE, digits, first, opened, release
from umbel._data.examples import Examples
from umbel.train.local import score_on
from umbel_models.adapt import freeze, head
from umbel_models.compare import Figures, Rounds, measure, round_figures, section, table, with_module
from umbel_models.pack import build
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.package import PARAMETERS, Package
from umbel_proto.privacy.plan import plan


@pytest.fixture(scope="module")
def packages() -> dict[str, Package]:
    assert DIGITS.committed is not None
    trained = opened(release(2)).tensors(PARAMETERS)
    module = DIGITS.module()
    module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in trained.items()})
    lite = build(with_module(DIGITS, module, graphs=DIGITS.committed()), key=RELEASE, lite=True)
    return {"untrained": opened(first()), "trained": opened(lite)}


@pytest.fixture(scope="module")
def figures(packages: dict[str, Package]) -> dict[str, Figures]:
    return measure(packages, digits(), Rounds())


def test_accuracy_is_what_the_devices_engine_gets_right(
    packages: dict[str, Package], figures: dict[str, Figures]
) -> None:
    held_out = digits().held_out
    for name, package in packages.items():
        device = score_on(package, Examples(held_out.x, held_out.y))
        assert figures[name]["accuracy, fp32"] == device(package.parameters())
    assert figures["trained"]["accuracy, int8"] > 0.95 > figures["untrained"]["accuracy, int8"]
    assert figures["trained"]["accuracy, tflite"] == figures["trained"]["accuracy, fp32"]


def test_bytes_are_those_of_the_graph_and_its_weights(
    packages: dict[str, Package], figures: dict[str, Figures]
) -> None:
    package = packages["trained"]
    parts = ("infer.onnx", "params.safetensors")
    assert figures["trained"]["bytes, fp32"] == sum(len(package.file(part)) for part in parts)
    assert figures["trained"]["bytes, int8"] < 0.6 * figures["trained"]["bytes, fp32"]


def test_every_form_is_timed_for_every_model(figures: dict[str, Figures]) -> None:
    times = [value for of in figures.values() for name, value in of.items() if name.startswith("us ")]
    assert len(times) == 2 + 4
    assert all(0.1 < value < 1e5 for value in times)


def test_noise_is_the_planners_for_as_many_parameters_as_travel(packages: dict[str, Package]) -> None:
    rounds = Rounds(devices=500, participations=5, epsilon=4.0, delta=1e-7)
    found = round_figures(packages["trained"], rounds)
    planned = plan(dim=13_706, clip=1.0, devices=500, honest=500, participations=5, epsilon=4.0, delta=1e-7)
    assert found["parameters sent in a round"] == found["parameters"] == 13_706
    assert found["DP error of a coordinate, clips"] == planned.error
    assert found["bytes sent in a round"] == planned.encoding.padded * planned.encoding.bits / 8


def test_a_quarter_of_the_parameters_takes_half_of_the_noise(packages: dict[str, Package]) -> None:
    whole = packages["trained"]
    few = tuple(
        parameter for parameter in whole.manifest.parameters if not parameter.name.startswith("hidden")
    )
    rest = tuple(parameter for parameter in whole.manifest.parameters if parameter.name.startswith("hidden"))
    smaller = replace(whole, manifest=replace(whole.manifest, parameters=few, frozen=rest))
    pair = [round_figures(package, Rounds()) for package in (whole, smaller)]
    names = ("parameters sent in a round", "DP error of an update, clips", "parameters")
    share, noise, all_ = (pair[1][name] / pair[0][name] for name in names)
    assert share == pytest.approx(0.4, abs=0.01)
    assert noise == pytest.approx(math.sqrt(share), rel=0.02)
    assert all_ == 1


def test_a_task_with_another_network_trains_what_that_network_trains() -> None:
    torch.manual_seed(0)
    module = DIGITS.module()
    task = with_module(DIGITS, freeze(module, head(module)))
    assert task.trainable == ("output.weight", "output.bias")
    assert task.committed is None
    again = task.module()
    assert again is not task.module()
    assert all(value.requires_grad for value in again.parameters())
    assert torch.equal(again.output.weight, module.output.weight)
    assert with_module(DIGITS, nn.Linear(2, 2)).trainable == ("weight", "bias")


def test_the_table_shows_every_figure_and_the_last_model_as_a_share_of_the_first() -> None:
    figures = {"whole": {"accuracy, a": 0.9, "bytes, a": 4000.0}, "cut": {"accuracy, a": 0.45, "us, b": 1.5}}
    out = io.StringIO()
    Console(file=out, width=90).print(table(figures, title="net"))
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:5]
        for line in out.getvalue().splitlines()
        if "│" in line
    }
    assert [part.strip() for part in rows["accuracy, a"]] == ["0.900", "0.450", "0.50x"]
    assert [part.strip() for part in rows["bytes, a"]] == ["4,000", "", ""]
    assert [part.strip() for part in rows["us, b"]] == ["", "1.5", ""]


def test_a_section_of_the_card_holds_both_models() -> None:
    assert section({"bytes": 4.0, "us": 2.0}, {"bytes": 1.0}) == {
        "bytes": 1.0,
        "bytes, before": 4.0,
        "us, before": 2.0,
    }
