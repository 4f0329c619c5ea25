"""``umbel status``: who the device is, and what it does."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import click

from umbel._commands.options import Command, home_option, json_option
from umbel._commands.table import Table
from umbel._commands.terminal import device_home, print_json
from umbel._words import as_number, as_time


@click.command(cls=Command)
@home_option
@json_option
def status(*, home: Path | None, as_json: bool) -> None:
    """Show who the device is, what it runs, what it has still to send and what privacy it has spent."""
    from umbel._device import Device
    from umbel._releases.shadows import bounds

    if (pending := device_home(home).pending) is not None:
        if as_json:
            print_json({"pending": asdict(pending)})
        else:
            click.echo(
                f"pending: waits at {pending.enrollment} for approval as {pending.application}, fingerprint "
                f"{pending.fingerprint}"
            )
        return
    with Device.open(device_home(home).path, online=False) as device:
        now = device.status()
    if as_json:
        print_json(asdict(now))
        return
    left_s = now.certificate_ends_s - time.time()
    table = Table(f"{now.device} of fleet {now.fleet}", "", "")
    table.add_row("gateway", now.gateway)
    table.add_row("last contact", as_time(now.last_contact_s))
    if now.refused_s is not None:
        table.add_row(
            "gateway", f"REFUSES this device since {as_time(now.refused_s)}:  umbel doctor  says why"
        )
    table.add_row("agent", "running" if now.agent_runs else "not running")
    table.add_row(
        "certificate", f"{'expires' if left_s > 0 else 'EXPIRED'} {as_time(now.certificate_ends_s)}"
    )
    for release in now.models:
        table.add_row("model", f"{release.model} {release.version} ({release.variant})")
    if not now.models:
        table.add_row("model", "none yet")
    if now.releases_until_s is not None and now.releases_until_s <= time.time():
        table.add_row(
            "releases", f"nothing new: what the fleet signed EXPIRED {as_time(now.releases_until_s)}"
        )
    for failure in now.failed:
        table.add_row("not used", f"{failure.model} {failure.version}: it {failure.why}")
    for shadow in now.shadows:
        tried = f"{shadow.model} {shadow.version} beside {shadow.beside}"
        since = "" if shadow.since_s is None else f" since {as_time(shadow.since_s)}"
        said = f"not run: it {shadow.why}" if shadow.why else f"{shadow.examples} examples, {bounds(shadow)}"
        table.add_row("shadow", f"{tried}{since}: {said}")
    dropped = f", {now.dropped_batches} dropped" if now.dropped_batches else ""
    reports = "1 report" if now.spooled_batches == 1 else f"{now.spooled_batches} reports"
    table.add_row("to send", f"{reports}, {now.spooled_bytes} bytes{dropped}")
    table.add_row(
        "privacy",
        f"epsilon {as_number(now.epsilon)} of {as_number(now.budget_epsilon)} at delta {now.budget_delta:g}, "
        f"{now.rounds} rounds",
    )
    table.add_row("training", device.conditions.said(now.training))
    table.print()
