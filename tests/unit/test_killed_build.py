"""A build that is killed leaves nothing that the next one of the same file does not remove.

Laws: what was there stays whole; the draft of a killed build goes with the next write of the file; that of a build
that still runs does not, nor a file that only looks like one; a file system without locks can be written to.
"""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_packages import RELEASE, first
from umbel_models import files
from umbel_models.cli import app
from umbel_proto.package import read_package

BUILD = """
import os, signal, sys
from umbel_models.cli import app

def killed(event, arguments):
    if event == "os.rename" and str(arguments[1]) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(killed)
app(["build", "digits", "--out", sys.argv[1], "--key", sys.argv[2]])
"""

WAITING = """
import sys
from pathlib import Path
from umbel_models import files

def waits(event, arguments):
    if event == "os.rename":
        print("written", flush=True)
        sys.stdin.readline()

sys.addaudithook(waits)
files.write(Path(sys.argv[1]), b"of the slow one")
"""


def test_the_next_build_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    key, out = tmp_path / "release.pem", tmp_path / "digits.umbel"
    key.write_bytes(RELEASE.to_pem())
    out.write_bytes(first())
    build = [sys.executable, "-c", BUILD, str(out), str(key)]
    assert subprocess.run(build, capture_output=True, check=False).returncode == -signal.SIGKILL
    [draft] = tmp_path.glob(".digits.umbel.*")
    assert draft.stat().st_size > 10_000
    assert out.read_bytes() == first()
    again = CliRunner().invoke(
        app, ["build", "digits", "--out", str(out), "--key", str(key), "--version", "2"]
    )
    assert again.exit_code == 0, again.output
    assert sorted(tmp_path.iterdir()) == [out, key]
    assert read_package(out.read_bytes(), release_key=RELEASE.public).manifest.version == 2


def test_the_draft_of_one_that_still_writes_stays(tmp_path: Path) -> None:
    out = tmp_path / "net.umbel"
    slow = [sys.executable, "-c", WAITING, str(out)]
    with subprocess.Popen(slow, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        [draft] = tmp_path.iterdir()
        files.write(out, b"of the quick one")
        assert sorted(tmp_path.iterdir()) == [draft, out]
        assert out.read_bytes() == b"of the quick one"
        process.communicate("\n")
    assert process.returncode == 0
    assert out.read_bytes() == b"of the slow one"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_is_no_draft_of_it_stays(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".net.umbel.old", ".other.umbel.0123abcd", "net.umbel.0123abcd")]
    for other in others:
        other.touch()
    files.write(tmp_path / "net.umbel", b"data")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "net.umbel"])


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    draft = tmp_path / ".net.umbel.0123abcd"
    draft.touch()
    monkeypatch.setattr(fcntl, "flock", refused)
    files.write(tmp_path / "net.umbel", b"data")
    assert (tmp_path / "net.umbel").read_bytes() == b"data"
    assert draft.exists()  # Nobody can say whether its writer still runs.
