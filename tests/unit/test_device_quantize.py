"""A device makes the int8 form of what it has learned, with onnxruntime and numpy alone.

Laws: the same parameters and inputs give the package's own tensors; every weight is within half a level, every
range is covered, zero is exact; a mapping that was changed is refused or changes nothing silently.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_packages import digits, first, opened, release, resigned
from umbel._data.examples import Examples
from umbel._quantize.quantize import choose_quantized, quantize
from umbel.engines.onnx import OnnxEngine
from umbel_proto.errors import PackageError, UmbelError, UsageError
from umbel_proto.quantization import fill, parse_mapping

FLOATS = st.floats(-1e4, 1e4, width=32)
MAPPING: dict[str, Any] = {
    "format": 1,
    "activations": [{"scale": "a.scale", "zero_point": "a.zero"}],
    "weights": [{"source": "w", "quantized": "w.int8", "scale": "w.scale", "axis": 0}],
    "biases": [
        {"source": "b", "quantized": "b.int32", "scale": "b.scale", "input_scale": "a.scale",
         "weight_scale": "w.scale"}
    ],
    "floats": ["f"],
    "derived": [],
}  # fmt: skip


def values(w: Any = ((0.5, -1.0), (0.25, 0.0)), b: Any = (0.1, -0.2), f: Any = (1.0,)) -> dict[str, Any]:
    return {name: np.array(value, np.float32) for name, value in (("w", w), ("b", b), ("f", f))}


def test_the_parameters_of_a_package_give_its_own_int8_tensors_on_a_device() -> None:
    package = opened(release(2))
    tensors = quantize(package, package.parameters(), digits().calibration.x)
    expected = package.tensors("int8.safetensors")
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        assert (value.dtype, value.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_what_a_device_learned_is_quantized_with_its_own_inputs_and_stays_as_right() -> None:
    # The parameters are those of a trained model, the skeletons those of the package before training.
    before, learned = opened(first()), opened(release(2)).parameters()
    own = digits().train.x[:64]
    tensors = quantize(before, learned, own)
    x, y = digits().held_out[:2]
    accuracy = {
        name: float((OnnxEngine(before, name, weights).answers(x).argmax(1) == y).mean())
        for name, weights in (("fp32", before.split(learned)), ("int8", tensors))
    }
    assert accuracy["fp32"] > 0.94
    assert accuracy["int8"] >= accuracy["fp32"] - 0.005


def test_the_choice_after_learning_tells_its_numbers() -> None:
    package = opened(first())
    learned = opened(release(2)).parameters()
    tensors = quantize(package, learned, digits().train.x[:64])
    x, y = digits().held_out[:2]
    now = iter(range(10**9))
    choice = choose_quantized(package, learned, tensors, Examples(x, y), clock=lambda: float(next(now)))
    assert choice.variant == "fp32"  # by this clock both take a second
    assert set(choice.measured) == {"fp32", "int8"}
    assert choice.measured["fp32"].agreement == 1.0
    assert choice.measured["int8"].agreement > 0.98
    accuracy = choice.measured["fp32"].accuracy
    assert accuracy is not None
    assert accuracy > 0.94


def test_too_few_samples_to_judge_by_are_refused() -> None:
    package = opened(release(2))
    x = digits().held_out.x[:15]
    with pytest.raises(UsageError, match="15 samples are too few to judge int8 by: hold back at least 16"):
        choose_quantized(package, package.parameters(), {}, Examples(x, None))


def test_too_few_inputs_to_calibrate_with_are_refused() -> None:
    package = opened(release(2))
    with pytest.raises(UsageError, match="15 inputs: give at least 16"):
        quantize(package, package.parameters(), digits().calibration.x[:15])


def test_inputs_that_break_the_contract_are_refused() -> None:
    package = opened(release(2))
    with pytest.raises(UsageError):
        quantize(package, package.parameters(), digits().calibration.x + 100)


def test_parameters_that_are_not_finite_are_refused() -> None:
    package = opened(release(2))
    broken = package.parameters().copy()
    broken[5] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        quantize(package, broken, digits().calibration.x)


def test_a_model_without_an_int8_form_says_so() -> None:
    def without(body: dict[str, Any]) -> None:
        del body["graphs"]["calibration"], body["documents"]["quantization"]

    package = opened(resigned(release(2), without))
    with pytest.raises(UsageError, match="no calibration graph: it cannot be quantized here"):
        quantize(package, package.parameters(), digits().calibration.x)


@given(arrays(np.float32, (3, 4), elements=FLOATS))
def test_every_weight_is_within_half_a_level_of_its_channels_scale(w: Any) -> None:
    tensors = fill(MAPPING, values(w=w, b=np.zeros(3)), np.array([[-1, 1]], np.float32))
    levels, scale = tensors["w.int8"].astype(np.float64), tensors["w.scale"].astype(np.float64)
    assert np.abs(levels).max() <= 64
    smallest = np.finfo(np.float32).tiny
    error = np.abs(levels * scale[:, None] - w)
    assert (error <= (0.5 + 1e-4) * scale[:, None]).all() or (np.abs(w).max(axis=1) < 64 * smallest).any()
    # The greatest weight of a channel uses the whole range.
    used = np.abs(levels).max(axis=1)[np.abs(w).max(axis=1) >= 64 * smallest]
    assert (used == 64).all()


@given(FLOATS, FLOATS)
def test_every_range_is_covered_and_zero_is_exact(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    tensors = fill(MAPPING, values(), np.array([[low, high]], np.float32))
    scale, zero = float(tensors["a.scale"]), int(tensors["a.zero"])
    assert tensors["a.zero"].dtype == np.int8
    assert scale > 0
    reach = (1 + 1e-5) * scale  # rounding of the zero point costs up to half a level at each end
    assert scale * (-128 - zero) <= min(low, 0) + reach / 2
    assert scale * (127 - zero) >= max(high, 0) - reach / 2


@given(arrays(np.float32, (2,), elements=FLOATS), st.integers(-30, 30).map(lambda n: 2.0**n))
def test_a_bias_is_within_a_level_and_never_leaves_32_bits(b: Any, high: float) -> None:
    tensors = fill(MAPPING, values(b=b), np.array([[0, high]], np.float32))
    scale = tensors["b.scale"].astype(np.float64)
    np.testing.assert_array_equal(tensors["b.scale"], tensors["a.scale"] * tensors["w.scale"])
    # In float32 the product of two scales has 24 bits.
    allowed = 0.5 * scale * (1 + 1e-6) + 1e-7 * np.abs(b)
    assert (np.abs(tensors["b.int32"] * scale - b) <= allowed).all()


def test_floats_pass_as_they_are() -> None:
    tensors = fill(MAPPING, values(f=(3.25,)), np.array([[0, 1]], np.float32))
    assert tensors["f"].tolist() == [3.25]


@pytest.mark.parametrize("key", ["w", "b", "f"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(key: str, bad: float) -> None:
    given_values = values()
    given_values[key].reshape(-1)[0] = bad
    with pytest.raises(UsageError, match="not finite: train anew"):
        fill(MAPPING, given_values, np.array([[0, 1]], np.float32))
    with pytest.raises(UsageError, match="not finite: train anew"):
        fill(MAPPING, values(), np.array([[0, bad]], np.float32))


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    mapping: Any = copy.deepcopy(MAPPING)
    place = mapping
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return dict(mapping)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("more",), []),
        (("floats",), "f"),
        (("floats",), [3]),
        (("floats",), ["unknown"]),
        (("weights", 0, "source"), "unknown"),
        (("weights", 0, "axis"), 2),
        (("weights", 0, "axis"), -1),
        (("weights", 0, "axis"), True),
        (("weights", 0, "more"), "x"),
        (("weights", 0), []),
        (("biases", 0, "input_scale"), "unknown"),
        (("biases", 0, "weight_scale"), "a.scale"),
        (("activations",), []),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(path: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(PackageError, match=r"int8\.json does not fit the model"):
        fill(changed(path, value), values(), np.array([[0, 1]], np.float32))


@given(st.binary(max_size=60) | st.integers(0, 10**6).map(lambda n: _flipped(n)))
def test_bytes_that_are_no_mapping_are_refused_and_crash_nothing(raw: bytes) -> None:
    try:
        mapping = parse_mapping(raw)
        fill(mapping, values(), np.array([[0, 1]], np.float32))
    except UmbelError:
        pass


def _flipped(n: int) -> bytes:
    raw = bytearray(json.dumps(MAPPING).encode())
    raw[n % len(raw)] ^= 1 << (n // len(raw)) % 8
    return bytes(raw)


def test_a_device_quantizes_without_torch_onnx_or_the_workbench() -> None:
    script = (
        "import sys, json, umbel._quantize.quantize\n"
        "print(json.dumps([m for m in ('torch', 'onnx', 'umbel_models') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == []
