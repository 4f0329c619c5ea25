"""A fleet of real processes: Flower's SuperLink and SuperExec, and nodes of either kind.

Enrollment has happened already (``simulation/federation.py``); what runs here is everything after it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulation.federation import Federation
from umbel._rounds.ledger import Ledger
from umbel_proto.privacy.ledger import Charge
from umbel_server.control import Control
from umbel_server.demo.supervisor import Process, Supervisor
from umbel_server.fleet.ports import free_ports
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.run import PROGRESS
from umbel_server.store.store import Store
from umbel_server.superexec import flower_environment

START_S = 60.0


@dataclass(eq=False)
class LiveFleet:
    """A federation's processes.

    Args:
        federation: The enrolled fleet.
        supervisor: Holds the processes.
        store: The fleet's store.
        flower_run: Flower's number of the run.
    """

    federation: Federation
    supervisor: Supervisor
    store: Store
    superlink: Process = field(init=False)
    control: Control = field(init=False)
    flower_run: int = 0

    def __post_init__(self) -> None:
        fleet = self.federation.fleet
        gateway = self.supervisor.start("gateway", umbel("serve", "gateway", "--fleet", fleet.path))
        self.start_superlink()
        self.supervisor.wait("the gateway", lambda: gateway.says("ready gateway"), timeout_s=START_S)
        self.control = Control(fleet)
        for device in self.store.devices.all():
            self.store.devices.set_node_id(device.id, self.control.register(device.id, device.node_key))
        self.supervisor.start("superexec", umbel("serve", "superexec", "--fleet", fleet.path))

    def start_superlink(self) -> None:
        """Start the SuperLink, and return when it listens; also after it was killed."""
        log = self.federation.root / "log" / "superlink.log"
        before = log.read_text().count("ready superlink") if log.exists() else 0
        fleet = self.federation.fleet
        command = umbel("serve", "superlink", "--fleet", fleet.path)
        self.superlink = self.supervisor.start("superlink", command, flower_environment(fleet))
        self.supervisor.wait(
            "the SuperLink", lambda: log.read_text().count("ready superlink") > before, timeout_s=START_S
        )

    def start_device(self, number: int) -> Process:
        """Start a device as a user does."""
        home, data = self.federation.homes[number], self.federation.data[number]
        command = umbel("run", "--home", home.path, "--data", data)
        return self.supervisor.start(f"dev-{number}", command)

    def start_supernode(self, number: int) -> Process:
        """Start Flower's own node for a device."""
        home, data = self.federation.homes[number], self.federation.data[number]
        (port,) = free_ports(1, listen="127.0.0.1", taken=frozenset())
        command = [
            sys.executable,
            "-c",
            "from flwr.supernode.cli.flower_supernode import flower_supernode; flower_supernode()",
            f"--superlink={home.identity.superlink}",
            f"--root-certificates={home.ca_certificate}",
            f"--auth-supernode-private-key={home.node_key}",
            "--node-config",
            f'home="{home.path}" data="{data}"',
            "--isolation=subprocess",
            f"--port={port}",
        ]
        environment = {
            **flower_environment(self.federation.fleet),
            "FLWR_HOME": str(self.federation.root / f"flower-home-{number}"),
        }
        return self.supervisor.start(f"supernode-{number}", command, environment)

    def start_run(self, plan: RunPlan) -> None:
        """Start a run of the plan, named r1."""
        self.flower_run = self.control.start(self.federation.fleet, self.federation.create(plan))

    def wait_for_run(self, *, timeout_s: float) -> None:
        """Wait until the run has ended, one way or the other."""

        def ended() -> bool:
            return self.federation.record()[0].state != "running"

        self.supervisor.wait("the run to end", ended, timeout_s=timeout_s)

    def events(self) -> list[dict[str, Any]]:
        """Return what the run's server process has noted so far."""
        path = self.federation.fleet.runs / "r1" / PROGRESS
        if not path.exists():
            return []
        whole = path.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for_phase(self, round_: int, phase: str, *, timeout_s: float) -> None:
        """Wait until a phase of a round has begun."""

        def begun() -> bool:
            found = any(e["round"] == round_ and e.get("phase") == phase for e in self.events())
            assert found or self.federation.record()[0].state == "running"
            return found

        self.supervisor.wait(f"phase {phase} of round {round_}", begun, timeout_s=timeout_s)

    def wait_for_words(self, number: int, words: str, *, timeout_s: float) -> None:
        """Wait until a device has written words to its log."""
        self.wait_for_words_of_any([number], words, timeout_s=timeout_s)

    def wait_for_words_of_any(self, numbers: list[int], words: str, *, timeout_s: float) -> None:
        """Wait until one of the devices has written words to its log."""
        logs = [self.federation.root / "log" / f"dev-{number}.log" for number in numbers]
        self.supervisor.wait(
            f"{words!r} of a device of {numbers}",
            lambda: any(words in log.read_text() for log in logs),
            timeout_s=timeout_s,
        )

    def charges(self, number: int) -> list[Charge]:
        """Return what a device's ledger holds."""
        with Ledger(self.federation.homes[number].ledger) as ledger:
            return list(ledger.charges())


@contextlib.contextmanager
def live_fleet(federation: Federation) -> Iterator[LiveFleet]:
    """Run a federation's services; every process is ended at the end."""
    logs: Path = federation.root / "log"
    logs.mkdir()
    with federation.fleet.open_store() as store, Supervisor(logs) as supervisor:
        fleet = LiveFleet(federation, supervisor, store)
        try:
            yield fleet
        finally:
            fleet.control.close()


def umbel(*words: object) -> list[str]:
    """Return an ``umbel`` command line."""
    return [sys.executable, "-m", "umbel", *map(str, words)]
