"""A service made of somebody else's program: it comes back when it ends, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from umbel_proto.errors import UnavailableError
from umbel_server.keep import keep_running

# Writes its process id to a line of its own, and fails the first two times.
PROGRAM = """
import sys, time
path = sys.argv[1]
import os
with open(path, "a") as file:
    file.write(f"{os.getpid()}\\n")
with open(path) as file:
    if len(file.readlines()) < 3:
        sys.exit(7)
print("up", flush=True)
time.sleep(60)
"""

KEEPER = f"""
import logging, os, sys
import umbel_server.keep as keep
keep.FIRST_PAUSE_S = 0.01
logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
keep.keep_running("counter", [sys.executable, "-c", {PROGRAM!r}, sys.argv[1]], os.environ)
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_started_again_until_the_service_is_told_to_stop(
    tmp_path: Path, number: signal.Signals
) -> None:
    starts = tmp_path / "starts"
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(starts)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == "up\n"
        service.send_signal(number)
        _, err = service.communicate(timeout=60)
    assert service.returncode == 0
    assert err.count("counter ended with code 7: it is started again") == 2
    pids = [int(line) for line in starts.read_text().splitlines()]
    assert len(pids) == 3
    assert all(gone(pid) for pid in pids)


def test_a_program_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(UnavailableError, match="counter cannot be started: No such file"):
        keep_running("counter", ["/nonexistent/program"], {})
