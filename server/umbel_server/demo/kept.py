"""What ``umbel demo --keep`` leaves running: the fleet, with a past and a console, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from umbel_proto.errors import UmbelError
from umbel_server.clock import system_clock
from umbel_server.console.settings import ConsoleSettings
from umbel_server.demo.past.life import PARCELS, VANS, live
from umbel_server.demo.past.people import VISITOR, invite_visitor
from umbel_server.demo.past.vans import GENERATED
from umbel_server.demo.story import DEVICES, RUN, Story, umbel
from umbel_server.demo.supervisor import Supervisor
from umbel_server.files import PUBLIC_MODE, read_file, write_atomically
from umbel_server.fleet.layout import SETTINGS_FILE, FleetDir
from umbel_server.fleet.settings import address
from umbel_server.learning.begin import register
from umbel_server.registry.settings import Registry
from umbel_server.remote.login_command import printed_fingerprint
from umbel_server.store.store import Store

APPROVALS = 2
BANNER = (
    f"umbel demo: {DEVICES} devices, dev-1 to dev-{DEVICES}, and the model digits are real. The {VANS} devices tagged "
    f"{GENERATED}, van-…, the models parcels and stamps, and all that happened to them are made up."
)
SERVICES = ("rollouts", "alerts", "console")
PREDICT_EVERY_S = 30.0
"""How often one of the devices predicts, so that it has something to report."""
READY_S = 60.0


class Kept:
    """A fleet that goes on after the demo's story, with a console on it.

    Args:
        story: The story, told.
        supervisor: Holds its processes.
        console: Where people read what to do.
        out: The demo's directory, as it was named.
    """

    def __init__(self, story: Story, supervisor: Supervisor, console: Console, out: Path) -> None:
        self._story = story
        self._supervisor = supervisor
        self._console = console
        self._out = out
        self._fleet = _governed(story.fleet)

    def stay(self) -> None:
        """Make up a past, open the console, say how to get in, and watch over all of it until Ctrl-C.

        Raises:
            UmbelError: The past could not be made up, or a service ended.
        """
        with self._console.status("Making up a past for the console"):
            live(self._fleet, self._story.trained, now_s=system_clock())
        with self._fleet.open_store() as store:
            self._serve()
            self._show(invite_visitor(store))
            self._watch(store)

    def _serve(self) -> None:
        environment = {**os.environ, "UMBEL_FLEET": str(self._fleet.path)}
        running = {name: self._supervisor.start(name, umbel("serve", name), environment) for name in SERVICES}
        for name, process in running.items():
            self._supervisor.wait(name, partial(process.says, f"ready {name}"), timeout_s=READY_S)

    def _watch(self, store: Store) -> None:
        """Keep the devices predicting, one after the other. One that somebody shut out ends, and all else goes on."""
        devices = dict(self._story.devices)
        names, last_s, ended = sorted(devices), time.monotonic(), set[str]()
        while True:
            register(store, self._story.control)
            self._supervisor.check(but=devices.values())
            for name in {name for name, process in devices.items() if not process.running} - ended:
                ended.add(name)
                self._say(f"{name} has ended: {escape(devices[name].last_words())}")
            if time.monotonic() - last_s >= PREDICT_EVERY_S:
                name = names.pop(0)
                names.append(name)
                with contextlib.suppress(UmbelError):  # Somebody shut it out: its log says so.
                    command = self._story.predict_on(name)
                    self._supervisor.command(f"predict on {name}", command, idle=True).finish()
                last_s = time.monotonic()
            time.sleep(1)

    def _show(self, password: str) -> None:
        settings = self._fleet.settings.console
        url = f"https://{address(settings.listen, settings.port)}"
        ca = self._out / self._fleet.ca_pem.relative_to(self._fleet.path.parent)
        fingerprint = printed_fingerprint(read_file(self._fleet.ca_pem, "CA certificate").decode("ascii"))
        lines = [
            "",
            f"[bold]The console is at {url}/[/]",
            f"  sign in   as [bold]{VISITOR}[/], password [bold]{escape(password)}[/]  (of this demo only, and shown only here)",
            f"  trust     the authority in {escape(str(ca))}: let your browser trust it, or compare its SHA-256,",
            f"            {fingerprint}, with what the browser shows",
            f"  made up   {VANS} devices tagged {GENERATED}, two models and their past; dev-1 to dev-{DEVICES} and digits are real",
            "Look at:",
        ]
        lines += [f"  {url}{path:<28} {what}" for path, what in TOUR]
        lines.append("\nThe fleet is running. Ctrl-C ends it.")
        for line in lines:
            self._say(line)

    def _say(self, line: str) -> None:
        # As it is: a fingerprint has pairs between colons that would be shown as emoji.
        self._console.print(line, highlight=False, soft_wrap=True, emoji=False)


TOUR = (
    ("/", "the fleet at a glance"),
    (f"/drift?model={PARCELS}", "inputs that have drifted for three days, and what else moved with them"),
    (f"/rollouts/{PARCELS}-4", "a canary under way: whom it has reached, and what its gates say"),
    (f"/rollouts/{PARCELS}-3", "a rollout that its latency gate took back by itself"),
    (f"/approvals/{PARCELS}/5", "a version that waits for one more approval: yours"),
    (f"/fairness?model={PARCELS}", "two cohorts that are treated otherwise than the others"),
    ("/alerts", "what fires, and what somebody looks at already"),
    (f"/runs/{RUN}", "the private rounds that you have just seen"),
)


def _governed(fleet: FleetDir) -> FleetDir:
    """Let a fleet ask for approvals from now on, and its console say that this is a demo."""
    console: ConsoleSettings = replace(fleet.settings.console, banner=BANNER)
    settings = replace(fleet.settings, console=console, registry=Registry(approvals=APPROVALS))
    write_atomically(fleet.path / SETTINGS_FILE, settings.to_toml().encode(), mode=PUBLIC_MODE)
    return FleetDir(fleet.path, settings)
