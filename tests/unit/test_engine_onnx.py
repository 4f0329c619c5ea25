"""The ONNX engine runs each variant as packed, and golden vectors catch one that does not."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy

from model_packages import digits, first, opened, release, resigned
from umbel._releases.package import choose_variant, verify_golden
from umbel.engines import load_engine
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.package import GOLDEN, PARAMETERS


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_a_variant_gives_its_golden_outputs(variant: str) -> None:
    package = opened(release(2))
    engine = load_engine(package, variant)
    verify_golden(package, engine)
    golden = package.tensors(GOLDEN)
    outputs = engine.outputs(golden["x"])
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(outputs["probabilities"], engine.answers(golden["x"]))
    np.testing.assert_array_equal(outputs["logits"].argmax(1), golden[f"{variant}.logits"].argmax(1))


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_a_batch_gives_what_its_examples_give_alone(variant: str) -> None:
    engine = load_engine(opened(release(2)), variant)
    x = digits().held_out.x[:9]
    alone = np.concatenate([engine.answers(x[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(engine.answers(x), alone, atol=1e-6)


def test_the_engine_runs_the_parameters_of_its_package() -> None:
    # Both packages hold the same infer.onnx: only the external parameters differ.
    before, after = opened(first()), opened(release(2))
    assert before.file("infer.onnx") == after.file("infer.onnx")
    x, y = digits().held_out[:2]
    accuracy = [
        float((load_engine(package, "fp32").answers(x).argmax(1) == y).mean()) for package in (before, after)
    ]
    assert accuracy[0] < 0.3
    assert accuracy[1] > 0.94


def test_threads_share_an_engine() -> None:
    engine = load_engine(opened(release(2)), "fp32")
    x = digits().held_out.x[:64]
    expected = engine.answers(x)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: engine.answers(x), range(40)):
            np.testing.assert_array_equal(result, expected)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(UsageError, match=r"no variant 'int4': choose fp32, int8"):
        load_engine(opened(first()), "int4")


def test_a_variant_for_an_unknown_engine_is_refused() -> None:
    data = resigned(first(), lambda body: body["variants"]["fp32"].update(engine="warp"))
    with pytest.raises(PackageError, match="'warp': update umbel"):
        load_engine(opened(data), "fp32")


def test_a_graph_that_onnxruntime_cannot_open_is_refused() -> None:
    data = resigned(first(), lambda body: None, **{"infer.onnx": b"no graph"})
    with pytest.raises(PackageError, match=r"cannot run infer\.onnx"):
        load_engine(opened(data), "fp32")


def test_a_package_whose_parameters_moved_away_from_its_golden_vectors_is_refused() -> None:
    arrays = opened(release(2)).tensors(PARAMETERS)
    arrays["hidden.bias"] = arrays["hidden.bias"] + np.float32(0.01)
    data = resigned(release(2), lambda body: None, **{PARAMETERS: safetensors.numpy.save(arrays)})
    with pytest.raises(PackageError, match=r"\(fp32\) misses its golden"):
        choose_variant(opened(data))


def test_an_int8_graph_of_other_parameters_is_refused() -> None:
    data = resigned(
        release(2), lambda body: None, **{"int8.safetensors": opened(first()).file("int8.safetensors")}
    )
    with pytest.raises(PackageError, match=r"\(int8\) misses its golden"):
        choose_variant(opened(data))


def test_golden_vectors_that_are_not_numbers_are_missed() -> None:
    golden = opened(release(2)).tensors(GOLDEN)
    golden["fp32.logits"][3, 3] = np.nan
    data = resigned(release(2), lambda body: None, **{GOLDEN: safetensors.numpy.save(golden)})
    package = opened(data)
    with pytest.raises(PackageError, match="misses its golden logits"):
        verify_golden(package, load_engine(package, "fp32"))


def test_a_device_predicts_and_trains_without_torch_onnx_or_scikit_learn() -> None:
    script = (
        "import sys, json, umbel._releases.shelf, umbel._predict.model, umbel.engines.onnx, umbel.train.onnx\n"
        "print(json.dumps([m for m in ('torch', 'onnx', 'sklearn', 'grpc', 'flwr', 'umbel_models') "
        "if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == []
