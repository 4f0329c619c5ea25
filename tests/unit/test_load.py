"""A model from a local file, without a fleet.

Laws: a package answers as it does on an enrolled device, and one that is damaged or computes something else is never
loaded, key or no key; a bare graph gives what its runtime gives, and nothing that it does not say is made up.
"""

from __future__ import annotations

import copy
import datetime
import functools
import json
import multiprocessing
import pickle
import random
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray
from onnx import TensorProto, helper

import umbel
from model_packages import RELEASE, digits, first, opened, release, resigned
from umbel._predict.model import Estimate, Model, Prediction
from umbel.cli import app
from umbel.engines import load_engine
from umbel_models import tflite
from umbel_models.quantize import embed
from umbel_proto.archive import read_archive, write_archive
from umbel_proto.errors import PackageError, UmbelError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.package import GOLDEN

F, INT, U8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
NAMES = [str(number) for number in range(10)]


def graph(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **values: Any) -> bytes:
    """A graph of a few operators; inputs and outputs as name=(type, shape)."""
    ends = [
        [helper.make_tensor_value_info(name, *of) for name, of in side.items()] for side in (inputs, outputs)
    ]
    held = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    made = helper.make_graph(nodes, "g", *ends, initializer=held)
    return helper.make_model(
        made, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]
    ).SerializeToString()


def linear(batch: int | str = "batch") -> bytes:
    """Twice three numbers, and one more: y = 2 x + 1."""
    return graph(
        [
            helper.make_node("Mul", ["x", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "one"], ["y"]),
        ],
        {"x": (F, [batch, 3])},
        {"y": (F, [batch, 3])},
        two=np.float32(2),
        one=np.float32(1),
    )


@functools.cache
def whole() -> bytes:
    """The trained digits graph with its weights inside: x -> probabilities, logits."""
    package = opened(release(2))
    return embed(package.file("infer.onnx"), package.split(package.parameters())).SerializeToString()


@functools.cache
def lite() -> bytes:
    return tflite.convert(whole(), batch=None)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def saved(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return saved


Save = Callable[[str, bytes], Path]


def x(rows: int = 20) -> NDArray[np.float32]:
    return digits().held_out.x[:rows]


def expected(rows: int = 20) -> NDArray[np.float32]:
    return load_engine(opened(release(2))).answers(x(rows))


# --- packages


PEM = Ed25519PublicKey.from_public_bytes(RELEASE.public.raw).public_bytes(
    Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
)


@pytest.mark.parametrize("content", [RELEASE.public.raw, PEM], ids=["raw", "pem"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_package_with_its_key_is_verified_and_answers_as_on_a_device(
    save: Save, as_file: bool, content: bytes
) -> None:
    key = save("release.pub", content) if as_file else content
    model = umbel.load(save("digits.umbel", release(2)), release_key=key)
    assert isinstance(model, Model)
    assert model.verified
    assert (model.name, model.version, model.variant) == ("digits", 2, "fp32")
    np.testing.assert_array_equal(model.predict_proba(x()), expected())
    np.testing.assert_array_equal(model.run(x())["probabilities"], expected())
    assert [spec.name for spec in (*model.inputs, *model.outputs)] == ["x", "probabilities", "logits"]
    assert repr(model) == "Model('digits', version=2, variant='fp32', engine='onnx', verified=True)"


def test_without_a_key_the_model_works_and_says_that_nobody_checked_who_made_it(save: Save) -> None:
    file = save("digits.umbel", release(2))
    with pytest.warns(umbel.UnverifiedPackageWarning, match="nobody checked who made it") as said:
        model = umbel.load(file)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert not model.verified
    assert "verified=False" in repr(model)
    np.testing.assert_array_equal(model.predict_proba(x()), expected())


def test_a_package_of_another_key_is_refused(save: Save) -> None:
    other = SigningKey.generate().public.raw
    with pytest.raises(PackageError, match="not signed by this fleet's release key"):
        umbel.load(save("digits.umbel", release(2)), release_key=other)


@pytest.mark.filterwarnings("ignore::umbel.UnverifiedPackageWarning")
def test_a_file_that_holds_no_public_key_is_named(save: Save) -> None:
    private = save("release.key", RELEASE.to_pem())
    with pytest.raises(
        UsageError,
        match=r"release\.key is no public release key, such as a fleet's release\.pub: It is not a public key in PEM",
    ):
        umbel.load(save("digits.umbel", release(2)), release_key=private)
    with pytest.raises(UsageError, match=r"short\.pub is no public release key.* has 32 bytes, this one 31"):
        umbel.load(save("digits.umbel", release(2)), release_key=save("short.pub", bytes(31)))


def test_a_damaged_package_is_refused_without_a_key_too(save: Save) -> None:
    data = release(2)
    rng = np.random.default_rng(1)
    where = data.index(b"manifest.sig")
    signature = range(where, where + 12 + 64)  # nobody looks at it without a key
    for at in sorted(set(rng.integers(0, len(data), 60).tolist()) - set(signature)):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(PackageError):
            umbel.load(save("digits.umbel", bytes(changed)))
    with pytest.raises(PackageError):
        umbel.load(save("digits.umbel", data[: len(data) // 2]))


@pytest.mark.filterwarnings("ignore::umbel.UnverifiedPackageWarning")
def test_a_file_exchanged_in_a_whole_archive_is_refused_without_a_key_too(save: Save) -> None:
    files = {name: bytes(view) for name, view in read_archive(release(2)).items()}
    files["params.safetensors"] = opened(first()).file("params.safetensors")
    with pytest.raises(PackageError, match=r"params\.safetensors is not what its manifest says"):
        umbel.load(save("digits.umbel", write_archive(files)))


@pytest.mark.filterwarnings("ignore::umbel.UnverifiedPackageWarning")
def test_a_package_that_computes_something_else_here_is_refused_without_a_key_too(save: Save) -> None:
    other = resigned(release(2), lambda body: None, **{GOLDEN: opened(first()).file(GOLDEN)})
    with pytest.raises(PackageError, match="misses its golden"):
        umbel.load(save("digits.umbel", other))


@pytest.mark.parametrize(
    "given", [{"labels": NAMES}, {"output": "logits"}, {"logits": True}, {"decision_threshold": 0.5}]
)
def test_what_a_package_says_itself_is_not_taken_from_others(save: Save, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="names its labels"):
        umbel.load(save("digits.umbel", release(2)), **given)


# --- bare graphs


@pytest.mark.parametrize(("name", "data"), [("net.onnx", whole), ("net.tflite", lite)])
def test_a_bare_classifier_answers_as_the_package_it_is_from(
    save: Save, name: str, data: Callable[[], bytes]
) -> None:
    model = umbel.load(save(name, data()), labels=NAMES, decision_threshold=0.8)
    assert model.kind == "classification"
    assert model.engine == name.partition(".")[2]
    assert not model.verified
    np.testing.assert_allclose(model.predict_proba(x()), expected(), atol=1e-5)
    np.testing.assert_allclose(model.run(x()[0])["probabilities"], expected(1), atol=1e-5)
    said = model.predict(x())
    assert isinstance(said, list)
    assert [each.label for each in said] == expected().argmax(1).tolist()
    for each, row in zip(said, expected(), strict=True):
        assert each.name == NAMES[each.label]
        assert each.confidence == pytest.approx(row.max(), abs=1e-5)
        assert each.decision == ("automatic" if each.confidence >= 0.8 else "review")
        assert each.model_version == 0
    assert len({each.id for each in said}) == len(said)
    alone = model.predict(x()[0].tolist())
    assert isinstance(alone, Prediction)
    assert alone.label == said[0].label


@pytest.mark.parametrize(("name", "data"), [("net.onnx", whole), ("net.tflite", lite)])
def test_eight_threads_get_what_one_gets(save: Save, name: str, data: Callable[[], bytes]) -> None:
    model = umbel.load(save(name, data()), labels=NAMES)
    right = model.predict_proba(x(64))

    def ask(number: int) -> bool:
        rows = range(number % 7, 64, 1 + number % 5)
        return bool(np.allclose(model.predict_proba(x(64)[list(rows)]), right[list(rows)], atol=1e-5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(64)))


@pytest.mark.parametrize(
    ("name", "data", "given"),
    [
        ("net.onnx", whole, {"labels": NAMES}),
        ("net.tflite", lite, {"labels": NAMES}),
        ("digits.umbel", lambda: release(2), {"release_key": RELEASE.public.raw}),
    ],
)
def test_the_engine_uses_the_machine_as_it_is_told(
    save: Save, name: str, data: Callable[[], bytes], given: dict[str, Any]
) -> None:
    file = save(name, data())
    two = umbel.load(file, engine=umbel.EngineOptions(threads=2, arena=False), **given)
    np.testing.assert_allclose(two.predict_proba(x()), expected(), atol=1e-5)
    if not name.endswith(".tflite"):
        with pytest.raises(UsageError, match="has no NoSuchProvider here"):
            umbel.load(file, engine=umbel.EngineOptions(providers=("NoSuchProvider",)), **given)


def test_logits_are_told_apart_from_probabilities(save: Save) -> None:
    file = save("net.onnx", whole())
    as_logits = umbel.load(file, labels=NAMES, output="logits", logits=True)
    np.testing.assert_allclose(as_logits.predict_proba(x()), expected(), atol=1e-5)
    with pytest.raises(UsageError, match="holds no probabilities: if it holds logits, load with logits=True"):
        umbel.load(file, labels=NAMES, output="logits").predict(x())


@pytest.mark.parametrize("given", [np.nan, np.inf, 3e38])
def test_answers_that_are_not_finite_are_refused(save: Save, given: float) -> None:
    """The likeliest of three that are no numbers would be the first, with a confidence of NaN."""
    sentence = "Output 'y' of line is not finite: look in the input for NaN"
    numbers = umbel.load(save("line.onnx", linear()))
    sorts = umbel.load(save("line.onnx", linear()), labels=["a", "b", "c"], logits=True)
    asked: list[Callable[[object], object]] = [numbers.estimate, numbers.explain]
    asked += [sorts.predict, sorts.predict_proba, sorts.explain]
    for ask in asked:
        with pytest.raises(UsageError, match=sentence):
            ask([[1, 2, 3], [1, given, 3]])
    assert not np.isfinite(numbers.run([1, given, 3])["y"]).all()  # Who wants the numbers has them.


def test_a_logit_may_rule_a_class_out(save: Save) -> None:
    sorts = umbel.load(save("line.onnx", linear()), labels=["a", "b", "c"], logits=True)
    assert sorts.predict_proba([2, -np.inf, 2]).tolist() == [0.5, 0, 0.5]


def test_a_graph_of_numbers_gives_them(save: Save) -> None:
    model = umbel.load(save("line.onnx", linear()))
    assert (model.kind, model.labels, model.name) == ("regression", (), "line")
    one, many = model.estimate([1, 2, 3]), model.estimate(np.ones((2, 3)))
    assert isinstance(one, Estimate)
    assert one.values.tolist() == [3, 5, 7]
    assert isinstance(many, list)
    assert [each.values.tolist() for each in many] == [[3, 3, 3]] * 2
    assert model.run([1.0, 2.0, 3.0])["y"].tolist() == [[3, 5, 7]]
    assert repr(model) == "Graph('line', engine='onnx', inputs=[x: float32 (batch, 3)], verified=False)"
    with pytest.raises(UsageError, match="loaded without labels"):
        model.predict([1, 2, 3])


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_a_graph_of_a_fixed_batch_takes_any_number(save: Save, size: int, rows: int) -> None:
    model = umbel.load(save("line.onnx", linear(size)))
    given = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    np.testing.assert_array_equal(model.run(given)["y"], 2 * given + 1)


def test_several_inputs_come_by_name_each_in_its_own_type(save: Save) -> None:
    nodes = [
        helper.make_node("Cast", ["count"], ["number"], to=F),
        helper.make_node("Mul", ["signal", "number"], ["scaled"]),
        helper.make_node("Identity", ["count"], ["same"]),
    ]
    data = graph(
        nodes,
        {"signal": (F, ["n", 2]), "count": (INT, ["n", 1])},
        {"scaled": (F, ["n", 2]), "same": (INT, ["n", 1])},
    )
    model = umbel.load(save("two.onnx", data))
    out = model.run({"signal": np.ones((2, 2)), "count": np.array([[3], [4]], np.uint8)})
    assert out["scaled"].tolist() == [[3, 3], [4, 4]]
    assert out["same"].dtype == np.int64
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [
        ("signal", "float32", ("n", 2)),
        ("count", "int64", ("n", 1)),
    ]
    for wrong, sentence in (
        (np.ones((1, 2)), "takes several inputs: give a dictionary with signal, count"),
        ({"signal": np.ones((1, 2))}, "takes signal, count: give each of them"),
        ({"signal": np.ones((1, 2)), "count": np.ones((1, 1))}, "holds float64: give int64"),
        (
            {"signal": np.ones((2, 2)), "count": np.ones((3, 1), int)},
            "cannot compute with inputs of these shapes",
        ),
    ):
        with pytest.raises(UsageError, match=sentence):
            model.run(wrong)
    both = {"signal": np.ones((1, 2)), "count": np.ones((1, 1), int)}
    with pytest.raises(UsageError, match=r"several outputs \(scaled, same\): load it with output="):
        model.estimate(both)
    with pytest.raises(UsageError, match="takes several inputs: only a graph of one is explained"):
        model.explain(both)
    with pytest.raises(UsageError, match="takes several inputs: only a graph of one is quantized"):
        model.quantize(both)


def test_numbers_beyond_an_inputs_type_are_refused_and_not_wrapped(save: Save) -> None:
    data = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": (U8, ["n", 1])}, {"y": (U8, ["n", 1])})
    model = umbel.load(save("bytes.onnx", data))
    assert model.run([[255]])["y"].tolist() == [[255]]
    with pytest.raises(UsageError, match="beyond uint8"):
        model.run([[256]])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.ones(4), r"shape \(4,\): give one example of shape \(3,\), or a batch"),
        (np.ones((0, 3)), "a batch of no example"),
        (np.ones((2, 3, 1)), "give one example"),
        ([[1, 2, 3], [1, 2]], "rows have different lengths"),
        (["a", "b", "c"], "give float32"),
        (None, "give float32"),
        ({"z": [1, 2, 3]}, "takes x: give each of them, and nothing else"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(save: Save, given: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        umbel.load(save("line.onnx", linear())).run(given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"labels": ["only"]}, "two or more"),
        ({"labels": "abc"}, "labels is a str: give a list of names"),
        ({"labels": b"abc"}, "labels is a bytes: give a list of names"),
        ({"labels": {0: "a", 1: "b", 2: "c"}}, "labels is a dict: .* each class, in the order of its output"),
        ({"labels": {"a", "b", "c"}}, "labels is a set: give a list of names"),
        ({"labels": 3}, "labels is a int: give a list of names"),
        ({"labels": np.array(3)}, "labels is a ndarray: give a list of names"),
        ({"labels": ["a", "b"]}, "No output of the graph can score 2 labels .*y: float32 .batch, 3"),
        ({"labels": ["a", "b", "a"]}, "The label 'a' is given 2 times: give each class a name of its own"),
        ({"output": "z"}, "no output 'z': choose one of y"),
        ({"decision_threshold": 1.5}, r"threshold is 1\.5: give a number in 0\.\.1"),
        ({"decision_threshold": "0.5"}, r"threshold is '0\.5': give a number in 0\.\.1"),
        ({"decision_threshold": True}, "threshold is True: give a number"),
        ({"decision_threshold": float("nan")}, "threshold is nan: give a number"),
        ({"engine": "onnx"}, r"engine is 'onnx': give EngineOptions"),
        ({"release_key": b"k" * 32}, "no signature and no variants"),
        ({"variant": "int8"}, "no signature and no variants"),
    ],
)
def test_what_a_bare_graph_cannot_be_is_refused(save: Save, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        umbel.load(save("line.onnx", linear()), **given)


@pytest.mark.parametrize("labels", [NAMES, np.array(NAMES), range(10), iter(NAMES)])
def test_names_of_classes_come_in_anything_that_holds_some_and_are_text(save: Save, labels: Any) -> None:
    said = umbel.load(save("net.onnx", whole()), labels=labels).predict(x(1)[0])
    assert isinstance(said, Prediction)
    assert type(said.name) is str
    assert said.name == str(expected(1)[0].argmax())


@pytest.mark.parametrize("name", ["net.onnx", "net.tflite"])
@pytest.mark.parametrize("data", [b"", b"not a model", b"\0" * 1000])
def test_a_file_that_is_no_model_is_one_sentence(save: Save, name: str, data: bytes) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        umbel.load(save(name, data))


def test_a_file_that_onnxruntime_cannot_even_say_what_is_wrong_with_prints_nothing(
    save: Save, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its error held a name that is no text, and it told of another try on the standard output, among the answers."""
    broken = linear().replace(b"Mul", b"M\xf4l")
    with pytest.raises(UsageError, match="cannot open"):
        umbel.load(save("net.onnx", broken))
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntime_cannot_compute_is_said_once_and_not_printed_beside_it(
    save: Save, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Mul", ["a", "b"], ["y"])]
    product = graph(nodes, {"a": (F, ["n", 2]), "b": (F, ["n", 2])}, {"y": (F, ["n", 2])})
    with pytest.raises(UsageError, match="cannot compute with inputs of these shapes"):
        umbel.load(save("two.onnx", product)).run({"a": np.ones((2, 2)), "b": np.ones((3, 2))})
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_sent_to_another_process_says_to_load_it_there(save: Save) -> None:
    package = umbel.load(save("digits.umbel", release(2)), release_key=RELEASE.public.raw)
    for model in (package, umbel.load(save("net.onnx", whole()), labels=NAMES)):
        sentence = (
            f"^{type(model).__name__} {model.name} is not copied or sent .*: load it .* in each process"
        )
        for send in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match=sentence):
                send(model)
        with pytest.raises(UsageError, match=sentence):
            pickle.dumps(model.predict)


def test_a_graph_that_is_asked_nothing_is_refused(save: Save) -> None:
    alone = graph(
        [helper.make_node("Identity", ["one"], ["y"])], {}, {"y": (F, [1])}, one=np.ones(1, np.float32)
    )
    with pytest.raises(UsageError, match=r"net\.onnx has no input or no output that is an array of numbers"):
        umbel.load(save("net.onnx", alone))


DAMAGED = 300


def damaged(whole: bytes, seed: int) -> bytes:
    """A bit flipped somewhere or where its structure begins, or the end cut off."""
    source, data = random.Random(seed), bytearray(whole)
    place = source.randrange(len(data) if seed % 3 else 400)
    if seed % 3 == 2:
        del data[place:]
    else:
        data[place] ^= 1 << source.randrange(8)
    return bytes(data)


def asked(name: str, whole: bytes, x: NDArray[Any], folder: Path) -> list[str]:
    """What became of damaged files, in a process of its own: a runtime may take it along."""
    found = []
    for seed in range(DAMAGED):
        (folder / name).write_bytes(damaged(whole, seed))
        try:
            umbel.load(folder / name, labels=NAMES).predict(x)
        except UmbelError as exc:
            found.append(str(exc))
        else:
            found.append("")
    return found


@pytest.mark.parametrize(("name", "data"), [("net.onnx", whole), ("net.tflite", lite)])
def test_a_damaged_file_answers_or_is_one_sentence_and_takes_no_process_along(
    name: str, data: Callable[[], bytes], tmp_path: Path
) -> None:
    """Nothing in a bare file tells that a bit of a weight is another: that is what packages are for."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(asked, name, data(), x(3), tmp_path).result()  # raises where the process died
    refused = [sentence for sentence in found if sentence]
    assert DAMAGED / 3 <= len(refused) < DAMAGED
    assert not [sentence for sentence in refused if "\n" in sentence]


@pytest.mark.parametrize(("name", "data"), [("net.onnx", whole), ("net.tflite", lite)])
def test_a_truncated_file_is_refused_or_one_sentence_when_asked(
    save: Save, name: str, data: Callable[[], bytes]
) -> None:
    for share in (0.1, 0.5, 0.9, 0.99):
        with pytest.raises(UmbelError):
            umbel.load(save(name, data()[: int(share * len(data()))]))


def test_weights_in_a_file_beside_the_graph_are_found(tmp_path: Path) -> None:
    model = onnx.load_from_string(whole())
    onnx.save(
        model, tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=1024
    )
    loaded = umbel.load(tmp_path / "net.onnx", labels=NAMES)
    np.testing.assert_allclose(loaded.predict_proba(x()), expected(), atol=1e-5)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(UsageError, match="its weights are not beside it"):
        umbel.load(tmp_path / "net.onnx")


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(save: Save, tmp_path: Path) -> None:
    for suffix in ("umbel", "onnx", "tflite"):
        with pytest.raises(UsageError, match="There is no file"):
            umbel.load(tmp_path / f"gone.{suffix}")
        (tmp_path / f"folder.{suffix}").mkdir()
        with pytest.raises(UsageError, match=rf"folder\.{suffix} cannot be read: Is a directory"):
            umbel.load(tmp_path / f"folder.{suffix}")
    with pytest.raises(UsageError, match=r"give a file that ends in \.umbel, \.onnx or \.tflite"):
        umbel.load(save("net.pt", b""))


# --- the command


def command(*words: object, given: str | None = None) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, words)], input=given)


def test_the_command_asks_a_bare_graph_about_a_file(save: Save, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", x=x(), y=digits().held_out.y[:20])
    words = ["--file", save("net.onnx", whole()), "--labels", ", ".join(NAMES)]
    result = command(*words, "--data", tmp_path / "some.npz", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["labels"] == expected().argmax(1).tolist()
    assert (said["model"], said["version"], said["n"]) == ("net", 0, 20)
    assert said["accuracy"] == (expected().argmax(1) == digits().held_out.y[:20]).mean()


def test_the_command_refuses_two_classes_of_one_name(save: Save) -> None:
    result = command("--file", save("net.onnx", whole()), "--labels", "a,b, a", "--data", "-", given="")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "The label 'a' is given 2 times: give each class a name of its own."


@pytest.mark.parametrize(
    "y", [digits().held_out.y[:20, None], digits().held_out.y[:20] + 0.5, digits().held_out.y[:20] + 10]
)
def test_what_are_no_labels_of_the_rows_give_no_accuracy(save: Save, tmp_path: Path, y: np.ndarray) -> None:
    """A column of labels would be compared with every row: an accuracy of a tenth, without a word."""
    np.savez(tmp_path / "some.npz", x=x(), y=y)
    words = ["--file", save("net.onnx", whole()), "--labels", ", ".join(NAMES)]
    result = command(*words, "--data", tmp_path / "some.npz")
    assert isinstance(result.exception, UsageError)
    assert "give a whole number in 0..9 for each, shape (20,)" in str(result.exception)


def test_a_bare_graph_that_is_compared_with_labels_and_has_none_says_what_to_give(
    save: Save, tmp_path: Path
) -> None:
    np.savez(tmp_path / "some.npz", x=np.ones((4, 3), np.float32), y=np.arange(4))
    words = ["--file", save("line.onnx", linear()), "--data", tmp_path / "some.npz"]
    result = command(*words)
    assert isinstance(result.exception, UsageError)
    assert "give alike, or of a classifier the names of its classes: --labels" in str(result.exception)


def test_the_command_answers_lines_of_json_with_lines_of_json(save: Save) -> None:
    lines = "".join(json.dumps(row.tolist()) + "\n\n" for row in x(3))
    words = ["--file", save("net.onnx", whole()), "--labels", ",".join(NAMES)]
    result = command(*words, "--data", "-", "--json", given=lines)
    assert result.exit_code == 0, result.output
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["label"] for each in said] == expected(3).argmax(1).tolist()
    assert set(said[0]) == {"label", "name", "confidence", "decision"}
    numbers = command(
        "--file", save("line.onnx", linear()), "--data", "-", given='{"x": [1, 2, 3]}\n[[1,1,1]]'
    )
    assert [json.loads(line) for line in numbers.stdout.splitlines()] == [
        {"values": [3.0, 5.0, 7.0]},
        [{"values": [3.0, 3.0, 3.0]}],
    ]


@pytest.mark.parametrize(
    ("line", "sentence"), [("{", "Line 2 is no JSON"), ("[1]", "Line 2: Input 'x' has shape")]
)
def test_a_line_that_does_not_fit_is_named(save: Save, line: str, sentence: str) -> None:
    result = command("--file", save("line.onnx", linear()), "--data", "-", given=f"[1,2,3]\n{line}\n")
    assert isinstance(result.exception, UsageError)
    assert sentence in str(result.exception)
    assert json.loads(result.stdout) == {"values": [3.0, 5.0, 7.0]}


def aging() -> bytes:
    def bounded(body: dict[str, Any]) -> None:
        body["contract"][0] |= {"action": "reject", "max_age_s": 3600.0, "stale": "reject", "columns": []}

    return resigned(release(2), bounded)


def test_the_command_says_when_an_example_was_measured(save: Save, tmp_path: Path) -> None:
    words = [
        "--file",
        save("digits.umbel", aging()),
        "--release-key",
        save("r.pub", RELEASE.public.raw),
    ]
    row, hour_ago = x(1)[0].tolist(), datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    fresh, old = hour_ago + datetime.timedelta(minutes=10), hour_ago - datetime.timedelta(minutes=10)
    np.savez(tmp_path / "some.npz", x=x(2))
    file = ["--data", tmp_path / "some.npz", "--json"]
    assert "say when it was measured" in str(command(*words, *file).exception)
    for when in (fresh.isoformat(), str(fresh.timestamp())):
        assert json.loads(command(*words, *file, "--at", when).stdout)["n"] == 2
    assert "s old: give one of the last" in str(command(*words, *file, "--at", old.isoformat()).exception)
    # A line's own time goes before that of all.
    lines = [{"x": row, "at": fresh.timestamp()}, {"x": row, "at": fresh.isoformat()}]
    given = "\n".join(map(json.dumps, lines))
    said = command(*words, "--data", "-", "--at", old.isoformat(), given=given)
    assert len(said.stdout.splitlines()) == 2
    for line, sentence in (
        ({"x": row}, "Line 1: Input 'x' may be"),
        ({"x": row, "at": "noon"}, "Line 1: 'noon' is no time"),
        ({"x": row, "when": 1}, "Line 1: Give an object with 'x', and 'at'"),
    ):
        assert sentence in str(command(*words, "--data", "-", given=json.dumps(line)).exception)


@pytest.mark.parametrize("when", ["noon", "", "nan", "inf", "2026-05-01T12:00:00", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_or_of_no_known_place_is_refused(when: str) -> None:
    result = command("--file", "a.onnx", "--data", "-", "--at", when)
    assert isinstance(result.exception, UsageError)
    assert "is no time" in str(result.exception)


def test_a_bare_graph_has_no_contract_that_a_time_matters_to(save: Save) -> None:
    words = ["--file", save("line.onnx", linear()), "--data", "-"]
    assert "leave out --at" in str(command(*words, "--at", "1800000000", given="[1,2,3]").exception)


def test_the_command_warns_of_a_package_whose_maker_nobody_checked(save: Save) -> None:
    file, key = save("digits.umbel", release(2)), save("release.pub", RELEASE.public.raw)
    line = json.dumps(x(1)[0].tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unsigned = command("--file", file, "--data", "-", given=line)
        signed = command("--file", file, "--release-key", key, "--data", "-", given=line)
    assert unsigned.stderr.startswith("Warning: ")
    assert signed.stderr == ""
    assert unsigned.exit_code == signed.exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["digits", "--file", "a.onnx", "--data", "-"],
        ["--file", "a.onnx"],
        ["digits"],
        [],
        ["--data", "-"],
        ["digits", "x.npz", "--labels", "a,b"],
        ["--file", "a.onnx", "--data", "-", "--offline"],
    ],
)
def test_a_command_that_asks_for_both_or_neither_is_refused(words: list[str]) -> None:
    result = command(*words)
    assert isinstance(result.exception, UsageError)
    assert "umbel predict" in str(result.exception)


def test_numbers_beyond_half_precision_are_refused_and_the_infinite_pass(save: Save) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", 2]) for name in "xy"]
    made = helper.make_model(
        helper.make_graph([node], "half", ends[:1], ends[1:]),
        ir_version=9,
        opset_imports=[helper.make_opsetid("", 17)],
    )
    graph = umbel.load(save("half.onnx", made.SerializeToString()))
    for beyond in ([70000.0, 1.0], [70000, 1]):
        with pytest.raises(UsageError, match="numbers beyond float16"):
            graph.run(np.array(beyond))
    np.testing.assert_array_equal(graph.run(np.array([np.inf, 2.0]))["y"], [[np.inf, 2.0]])
    with pytest.raises(UsageError, match="a batch of no example"):
        graph.run(np.ones((0, 2)))


class NoArray:
    """As a tensor is that wants a gradient."""

    def __array__(self, *_: object, **__: object) -> NDArray[Any]:
        raise RuntimeError("asked for a gradient")


def test_what_gives_numpy_no_array_is_told_so(save: Save) -> None:
    graph = umbel.load(save("net.onnx", whole()), labels=NAMES)
    with pytest.raises(UsageError, match=r"no array for numpy: .*asked for a gradient"):
        graph.predict(NoArray())


def test_what_a_mask_hides_is_nothing_to_a_bare_graph_too(save: Save) -> None:
    hidden = np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False])
    answer = umbel.load(save("line.onnx", linear())).run(hidden)["y"]
    assert np.isnan(answer).any()


@pytest.mark.parametrize("path", [None, 3, b"net.onnx"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(UsageError, match=f"A {type(path).__name__} is no path of a model"):
        umbel.load(path)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64])
def test_options_take_whole_numbers_of_numpy_as_python_s(kind: type) -> None:
    options = umbel.EngineOptions(threads=kind(2), arena_bytes=kind(100))
    assert options == umbel.EngineOptions(threads=2, arena_bytes=100)
    assert (type(options.threads), type(options.arena_bytes)) == (int, int)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"threads": 0}, "cannot compute with 0 threads: give it 1 to 1024"),
        ({"threads": 100_000}, "cannot compute with 100000 threads"),
        ({"threads": True}, "threads is True: give a whole number"),
        ({"threads": 2.0}, r"threads is 2\.0: give a whole number"),
        ({"threads": None}, "threads is None: give a whole number"),
        ({"arena_bytes": "1k"}, "arena_bytes is '1k': give a whole number"),
        ({"arena_bytes": 0}, "An arena of 0 bytes cannot be"),
        ({"arena_bytes": 9, "arena": False}, "An arena of 9 bytes cannot be"),
        ({"providers": ()}, "needs something to compute with"),
        ({"providers": "CPUExecutionProvider"}, "providers is one text"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        umbel.EngineOptions(**given)
