"""Law: a device that is killed while it enrolls or writes its own files has the old ones or the new, and goes on."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np

from crashing import crashed
from device_world import World
from model_packages import digits, opened, release, shelf
from umbel._data.dataset import open_data
from umbel._fleet.channel import Gateway, call
from umbel._fleet.enroll import _apply, _csr, _kept_keys, _tls_key
from umbel._home.directory import DeviceHome
from umbel._home.keys import EnrollmentKeys
from umbel._quantize.quantize import calibrated
from umbel._releases.kept import Kept, graphs_of
from umbel._rounds.ledger import Ledger
from umbel_proto.credentials import sign_policy
from umbel_proto.enrollment import Token
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.fleet.invite import invite


def let_in(home: DeviceHome, token: Token) -> pb.EnrollReply:
    """Ask the fleet to let a device in, and return its answer, with a charge of a round that it was in long ago."""
    home.make()
    Ledger.create(home.ledger).close()
    ca_pem = token_authority(token)
    keys = EnrollmentKeys.of_attempt(home.enrolling, token, _kept_keys(home, ca_pem, ""))
    reply = _apply(keys, token, token.enrollment, ca_pem, "")
    past = pb.PastCharge(run="past", round=1, bound_sq="1", coordinates=8, variance="1/2")
    reply.charges.append(past)
    return reply


def token_authority(token: Token) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_der_x509_certificate(token.ca_certificate).public_bytes(Encoding.PEM)


def make(world: World, root: Path) -> None:
    """Make what ``crashing_home.py`` takes: devices at the moment before each change, and what the fleet answered."""
    home = world.device("d1")
    installed = shelf(home.path).install(release(2))
    with open_data(home, shelf(home.path), "digits") as data:
        data.add(digits().train.x[:3], digits().train.y[:3], source="user")
    np.savez(home.path / "out.npz", x=digits().train.x[:1], y=digits().train.y[:1])
    shutil.copytree(home.path, root / "enrolled")
    (root / "empty").mkdir()

    package = opened(release(2))
    tensors, ranges = calibrated(package, package.parameters(), digits().train.x[:64])
    kept = Kept(installed.sha256, graphs_of(package), "int8", True, tensors, ranges)
    (root / "int8").write_bytes(kept.to_bytes())

    token = invite(world.fleet, world.store, uses=2)
    (root / "token").write_text(token.to_text())
    again = world.device("d2")
    for name, path in (("first", root / "first"), ("again", again.path)):
        (root / f"{name}.reply").write_bytes(let_in(DeviceHome(path), token).SerializeToString())
    shutil.copytree(again.path, root / "again")

    newer = dataclasses.replace(world.fleet.policy(), version=2)
    world.fleet.policy_bin.write_bytes(sign_policy(world.fleet.authority_signer(), newer))
    with Gateway(home, now_s=world.clock.now_s) as gateway:
        reply: pb.RenewReply = call(
            gateway.membership.Renew, pb.RenewRequest(csr=_csr(_tls_key(home))), gateway.address
        )
    (root / "renewed").write_bytes(reply.SerializeToString())
    (root / "now").write_text(str(world.clock.now_s))


def test_a_device_killed_at_any_instant_has_the_old_or_the_new_and_goes_on(
    world: World, tmp_path: Path
) -> None:
    make(world, tmp_path)
    lines = [line.split() for line in crashed("crashing_home.py", tmp_path)]
    found = {change: [left for each, left in lines if each == change] for change, _ in lines}
    # Old for a while, then new for good: no instant is between. A device that enrolls is nobody in between, if it asks again.
    way = {"first.settle": ["nobody", "new"], "again.settle": ["old", "nobody", "new"]}
    for change, left in found.items():
        assert [each for each, _ in itertools.groupby(left)] == way.get(change, ["old", "new"]), change
    few = {
        "empty.apply": 10,
        "first.settle": 60,
        "again.settle": 60,
        "enrolled.renew": 20,
        "enrolled.demand": 5,
        "enrolled.agree": 5,
        "enrolled.charge": 5,
        "enrolled.quantize": 5,
        "enrolled.write_out": 5,
    }
    assert found.keys() == few.keys()
    assert [change for change, left in found.items() if len(left) < few[change]] == []
