"""The tutorial does what it says: its programs run, in their order, and print what it prints."""

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

from umbel.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "first-prediction.md"


def test_the_programs_of_the_first_prediction_print_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    printed, names = io.StringIO(), dict[str, Any]()
    with contextlib.redirect_stdout(printed):
        for program in re.findall(r"```python\n(.*?)```", text, re.S):
            exec(compile(program, PAGE.name, "exec"), names)
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
    row = json.dumps(np.load("digits.npz")["x"][0].tolist())
    line = CliRunner().invoke(app, [*words, "-"], input=row)
    assert json.loads(line.stdout)["name"] == "7"
