"""Crashes at every instant of an installation, in a trial and soon after start: the shelf holds the old or the new.

Each crash is of a real process: killed, or with a segmentation fault.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import pytest

from crashing import crashed
from model_packages import RELEASE, first, release, shelf
from umbel._releases.follow import Follower
from umbel._releases.shelf import Shelf
from umbel._telemetry.window import PredictionWindow
from umbel_proto.errors import RefusedError, StorageError
from umbel_proto.keys import VerifyKey


class Windows:
    """Telemetry that nobody reads."""

    def window(
        self, *, model: str, version: int, variant: str, engine: str, scope: object = None
    ) -> PredictionWindow:
        return PredictionWindow(model=model, version=version, variant=variant, engine=engine, now_s=0.0)


def quickly(on_shelf: Shelf, data: bytes) -> None:
    on_shelf.install(data, clock=itertools.count().__next__)


def child(work: Callable[..., Any], *args: object) -> int | None:
    """Return how a process of its own ends."""
    context: SpawnContext = multiprocessing.get_context("spawn")
    process = context.Process(target=work, args=args)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    return process.exitcode


def follower(root: Path, key: bytes) -> Follower:
    return Follower(Shelf(root, VerifyKey(key)), Windows(), clock=lambda: 1_000_000.0)


# At every instant of an installation


def test_an_installation_killed_at_any_change_of_the_disk_leaves_the_old_state_or_the_new(
    tmp_path: Path,
) -> None:
    device = tmp_path / "device"
    quickly(shelf(device), first())
    (device / "new.umbel").write_bytes(release(2))
    lines = crashed("crashing_shelf.py", device, RELEASE.public.raw.hex())
    assert len(lines) > 15
    # First the old one, then in the trial the old one that needs a retry, then the old one, at last the new one.
    kinds = [kind for kind, _ in itertools.groupby(lines)]
    assert kinds == ["1 at once", "1 retried", "1 at once", "2 at once"]


# In a trial


def _segfault(root: Path, key: bytes, data: bytes) -> None:
    import onnxruntime

    # A runtime that is broken on this device.
    onnxruntime.InferenceSession = lambda *_, **__: ctypes.string_at(0)
    Shelf(root, VerifyKey(key)).install(data)


def test_a_candidate_that_crashes_is_refused_by_the_next_process(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    quickly(on_shelf, first())
    root, key = tmp_path / "shelf", RELEASE.public.raw
    assert child(_segfault, root, key, release(2)) == -signal.SIGSEGV
    model = follower(root, key).model("digits", None)
    assert model.version == 1
    [failure] = on_shelf.versions.slots("digits").failed
    assert (failure.version, failure.why) == (2, "ended the process that tried it")
    with pytest.raises(RefusedError, match="ended the process that tried it: run  umbel model retry digits"):
        quickly(on_shelf, release(2))
    on_shelf.versions.retry("digits")
    quickly(on_shelf, release(2))


# Soon after start


def _die_after_loading(root: Path, key: bytes) -> None:
    here = follower(root, key)
    assert here.model("digits", None).version == 2
    os.kill(os.getpid(), signal.SIGKILL)


def _exit_after_loading(root: Path, key: bytes) -> None:
    here = follower(root, key)
    assert here.model("digits", None).version == 2
    sys.exit(1)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, bytes]:
    """Version 2 with version 1 before it, and no process that has run either."""
    on_shelf = shelf(tmp_path)
    quickly(on_shelf, first())
    quickly(on_shelf, release(2))
    return tmp_path / "shelf", RELEASE.public.raw


def test_a_version_that_ends_three_processes_at_start_gives_way_to_the_one_before(
    two: tuple[Path, bytes],
) -> None:
    for _ in range(3):
        assert child(_die_after_loading, *two) == -signal.SIGKILL
    assert follower(*two).model("digits", None).version == 1
    [failure] = Shelf(two[0], RELEASE.public).versions.slots("digits").failed
    assert (failure.version, failure.why) == (2, "ended 3 processes soon after they had loaded it")


def test_two_crashes_are_not_enough_and_orderly_ends_are_none(two: tuple[Path, bytes]) -> None:
    for work in (_die_after_loading, _exit_after_loading, _die_after_loading, _exit_after_loading):
        child(work, *two)
    assert follower(*two).model("digits", None).version == 2


def test_a_version_that_has_once_run_well_is_not_given_up_for_crashes(two: tuple[Path, bytes]) -> None:
    here = follower(*two)
    held = here.model("digits", None)
    here.close()
    for _ in range(3):
        child(_die_after_loading, *two)
    assert follower(*two).model("digits", None).version == held.version == 2


def test_crashes_of_the_only_version_do_not_take_it_away(tmp_path: Path) -> None:
    quickly(shelf(tmp_path), release(2))
    for _ in range(3):
        child(_die_after_loading, tmp_path / "shelf", RELEASE.public.raw)
    assert follower(tmp_path / "shelf", RELEASE.public.raw).model("digits", None).version == 2


# A full disk


def _install_in(root: Path, key: bytes, data: bytes, largest: int) -> None:
    # A write beyond the limit fails like one on a full disk: after a part was written.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    on_shelf = Shelf(root, VerifyKey(key))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        quickly(on_shelf, data)
    except StorageError as exc:
        sys.exit(exc.exit_code if len(str(exc).splitlines()) == 1 else 1)


@pytest.mark.parametrize("largest", [0, 100, 150, 300, 100_000])
def test_a_disk_that_is_full_at_some_write_leaves_the_shelf_as_it_was(tmp_path: Path, largest: int) -> None:
    on_shelf = shelf(tmp_path)
    quickly(on_shelf, first())
    before = files(tmp_path)
    assert child(_install_in, tmp_path / "shelf", RELEASE.public.raw, release(2), largest) == 6
    assert files(tmp_path) == before
    quickly(on_shelf, release(2))


def files(root: Path) -> dict[str, bytes]:
    paths = [path for path in (root / "shelf").rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in paths}


# Two at once


def test_two_processes_that_install_at_once_both_find_the_new_version(tmp_path: Path) -> None:
    on_shelf = shelf(tmp_path)
    quickly(on_shelf, first())
    context: SpawnContext = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "shelf", RELEASE.public.raw, release(2), resource.RLIM_INFINITY)
    both = [context.Process(target=_install_in, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    active, previous = on_shelf.active("digits"), on_shelf.previous("digits")
    assert active is not None
    assert previous is not None
    assert (active.version, previous.version) == (2, 1)
    assert on_shelf.package(active).manifest.version == 2
