"""How the device's commands find its home and print what programs read."""

from __future__ import annotations

import json
from pathlib import Path

import click

from umbel._home.directory import DeviceHome


def device_home(path: Path | None) -> DeviceHome:
    """Return the home that ``--home`` names, or the default one."""
    return DeviceHome.default() if path is None else DeviceHome(path)


def print_json(value: object) -> None:
    """Print a value as JSON; where JSON has no number for it, null."""
    text = json.dumps(value, default=str, allow_nan=True)
    click.echo(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))
