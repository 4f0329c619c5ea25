"""Kill changes of a device's own files at each change of the disk and each SQL statement, and look at what is left.

A program that tests run: its children are forked from a process that has no threads.

    python tests/crashing_home.py HOME REPLY NOW_S ROOT     an enrolled device, what the gateway answered to its renewal, the
                                                            time, an empty directory

It prints one line for each instant at which something was killed, and one where nothing was: what was going on, and whether
the device had the old or the new afterwards, before it did it again.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import crashing
import crashing_data
from umbel._data.consent import Consent
from umbel._fleet.enroll import _take, _tls_key
from umbel._home.directory import DeviceHome
from umbel._rounds.conditions import Conditions
from umbel._rounds.ledger import Ledger
from umbel_proto.errors import RefusedError
from umbel_proto.ids import RunId
from umbel_proto.privacy.ledger import Charge
from umbel_proto.wire import enrollment_pb2 as pb

Change = Callable[[DeviceHome], None]
Left = Callable[[DeviceHome], bool]

REPLY = pb.RenewReply()
NOW_S = 0.0


def renew(home: DeviceHome) -> None:
    _take(home, REPLY, _tls_key(home), NOW_S)


def renewed(home: DeviceHome) -> bool:
    """Whether the certificate is the new one; then all is, and before that everything holds."""
    certificate = home.tls_certificate.read_bytes() == REPLY.certificate
    home.open_credential(NOW_S)
    home.certificate_validity()
    home.telemetry_seal_key()
    version = home.open_policy().version
    assert version == 2 if certificate else version in (1, 2), version
    if certificate:
        assert home.credential.read_bytes() == REPLY.credential.SerializeToString()
    return certificate


def demand(home: DeviceHome) -> None:
    Conditions(home, probes=()).require(idle=True)


def demanded(home: DeviceHome) -> bool:
    return Conditions(home, probes=()).rules.idle


def agree(home: DeviceHome) -> None:
    Consent(home, clock=lambda: NOW_S).grant()


def agreed(home: DeviceHome) -> bool:
    return Consent(home).decision().state == "granted"


def charge(home: DeviceHome) -> None:
    spent = Charge(RunId("run"), 1, 0, bytes(32), 2**40, 1000, Fraction(10**13, 3), NOW_S)
    with Ledger(home.ledger) as ledger:
        try:
            ledger.charge(spent, budget_epsilon=math.inf, budget_delta=1e-6)
        except RefusedError:  # Done again after it was done: it is charged once.
            assert charged(home)


def charged(home: DeviceHome) -> bool:
    with Ledger(home.ledger) as ledger:
        found = len(ledger.charges())
    assert found in (0, 1)
    return found == 1


def killed(home: DeviceHome, change: Change, kill_at: Callable[[int], None], number: int) -> bool:
    """Make a change in a child that is killed at an instant; False if it was done before that."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"{change.__name__} {number}: {code}"
        return code != 0
    code = 70  # Whatever was raised.
    try:
        kill_at(number)
        change(home)
        code = 0
    finally:
        os._exit(code)


def main(template: Path, root: Path) -> None:
    changes: list[tuple[Change, Left, Callable[[int], None]]] = [
        (renew, renewed, crashing.kill_at),
        (demand, demanded, crashing.kill_at),
        (agree, agreed, crashing.kill_at),
        (charge, charged, crashing_data.kill_at),
    ]
    for change, is_new, kill_at in changes:
        for number in itertools.count(1):
            place = root / "killed"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(template, place)
            home = DeviceHome(place)
            going_on = killed(home, change, kill_at, number)
            print(change.__name__, "new" if is_new(home) else "old", flush=True)
            change(home)
            assert is_new(home)
            if not going_on:
                break


if __name__ == "__main__":
    REPLY = pb.RenewReply.FromString(Path(sys.argv[2]).read_bytes())
    NOW_S = float(sys.argv[3])
    main(Path(sys.argv[1]), Path(sys.argv[4]))
