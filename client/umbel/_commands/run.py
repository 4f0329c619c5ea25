"""``umbel run``: be the device, until stopped."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel._commands.enroll import TOKEN_VARIABLE, enroll_approved
from umbel._commands.options import PATH, Command, home_option
from umbel._commands.terminal import device_home
from umbel_proto.errors import MissingExtraError, UnavailableError

if TYPE_CHECKING:
    from umbel._home.directory import DeviceHome
    from umbel._telemetry.telemetry import Telemetry

log = logging.getLogger("umbel")


@click.command(cls=Command)
@home_option
@click.option(
    "--token",
    metavar="TOKEN",
    envvar=TOKEN_VARIABLE,
    show_envvar=True,
    help="Enroll with this token first, if that was not done.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="FILE",
    help="Train on this .npz file with x and y, not on the local data set.",
)
@click.option("--name", default="", show_default=False, help="What the operator will see this device called.")
@click.option(
    "--poll",
    type=click.FloatRange(min=0.1),
    show_default="60",
    help="Seconds between questions for releases.",
)
@click.option(
    "--trainer",
    metavar="MODULE:NAME",
    help="Makes the trainer of a package: code of this machine's. By default umbel's own, in a process of its own.",
)
def run(
    *,
    home: Path | None,
    token: str | None,
    data: Path | None,
    name: str,
    poll: float | None,
    trainer: str | None,
) -> None:
    """Be the device: fetch releases, report, and take part in rounds, until stopped."""
    from umbel._commands.notify import service
    from umbel._device import Device
    from umbel._telemetry.rhythm import POLL_S

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("flwr", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    where = device_home(home)
    if data is not None:
        from umbel._data.examples import read_examples

        read_examples(data)  # A wrong file is said now, not in the middle of a round.
    if trainer is not None:
        from umbel.train.load import load_trainer

        load_trainer(trainer)  # So is a wrong name.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if token is None:
        _ = where.identity  # Not enrolled, and no way to: said before anything is made.
    where.make()
    with where.lock():
        asks = token is not None and not where.enrolled
        if asks and enroll_approved(where, token or "", name=name, stopped=stop.wait) is None:
            return
        _come_back(where)
        if data is None:
            ask_first(where)
        with Device.open(where.path, poll_s=POLL_S if poll is None else poll) as device:
            click.echo(f"ready {device.id}")
            with service():
                _take_part(where, data, stop, trainer, device.telemetry)
    log.info("stopped")


def ask_first(home: DeviceHome) -> None:
    """Demand that the user says yes before training on what applications keep, unless the owner has decided that.

    Who starts the agent with a file to train on has decided about that file.
    """
    from umbel._data.consent import Consent
    from umbel._rounds.conditions import Conditions

    conditions = Conditions(home)
    if "consent" not in conditions.decided:
        conditions.require(consent=True)
    if conditions.rules.consent and Consent(home).decision().state == "unasked":
        log.info(
            "training waits until the user was asked and says yes:  umbel data consent --grant --home %s",
            home.path,
        )


def _come_back(home: DeviceHome) -> None:
    """Get a new certificate for one that has expired; without the network the device runs all the same."""
    now_s = time.time()
    if now_s < home.certificate_validity().ends_s:
        return
    from umbel._fleet.enroll import come_back

    try:
        come_back(home, now_s=now_s)
    except UnavailableError as exc:
        log.warning("%s", exc)


def _take_part(
    home: DeviceHome, data: Path | None, stop: threading.Event, trainer: str | None, telemetry: Telemetry
) -> None:
    """Join the fleet's rounds, or wait, until told to stop."""
    if home.identity.superlink:
        try:
            from umbel.flower import run_node
        except ImportError as exc:
            if (exc.name or "").startswith("umbel"):
                raise
            if data is not None:
                raise MissingExtraError("learn", "Taking part in rounds") from exc
            log.info("taking part in no rounds: flwr is not installed")
        else:
            from umbel.train.load import load_trainer

            made = None if trainer is None else load_trainer(trainer)
            run_node(home, data, stop=stop, trainer=made, tell=telemetry._add)
    stop.wait()
