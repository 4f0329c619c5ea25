"""The guide to pretraining in rounds does what it says: its files and commands run, in their order.

Laws: from windows without labels to a classifier is a way of commands, and it needs fewer labels than from scratch;
a fine-tuned package has the layers that rounds have learned; where all targets are alike, training tells how far off
a model is, and not R^2, which says nothing there.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from model_packages import digits, first, opened
from regression_tasks import diabetes, patients
from umbel._data.examples import Examples
from umbel.cli import app
from umbel.engines import load_engine
from umbel.train.local import figure_on, score_on
from umbel_models.fit import predict
from umbel_models.load import load_task
from umbel_models.restore import restored
from umbel_proto.errors import UsageError
from umbel_proto.keys import VerifyKey
from umbel_proto.package import PARAMETERS, Package, read_package

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "learn-without-labels.md"


@dataclass(frozen=True, slots=True)
class Walked:
    """What came of the page's commands: the last figures of each training by round, and what fine-tuning said."""

    trained: list[list[tuple[str, float]]]
    finetuned: str


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        text = PAGE.read_text()
        for name, program in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.S):
            Path(name).write_text(program)
        trained, finetuned = [], ""
        for line in re.findall(r"^    (umbel (?:.*\\\n)*.*)$", text, re.M):
            words = shlex.split(line.replace("\\\n", " "))[1:]
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, (line, done.output)
            if words[0] == "train":
                rounds = [each.split()[-2:] for each in done.stdout.splitlines()]
                trained.append([(name, float(value)) for name, value in rounds])
            elif words[:2] == ["model", "finetune"]:
                finetuned = done.stdout
        yield Walked(trained, finetuned)


def package(name: str) -> Package:
    key = VerifyKey(Path("fleet/keys/release.pub").read_bytes())
    return read_package(Path(name).read_bytes(), release_key=key)


def test_pretrained_layers_need_fewer_labels_by_the_commands_of_the_page(walked: Walked) -> None:
    _, few, scratch = walked.trained
    assert {name for name, _ in few + scratch} == {"accuracy"}
    told = [float(value) for value in re.findall(r"reaches (0\.\d+)", PAGE.read_text())]
    # The last digits hang on the processor; what the page says of the two does not.
    assert [few[-1][1], scratch[-1][1]] == pytest.approx(told, abs=0.1)
    assert few[-1][1] > scratch[-1][1] + 0.1


def test_training_without_labels_tells_how_far_off_the_model_is(walked: Walked) -> None:
    pretraining, *_ = walked.trained
    assert {name for name, _ in pretraining} == {"rmse"}
    assert pretraining[-1][1] < 0.85 * pretraining[0][1]
    held = np.load("windows/heldout.npz")
    errors = predict(restored(load_task("pretrain_waves.py"), package("pretrained.umbel")), held["x"])
    assert pretraining[-1][1] == pytest.approx(np.sqrt(np.mean(errors.astype(np.float64) ** 2)), abs=6e-5)


def test_a_fine_tuned_package_has_the_learned_layers_and_trains_the_last(walked: Walked) -> None:
    learned, made = package("pretrained.umbel"), package("waves.umbel")
    frozen = made.frozen()
    assert [each.name for each in made.manifest.parameters] == ["7.weight", "7.bias"]
    assert {f"encoder.{name}" for name in frozen} < learned.tensors(PARAMETERS).keys()
    for name, value in frozen.items():
        np.testing.assert_array_equal(value, learned.tensors(PARAMETERS)[f"encoder.{name}"])
    assert made.manifest.lineage["pretrained_sha256"] == learned.sha256
    says = re.search(r"the last\none, ([\d,]+ of [\d,]+ parameters)", PAGE.read_text())
    assert says is not None
    assert says[1] in walked.finetuned


def test_labels_at_hand_train_the_last_layer_alone_and_devices_may_train_all(walked: Walked) -> None:
    words = ["pretrained.umbel", "waves.py", "--key", "fleet/keys/release.key", "--out", "ready.umbel"]
    done = CliRunner().invoke(app, ["model", "finetune", *words, "--labels", "5", "--whole", "--json"])
    said = json.loads(done.stdout)
    assert said["trained"] == said["parameters"]
    learned, begun, made = (package(f"{name}.umbel") for name in ("pretrained", "scratch", "ready"))
    arrays = made.tensors(PARAMETERS)
    assert not np.array_equal(arrays["7.weight"], begun.tensors(PARAMETERS)["7.weight"])
    for name in arrays.keys() - {"7.weight", "7.bias"}:
        np.testing.assert_array_equal(arrays[name], learned.tensors(PARAMETERS)[f"encoder.{name}"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({0: "waves.umbel"}, "holds no layers of waves"),
        ({1: "pretrain_waves.py"}, "needs a model that tells labels apart"),
    ],
)
def test_what_cannot_be_fine_tuned_is_said_in_one_sentence(
    walked: Walked, changed: dict[int, str], sentence: str
) -> None:
    words = ["pretrained.umbel", "waves.py", "--key", "fleet/keys/release.key", "--out", "no.umbel"]
    words = [changed.get(place, word) for place, word in enumerate(words)]
    done = CliRunner().invoke(app, ["model", "finetune", *words, "--labels", "5"])
    assert isinstance(done.exception, UsageError)
    assert sentence in str(done.exception)
    assert not Path("no.umbel").exists()


def test_the_figure_of_a_training_is_the_score_wherever_that_says_something() -> None:
    for made, held in ((opened(first()), digits().held_out), (diabetes(), patients().held_out)):
        examples = Examples(held.x, held.y)
        name, judge = figure_on(made, examples)
        assert name == ("r2" if made is diabetes() else "accuracy")
        assert judge(made.parameters()) == score_on(made, examples)(made.parameters())


def test_where_all_targets_are_alike_the_figure_is_the_error() -> None:
    held, made = patients().held_out, diabetes()
    name, judge = figure_on(made, Examples(held.x, np.full_like(held.y, 0.5)))
    said = load_engine(made, "fp32").answers(held.x).astype(np.float64)
    assert (name, judge(made.parameters())) == ("rmse", pytest.approx(np.sqrt(np.mean((said - 0.5) ** 2))))


def test_a_training_has_nowhere_to_write_before_it_begins(walked: Walked) -> None:
    words = ["scratch.umbel", "--release-key", "fleet/keys/release.pub", "--data", "labelled/shard-0.npz"]
    words += ["--heldout", "labelled/heldout.npz", "--out", "nowhere/trained.params"]
    done = CliRunner().invoke(app, ["train", *words])
    assert "There is no directory nowhere" in f"{done.exception}{done.output}"
    assert "round" not in done.stdout
