"""Law: whatever becomes of one of a device's files, every command that reads it answers, or says why not in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from device_world import World, open_device
from model_packages import digits, release
from umbel.cli import app
from umbel_proto.errors import UmbelError
from umbel_server.fleet.publish import publish

HARM: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other bytes": lambda path: path.write_bytes(bytes(each ^ 0x5A for each in path.read_bytes()) or b"x"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
COMMANDS = (
    *(
        ("status",),
        ("doctor", "--json"),
        ("privacy",),
        ("review", "list"),
        ("data", "show"),
        ("data", "conditions"),
    ),
    *(("model", "list"), ("predict", "digits", "@x.npz", "--offline")),
)


def lived_in(world: World) -> Path:
    """A device with a model, reports, reviews, examples, consent and conditions."""
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    with open_device(home, online=True) as device:
        device.sync()
        device.consent.grant()
        device.conditions.require(idle=True)
        device.data("digits").add(digits().train.x[:4], digits().train.y[:4], source="user")
        device.model("digits").predict(digits().held_out.x[:50])
    return home.path


@pytest.mark.parametrize("harm", HARM)
def test_a_file_that_came_to_harm_is_one_sentence_of_every_command(world: World, harm: str) -> None:
    whole, place = lived_in(world), world.root / "harmed"
    np.savez(world.root / "x.npz", x=digits().held_out.x[:3])
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(files) > 25
    refused = 0
    for file in files:
        for words in COMMANDS:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(whole, place)
            HARM[harm](place / file)
            given = [word.replace("@", f"{world.root}/") for word in words]
            result = CliRunner().invoke(app, [*given, "--home", str(place)])
            told = (harm, str(file), words, result.exception, result.output[-300:])
            if isinstance(result.exception, UmbelError):
                assert "\n" not in str(result.exception), told
                refused += 1
            elif words[0] == "doctor" and result.exit_code == 1:
                assert json.loads(result.stdout), told
            else:
                assert result.exit_code == 0, told
    assert refused > len(files)
