"""Law: whatever an operator asks of a SuperLink that is not there, or that fails, ends in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alert_receivers import https_receiver
from service_fleet import PlainDevice, make_fleet, spki
from umbel_proto.errors import UnavailableError
from umbel_server.control import Control
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.link import NodeId

ASKED: dict[str, Callable[[Control, FleetDir], object]] = {
    "register": lambda control, _: control.register("dev-1", spki(PlainDevice().node.public_key())),
    "unregister": lambda control, _: control.unregister(NodeId(7)),
    "online": lambda control, _: control.online(),
    "start": lambda control, fleet: control.start(fleet, "digits-1"),
    "status": lambda control, _: control.status(7),
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    """A fleet on whose ports nothing listens."""
    return make_fleet(tmp_path_factory.mktemp("control") / "fleet")


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[FleetDir]:
    """A fleet whose SuperLink answers every call with 500: it has lost its database, say."""
    made = make_fleet(tmp_path / "fleet")
    with https_receiver(made) as received:
        received.answers += [500] * 4
        port = received.url.rpartition(":")[2]
        settings = made.path / "fleet.toml"
        settings.write_text(settings.read_text().replace(str(made.settings.ports.control), port))
        yield FleetDir.open(made.path)


def sentence(fleet: FleetDir, asked: str) -> str:
    """What an operator reads."""
    with contextlib.closing(Control(fleet)) as control, pytest.raises(UnavailableError) as told:
        ASKED[asked](control, fleet)
    return str(told.value)


@pytest.mark.parametrize("asked", ASKED)
def test_a_superlink_that_is_not_there_is_one_sentence(fleet: FleetDir, asked: str) -> None:
    assert sentence(fleet, asked).startswith("The SuperLink does not answer")


@pytest.mark.parametrize("asked", ASKED)
def test_a_superlink_that_fails_is_one_line_with_the_status(failing: FleetDir, asked: str) -> None:
    told = sentence(failing, asked)
    assert told.startswith("The SuperLink refuses to ")
    assert told.count("(HTTP 500)") == 1
    assert "\n" not in told
