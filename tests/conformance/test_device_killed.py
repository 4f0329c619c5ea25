"""Law: a device that is killed while it writes its papers, rules, consent or a charge has the old ones or the new, and goes on."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from device_world import World
from umbel._fleet.channel import Gateway, call
from umbel._fleet.enroll import _csr, _tls_key
from umbel_proto.credentials import sign_policy
from umbel_proto.wire import enrollment_pb2 as pb

PROGRAM = Path(__file__).parents[1] / "crashing_home.py"


def test_a_device_killed_at_any_instant_has_the_old_or_the_new_and_goes_on(
    world: World, tmp_path: Path
) -> None:
    home = world.device("d1")
    newer = dataclasses.replace(world.fleet.policy(), version=2)
    world.fleet.policy_bin.write_bytes(sign_policy(world.fleet.authority_signer(), newer))
    with Gateway(home, now_s=world.clock.now_s) as gateway:
        asked = pb.RenewRequest(csr=_csr(_tls_key(home)))
        reply: pb.RenewReply = call(gateway.membership.Renew, asked, gateway.address)
    (tmp_path / "reply").write_bytes(reply.SerializeToString())
    (tmp_path / "root").mkdir()
    done = subprocess.run(
        [sys.executable, PROGRAM, home.path, tmp_path / "reply", str(world.clock.now_s), tmp_path / "root"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    instants = [line.split() for line in done.stdout.splitlines()]
    found = {change: [left for each, left in instants if each == change] for change, _ in instants}
    assert found.keys() == {"renew", "demand", "agree", "charge"}
    for change, left in found.items():
        # Old for a while, then new for good: no instant is between.
        assert left == sorted(left, reverse=True), change
        assert {"old", "new"} == set(left), change
        assert len(left) > 4, change
    assert len(found["renew"]) > 20
