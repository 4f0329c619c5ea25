"""``umbel enroll``: make this machine a device of a fleet."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel._commands.options import Argument, Command, home_option, json_option
from umbel._commands.terminal import device_home, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from umbel._home.directory import DeviceHome, Identity
    from umbel_proto.errors import UnavailableError

TOKEN_VARIABLE = "UMBEL_TOKEN"  # noqa: S105  # The variable's name, not a secret.
"""Where a token may stand instead of on the command line, which everyone on a machine can read."""


@click.command(cls=Command)
@click.argument(
    "token", cls=Argument, envvar=TOKEN_VARIABLE, help="The one-time token of `umbel fleet token`."
)
@home_option
@click.option("--name", default="", show_default=False, help="What the operator will see this device called.")
@click.option("--gateway", metavar="ADDRESS", help="Enroll at this host:port instead of the token's.")
@click.option("--again", is_flag=True, help="Replace an identity that has expired; the privacy ledger stays.")
@json_option
def enroll(
    *, token: str, home: Path | None, name: str, gateway: str | None, again: bool, as_json: bool
) -> None:
    """Make this machine a device of a fleet; where an operator is to approve it first, wait for that."""
    where = device_home(home)
    identity = enroll_approved(where, token, gateway, name=name, again=again)
    assert identity is not None  # Nothing stops the waiting but Ctrl-C.
    if as_json:
        print_json({"fleet": identity.fleet, "device": identity.device, "home": str(where.path)})
    else:
        click.echo(f"Enrolled as {identity.device} in fleet {identity.fleet}, at {where.path}.")


def enroll_approved(
    home: DeviceHome,
    token: str,
    gateway: str | None = None,
    *,
    name: str = "",
    again: bool = False,
    stopped: Callable[[float], bool] | None = None,
) -> Identity | None:
    """Enroll, after an operator's approval where the fleet wants one; None if stopped while waiting for it."""
    from umbel._fleet.approval import until_approved
    from umbel._fleet.enroll import enroll as enroll_device

    def tell(exc: UnavailableError) -> None:
        pending = home.pending
        assert pending is not None
        click.echo(
            f"Waiting for approval as {pending.application}. The operator compares this fingerprint:\n"
            f"  {pending.fingerprint}\nStopped here, the same command waits on.",
            err=True,
        )

    return until_approved(
        lambda: enroll_device(home, token, gateway, name=name, again=again, now_s=time.time()),
        tell=tell,
        stopped=stopped or threading.Event().wait,
    )
