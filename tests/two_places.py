"""Operators' commands where the fleet's directory is, and at its service: the same words, run in both places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from api_world import ApiWorld
from umbel_server.access.audit_command import app as audit
from umbel_server.access.command import access, user
from umbel_server.cli import fleet
from umbel_server.experiments.command import app as experiment
from umbel_server.learning.commands import app as rounds
from umbel_server.monitor.alerts.command import app as alert
from umbel_server.monitor.commands import app as monitor
from umbel_server.registry.command import app as registry
from umbel_server.rollouts.command import app as rollout

RUNNER = CliRunner()
APPS: dict[str, typer.Typer] = {
    "fleet": fleet, "registry": registry, "rollout": rollout, "rounds": rounds, "user": user, "access": access,
    "audit": audit, "monitor": monitor, "experiment": experiment, "alert": alert,
}  # fmt: skip
ASKED_AT = {"since_s", "until_s", "at_s"}


class TwoPlaces(ApiWorld):
    """A fleet with people and its API; commands reach it here, in its directory, and far away, at its service."""

    tokens: dict[str, str]
    path: Path

    def run(self, words: str, where: str, who: str = "root") -> str:
        """Run a command in the directory (``here``) or at the service (``far``), and return what it printed."""
        name, *rest = words.format(path=self.path).split("|" if "|" in words else None)
        places = {"here": ("--fleet", str(self.fleet.path)), "far": ("--server", str(self.client.base_url))}
        environment = {
            # At hand only approvals need an account.
            "UMBEL_API_TOKEN": self.tokens[who] if where == "far" or who != "root" else None,
            "UMBEL_SERVER_CA": str(self.fleet.ca_pem),
            "UMBEL_FLEET": None,
            "UMBEL_SERVER": None,
        }
        result = RUNNER.invoke(APPS[name], [*rest, *places[where]], env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout


def timeless(value: Any) -> Any:
    """Return JSON without the moments at which it was asked for."""
    match value:
        case dict():
            return {key: timeless(each) for key, each in value.items() if key not in ASKED_AT}
        case list():
            return [timeless(each) for each in value]
    return value
