"""Law: each gate of `make check` turns red on a violation of its kind, and is green on this tree without it."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("client/umbel", "server/umbel_server", "proto/umbel_proto", "models/umbel_models")


def run(*command: str, cwd: Path = ROOT, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"PYTHONPATH": str(path)} if path is not None else {})}
    tool = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    return subprocess.run(tool, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A file of its own, judged by this project's settings."""
    return tmp_path / "planted.py"


def test_the_formatter_finds_a_line_out_of_shape(planted: Path) -> None:
    planted.write_text("x = {  'a':1 }\n")
    assert run("ruff", "format", "--check", "--config", "pyproject.toml", str(planted)).returncode == 1


def test_the_linter_finds_a_public_function_without_docstring(planted: Path) -> None:
    planted.write_text('"""A module."""\n\n\ndef f() -> int:\n    return 1\n')
    found = run("ruff", "check", "--config", "pyproject.toml", str(planted))
    assert found.returncode == 1
    assert "D103" in found.stdout


def test_the_type_checker_finds_an_untyped_function(planted: Path) -> None:
    planted.write_text("def f(x):\n    return x\n")
    found = run("mypy", "--config-file", "pyproject.toml", "--follow-imports=skip", str(planted))
    assert found.returncode == 1
    assert "no-untyped-def" in found.stdout


@pytest.mark.parametrize(
    ("room", "line", "contract"),
    [
        ("client/umbel", "import umbel_server", "The rooms meet only in umbel_proto BROKEN"),
        ("proto/umbel_proto", "import umbel", "The protocol knows no room BROKEN"),
        (
            "proto/umbel_proto/secagg",
            "import socket",
            "The protocol does no I/O, reads no clock, starts no thread BROKEN",
        ),
        ("server/umbel_server", "import flwr.app", "Flower is imported only in its adapters BROKEN"),
    ],
)
def test_the_import_linter_finds_a_hole_in_a_wall(
    tmp_path: Path, room: str, line: str, contract: str
) -> None:
    for source in ROOMS:
        package = Path(source).name
        shutil.copytree(ROOT / source, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    inside = Path(*Path(room).parts[1:])
    clean = run("lint-imports", "--no-cache", cwd=tmp_path, path=tmp_path)
    assert clean.returncode == 0, clean.stdout
    (tmp_path / inside / "planted.py").write_text(f"{line}\n")
    found = run("lint-imports", "--no-cache", cwd=tmp_path, path=tmp_path)
    assert found.returncode == 1
    assert contract in found.stdout


def test_the_generator_finds_code_that_is_not_what_the_protocol_gives(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    check = ("python", str(tmp_path / "proto" / "generate.py"), "--check")
    assert run(*check, cwd=tmp_path).returncode == 0
    changed = tmp_path / "proto" / "umbel_proto" / "wire" / "delivery.proto"
    changed.write_text(changed.read_text().replace("uint64 offset = 2;", "uint32 offset = 2;"))
    found = run(*check, cwd=tmp_path)
    assert found.returncode == 1
    assert "delivery_pb2.py" in found.stdout


def test_the_type_completeness_check_finds_a_public_name_without_type(tmp_path: Path) -> None:
    package = tmp_path / "planted"
    package.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (package / "py.typed").touch()
    check = ("python", str(ROOT / "tests" / "verifytypes.py"), "planted")
    (package / "__init__.py").write_text("def f(x: int) -> int:\n    return x\n")
    assert run(*check, cwd=tmp_path / "elsewhere", path=tmp_path).returncode == 0
    (package / "__init__.py").write_text("def f(x):\n    return x\n")
    assert run(*check, cwd=tmp_path / "elsewhere", path=tmp_path).returncode == 1


LEAVES_OUT = re.compile(r"\bpytest\.(?:mark\.)?(?:skip\w*|xfail|importorskip)\b|\bunittest\.skip")
ASSERTED = 'assert "CI" not in os.environ'


def left_out(source: str) -> list[str]:
    """The lines that leave a test out and do not first fail in CI, where nobody would look at it."""
    lines = ["", *source.splitlines()]
    return [
        line.strip()
        for before, line in itertools.pairwise(lines)
        if LEAVES_OUT.search(line)
        and not (re.search(r"pytest\.skip\(", line) and before.strip().startswith(ASSERTED))
    ]


def test_no_test_is_left_out_in_ci_without_a_word() -> None:
    found = {path.name: left_out(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "planted", ["mark.skipif(True)", "importorskip('torch')", "skip('a bad day')", "xfail"]
)
def test_a_test_that_is_left_out_is_found(planted: str) -> None:
    assert left_out(f"import pytest\n\npytest.{planted}\n") == [f"pytest.{planted}"]
