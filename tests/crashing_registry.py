"""Kill a release, or a retirement, before each file that it puts in place and each commit, and look at what is left.

    python tests/crashing_registry.py publish FLEET PACKAGE OTHER     approved, and not released yet
    python tests/crashing_registry.py retire FLEET PACKAGE OTHER      released

OTHER is another package of the same version. It prints one line for each instant at which it was killed: the stage of the version, whether the fleet has signed it, and
whether the gateway would hand it out, before anybody repaired anything. Done again, it is as if nothing had happened.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from crashing import countdown, instants
from umbel_proto.errors import RefusedError
from umbel_server.access.actor import local_actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.registry.releasing import retire
from umbel_server.registry.versions import add
from umbel_server.store.registry import version_of
from umbel_server.store.store import Store
from umbel_server.trust.release import is_listed


def kill_at(number: int) -> None:
    """Let this process be killed just before the n-th file is in place or commit is done.

    That files are whole whenever a process dies is held to elsewhere.
    """
    step = countdown(number)

    def replace(source: Any, target: Any) -> None:
        step()
        rename(source, target)

    def committed(connection: Connection) -> None:
        if connection.get_execution_options().get("umbel_writes"):
            step()

    rename, os.replace = os.replace, replace
    event.listen(Engine, "commit", committed)


def do(what: str, fleet: FleetDir, package: bytes) -> None:
    """Publish version 1 of digits, or retire it."""
    with fleet.open_store() as store:
        if what == "publish":
            publish(fleet, store, package)
        else:
            retire(fleet, store, "digits", 1, local_actor(), reason="wrong")


def seen(fleet: FleetDir, store: Store) -> tuple[str, bool, bool]:
    """Return the stage, whether it is signed for devices, and whether the gateway hands it out."""
    with store.database.read() as connection:
        version = version_of(connection, "digits", 1)
    assert version is not None
    listed = is_listed(fleet, "digits", 1, clock=store.clock)
    offered = store.releases.get(version.sha256) is not None
    if listed or offered:
        assert version.sealed_s is not None
    return version.stage, listed, offered


def main(what: str, template: FleetDir, package: bytes, other: bytes) -> None:
    """Do what the module says."""
    tried = False
    work = lambda copy: do(what, FleetDir(copy, template.settings), package)  # noqa: E731
    for place, number, killed in instants(template.path, work, kill_at):
        if not killed:
            return
        fleet = FleetDir(place, template.settings)
        with fleet.open_store() as store:
            stage, listed, offered = seen(fleet, store)
            if (listed or offered) and not tried:
                tried = True
                try:
                    add(fleet, store, other, local_actor())
                except RefusedError:
                    pass
                else:
                    raise AssertionError(f"{number}: what devices may have was changed")
        do(what, fleet, package)
        with fleet.open_store() as store:
            wanted = ("released", True, True) if what == "publish" else ("retired", False, False)
            assert seen(fleet, store) == wanted, f"{number}: {seen(fleet, store)}"
        print(stage, "signed" if listed else "unsigned", "offered" if offered else "held", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], FleetDir.open(Path(sys.argv[2])), *(Path(each).read_bytes() for each in sys.argv[3:5]))
