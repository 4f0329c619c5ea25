"""Law: a user's no is kept on a full disk, the first word as well as a later one, and what it forbids cannot be read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from device_world import UMBEL, World
from model_packages import digits, release, shelf
from small_disk import on_small_disk
from umbel._data.dataset import open_data

SCRIPT = """
mount -t tmpfs -o size=4m none "$2" && cp -a "$1/." "$2" || exit 99
dd if=/dev/zero of="$2/filler" bs=4k 2>/dev/null
"$3" data consent --revoke --home "$2"; echo "exit $?"
rm "$2/filler"
"$3" data consent --home "$2"; "$3" data list --home "$2"
ls "$2/data"
"""


@pytest.mark.parametrize(
    ("kept", "asked"),
    [(True, True), (True, False), (False, False)],
    ids=["after a yes", "the first word", "with nothing to delete"],
)
def test_a_no_is_kept_where_there_is_no_room(world: World, tmp_path: Path, kept: bool, asked: bool) -> None:
    home, small = world.device("d1"), tmp_path / "small"
    shelf(home.path).install(release(2))
    if kept:
        with open_data(home, shelf(home.path), "digits") as data:
            data.add(digits().train.x[:3], digits().train.y[:3], source="user")
    if asked:
        subprocess.run([UMBEL, "data", "consent", "--grant", "--home", home.path], check=True)
    small.mkdir()
    done = on_small_disk(SCRIPT, home.path, small, UMBEL)
    assert "exit 0" in done.stdout, done.stderr
    assert "Training: revoked" in done.stdout
    assert "examples.key" not in done.stdout
