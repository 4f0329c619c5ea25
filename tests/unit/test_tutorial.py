"""The tutorial and the page on training do what they say: their programs run as they stand, and print what they say."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from model_packages import RELEASE, digits, first
from umbel.cli import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "tutorials" / "first-prediction.md"


def run(page: Path, *programs: str) -> dict[str, Any]:
    """Run a page's programs one after the other, and return their names. Files that a short program leaves open are closed."""
    names = dict[str, Any]()
    with contextlib.ExitStack() as ended:
        for program in programs:
            exec(compile(program, page.name, "exec"), names)
        for each in names.values():
            if isinstance(each, np.lib.npyio.NpzFile):
                ended.enter_context(each)
    return names


def test_the_programs_of_the_first_prediction_print_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(PAGE, *re.findall(r"```python\n(.*?)```", text, re.S))
    said = printed.getvalue()
    outputs = [line.strip() for line in text.splitlines() if re.match(r"    (Graph|\d|Input)", line)]
    assert len(outputs) == 3
    for line in outputs:
        assert line in said
    assert "the pixel that matters most is in row" in said
    assert "Compared on 149 samples held back." in said

    labels = re.findall(r"--labels (\S+)", text)
    assert len(labels) == 2
    words = ["predict", "--file", "digits.onnx", "--labels", labels[0], "--data"]
    told = CliRunner().invoke(app, [*words, "digits.npz", "--json"])
    assert json.loads(told.stdout)["accuracy"] > 0.9
    with np.load("digits.npz") as arrays:
        row = json.dumps(arrays["x"][0].tolist())
    line = CliRunner().invoke(app, [*words, "-"], input=row)
    assert json.loads(line.stdout)["name"] == "7"


def test_the_first_program_on_training_needs_a_package_a_key_and_examples_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.umbel").write_bytes(first())
    Path("release.pub").write_bytes(RELEASE.public.raw)
    np.savez("examples.npz", x=digits().train.x[:100], y=digits().train.y[:100])
    page = DOCS / "how-to" / "train-on-device.md"
    names = run(page, re.findall(r"```python\n(.*?)```", page.read_text(), re.S)[0])
    assert (names["result"].steps, names["result"].ended) == (20, "epochs")
