"""Kill changes of a device's own files at each change of the disk and each SQL statement, and look at what is left.

    python tests/crashing_home.py WORLD     a directory: `tests/conformance/test_device_killed.py` makes it

It prints one line for each instant at which something was killed, and one where nothing was: what was going on, and whether
the device had the old or the new afterwards, or was nobody, before it did it again.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from cryptography import x509

from crashing import instants
from umbel._commands.data import export
from umbel._data.consent import Consent
from umbel._fleet.enroll import _settle, _take, _tls_key
from umbel._fleet.updater import check_root
from umbel._home.directory import DeviceHome
from umbel._home.files import read_file
from umbel._home.keys import EnrollmentKeys, load_ec_key
from umbel._releases.kept import Kept, keep
from umbel._releases.packages import QUANTIZED
from umbel._rounds.conditions import Conditions
from umbel._rounds.ledger import Ledger
from umbel_proto.enrollment import Token
from umbel_proto.errors import RefusedError
from umbel_proto.ids import RunId
from umbel_proto.privacy.ledger import Charge
from umbel_proto.wire import enrollment_pb2 as pb

OLD, NOBODY, NEW = "old", "nobody", "new"
WORLD = Path(sys.argv[1])
NOW_S = float((WORLD / "now").read_text())
TOKEN = Token.from_text((WORLD / "token").read_text())
RENEWED = pb.RenewReply.FromString((WORLD / "renewed").read_bytes())
INT8 = Kept.from_bytes((WORLD / "int8").read_bytes())


def old_or_new(new: bool) -> str:
    return NEW if new else OLD


def papers(home: DeviceHome) -> None:
    """Check that a device that has an identity has all that goes with it."""
    credential = home.open_credential(NOW_S)
    assert (credential.device, credential.identity_key) == (home.identity.device, home.signing_key().public)
    leaf = x509.load_pem_x509_certificate(read_file(home.tls_certificate))
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(read_file(home.ca_certificate)))
    assert leaf.public_key() == load_ec_key(read_file(home.tls_key)).public_key()
    load_ec_key(read_file(home.node_key))
    home.open_policy()
    home.release_authority()
    home.telemetry_seal_key()
    check_root(read_file(home.root))


# What is changed, and what there is afterwards


def apply(home: DeviceHome) -> None:
    """Begin to enroll, as `enroll` does before it asks the fleet."""
    home.make()
    Ledger.create(home.ledger).close()
    EnrollmentKeys.of_attempt(home.enrolling, TOKEN)


def applied(home: DeviceHome) -> str:
    if not home.enrolling.exists():
        return OLD
    Ledger(home.ledger).close()
    before = home.enrolling.read_bytes()
    EnrollmentKeys.of_attempt(home.enrolling, TOKEN)  # The keys that the fleet may know by now.
    assert home.enrolling.read_bytes() == before
    return NEW


def settle(home: DeviceHome) -> None:
    """Take what the fleet answered, as the end of `enroll` does."""
    if not home.enrolling.exists():
        return  # It was killed when there was nothing left to do.
    keys = EnrollmentKeys.of_attempt(home.enrolling, TOKEN)
    authority = x509.load_der_x509_certificate(TOKEN.ca_certificate)
    _settle(home, keys, authority, answer(home), TOKEN.enrollment, NOW_S)


def answer(home: DeviceHome) -> pb.EnrollReply:
    """Return what the fleet answered to the keys of a home."""
    name = home.path.name.removesuffix("-killed")
    return pb.EnrollReply.FromString((WORLD / f"{name}.reply").read_bytes())


def settled(home: DeviceHome) -> str:
    if not home.enrolled:
        assert home.enrolling.exists()  # Asked again, the fleet gives these keys the same device.
        return NOBODY
    papers(home)
    if read_file(home.tls_certificate) != answer(home).certificate:
        return OLD
    with Ledger(home.ledger) as ledger:
        assert [charge.run for charge in ledger.charges()] == ["past"]
    return NEW


def renew(home: DeviceHome) -> None:
    _take(home, RENEWED, _tls_key(home), NOW_S)


def renewed(home: DeviceHome) -> str:
    """Whether the certificate is the new one; then all is, and before that everything holds."""
    certificate = home.tls_certificate.read_bytes() == RENEWED.certificate
    papers(home)
    version = home.open_policy().version
    assert version == 2 if certificate else version in (1, 2), version
    if certificate:
        assert home.credential.read_bytes() == RENEWED.credential.SerializeToString()
    return old_or_new(certificate)


def demand(home: DeviceHome) -> None:
    Conditions(home, probes=()).require(idle=True)


def demanded(home: DeviceHome) -> str:
    return old_or_new(Conditions(home, probes=()).rules.idle)


def agree(home: DeviceHome) -> None:
    Consent(home, clock=lambda: NOW_S).grant()


def agreed(home: DeviceHome) -> str:
    return old_or_new(Consent(home).decision().state == "granted")


def charge(home: DeviceHome) -> None:
    spent = Charge(RunId("run"), 1, 0, bytes(32), 2**40, 1000, Fraction(10**13, 3), NOW_S)
    with Ledger(home.ledger) as ledger:
        try:
            ledger.charge(spent, budget_epsilon=math.inf, budget_delta=1e-6)
        except RefusedError:  # Done again after it was done: it is charged once.
            assert charged(home) == NEW


def charged(home: DeviceHome) -> str:
    with Ledger(home.ledger) as ledger:
        found = len(ledger.charges())
    assert found in (0, 1)
    return old_or_new(found == 1)


def quantize(home: DeviceHome) -> None:
    """Keep the int8 form that was made here of the package that is installed."""
    keep(home.shelf / "packages" / INT8.sha256, INT8)


def quantized(home: DeviceHome) -> str:
    file = home.shelf / "packages" / INT8.sha256 / QUANTIZED
    return old_or_new(file.exists() and Kept.from_bytes(file.read_bytes()).sha256 == INT8.sha256)


def write_out(home: DeviceHome) -> None:
    """Write the examples to a file, where an earlier export is, as  umbel data export  does."""
    assert export.callback is not None
    with contextlib.redirect_stdout(io.StringIO()):
        export.callback(file=home.path / "out.npz", model=None, home=home.path, as_json=False)


def written_out(home: DeviceHome) -> str:
    with np.load(home.path / "out.npz") as file:
        found = (len(file["x"]), len(file["y"]))
    assert found in ((1, 1), (3, 3)), found
    return old_or_new(found == (3, 3))


CHANGES: tuple[tuple[str, Callable[[DeviceHome], None], Callable[[DeviceHome], str]], ...] = (
    ("empty", apply, applied),
    ("first", settle, settled),
    ("again", settle, settled),
    ("enrolled", renew, renewed),
    ("enrolled", demand, demanded),
    ("enrolled", agree, agreed),
    ("enrolled", charge, charged),
    ("enrolled", quantize, quantized),
    ("enrolled", write_out, written_out),
)


def main() -> None:
    for template, change, left in CHANGES:
        for place, number, _ in instants(
            WORLD / template,
            lambda copy, change=change: change(DeviceHome(copy)),  # type: ignore[misc]
        ):
            home = DeviceHome(place)
            print(f"{template}.{change.__name__}", left(home), flush=True)
            change(home)
            assert left(home) == NEW, number
            drafts = [path for path in place.rglob("*") if path.name[0] == "." or ".new" in path.name]
            assert not drafts, (change.__name__, number, drafts)


if __name__ == "__main__":
    main()
