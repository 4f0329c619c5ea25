"""A fleet in memory: real devices, a real server, and a network that does as the test says.

    fleet = Fleet(5, seed=1)
    fleet.vanish("d3", "mask")
    end = fleet.run_round()
    assert isinstance(end, Opened)
    assert (end.total == fleet.plain_sum(["d0", "d1", "d2", "d4"])).all()

A test that plays a liar stops before a phase with ``run_to``, changes what is in
``requests``, or answers for a device with ``answer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from umbel_proto.credentials import Credential, FleetPolicy, sign_credential
from umbel_proto.encoding import digest
from umbel_proto.errors import RemoteProtocolError
from umbel_proto.ids import DeviceId, FleetId, RunId
from umbel_proto.keys import SigningKey
from umbel_proto.privacy.encode import Encoding
from umbel_proto.privacy.rotate import smooth_length
from umbel_proto.secagg import device, server
from umbel_proto.secagg.masks import Words
from umbel_proto.secagg.session import Descriptor

FLEET = FleetId("meadow")
NOW_S = 1_800_000_000.0
PHASES = ("train", "share", "mask", "confirm", "unmask")
MODEL_HASH = digest("umbel/1/model", b"the model")
PLAN_HASH = digest("umbel/1/plan", b"the plan")

End: TypeAlias = server.Opened | server.Aborted


def policy(**changes: object) -> FleetPolicy:
    """A policy without noise, so that sums can be compared exactly."""
    plain = FleetPolicy(
        fleet=FLEET,
        corrupt_fraction=0.1,
        dropout_fraction=0.2,
        server_malicious=True,
        min_cohort=3,
        noise_floor=0.0,
        budget_epsilon=8.0,
        budget_delta=1e-6,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def encoding(dim: int = 40) -> Encoding:
    """An encoding without noise."""
    padded = smooth_length(dim)
    return Encoding(dim=dim, padded=padded, bits=32, clip=1.0, scale=64.0, bound_sq=2**20, noise=Fraction(0))


def descriptor(**changes: object) -> Descriptor:
    """The descriptor that fits ``policy()``."""
    plain = Descriptor(
        fleet=FLEET,
        run=RunId("run-1"),
        round=0,
        attempt=0,
        task="digits",
        model_hash=MODEL_HASH,
        plan_hash=PLAN_HASH,
        encoding=encoding(),
        min_cohort=3,
        max_cohort=1024,
        corrupt_fraction=0.1,
        dropout_fraction=0.2,
        server_malicious=True,
        closes_at_s=int(NOW_S) + 60,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


class Fleet:
    """Devices ``d0`` to ``d{n-1}`` and a server, run phase by phase.

    Args:
        n: How many devices.
        seed: Of the plain vectors; keys are always random.
        session: The descriptor.
        rules: The fleet's policy; by default one that allows the session.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int = 0,
        session: Descriptor | None = None,
        rules: FleetPolicy | None = None,
    ) -> None:
        self.descriptor = session or descriptor()
        self.policy = rules or policy(
            corrupt_fraction=self.descriptor.corrupt_fraction,
            dropout_fraction=self.descriptor.dropout_fraction,
            server_malicious=self.descriptor.server_malicious,
            min_cohort=self.descriptor.min_cohort,
        )
        self.authority = SigningKey.generate()
        self.ids = [DeviceId(f"d{i}") for i in range(n)]
        self.members = {name: self.enroll(name) for name in self.ids}
        self.devices: dict[DeviceId, device.State] = {
            name: device.Idle(member) for name, member in self.members.items()
        }
        chance = np.random.default_rng(seed)
        words = self.descriptor.encoding.words
        self.vectors: Mapping[DeviceId, Words] = {
            name: chance.integers(0, 2**64, words, np.uint64) for name in self.ids
        }
        self.server: server.State = server.open_session(
            self.descriptor, authority=self.authority.public, invited=self.ids, now_s=NOW_S
        )
        self.requests: dict[DeviceId, bytes] = dict.fromkeys(self.ids, self.descriptor.to_bytes())
        self.replies: dict[DeviceId, device.Reply] = {}
        self.refusals: dict[DeviceId, str] = {}
        self._vanished: dict[DeviceId, int] = {}
        self._phase = 0

    def enroll(self, name: DeviceId, *, not_after_s: int = int(NOW_S) + 3600) -> device.Member:
        """Give a device a key and a credential of this fleet."""
        identity = SigningKey.generate()
        credential = Credential(FLEET, name, identity.public, not_after_s)
        return device.Member(
            sign_credential(self.authority, credential), identity, self.policy, self.authority.public
        )

    def vanish(self, name: str, phase: str) -> None:
        """Let a device fall silent: it answers nothing from ``phase`` on."""
        self._vanished[DeviceId(name)] = PHASES.index(phase)

    def run_round(self, vectors: Mapping[DeviceId, Words] | None = None) -> End:
        """Run all phases that are left and return how the session ended."""
        if vectors is not None:
            self.vectors = vectors
        while not isinstance(self.server, server.Opened | server.Aborted):
            self.run_phase()
        return self.server

    def run_to(self, phase: str) -> None:
        """Run the phases before ``phase``: its requests are out, and nobody has answered."""
        while PHASES[self._phase] != phase:
            self.run_phase()

    def run_phase(self, without: Iterable[str] = ()) -> None:
        """Let everyone who is there answer, and close the phase."""
        for name in list(self.requests):
            if name not in without and self._vanished.get(name, len(PHASES)) > self._phase:
                self.ask_and_answer(name)
        self.close()

    def ask_and_answer(self, name: str) -> None:
        """Bring a device its request and the server its reply; a refusal makes it lost."""
        who = DeviceId(name)
        try:
            reply = self.ask(name)
        except RemoteProtocolError as refusal:
            self.refusals[who] = refusal.reason
            self.tell(server.Lost(who, refusal.reason))
            return
        self.answer(name, reply)

    def ask(self, name: str, request: bytes | None = None) -> device.Reply:
        """Bring a device its request of this phase, or another one, and return its reply."""
        who = DeviceId(name)
        event = self.event(name, self.requests[who] if request is None else request)
        self.devices[who], reply = device.step(self.devices[who], event)
        self.replies[who] = reply
        return reply

    def event(self, name: str, request: bytes) -> device.Event:
        """What a request of this phase is to a device."""
        kinds: dict[str, Callable[[], device.Event]] = {
            "train": lambda: device.Invited(request, MODEL_HASH, PLAN_HASH, NOW_S),
            "share": lambda: device.RosterReceived(request, NOW_S),
            "mask": lambda: device.SharesReceived(request, self.vectors[DeviceId(name)]),
            "confirm": lambda: device.SurvivorsReceived(request),
            "unmask": lambda: device.SignaturesReceived(request),
        }
        return kinds[PHASES[self._phase]]()

    def answer(self, name: str, reply: device.Reply) -> None:
        """Bring the server a device's reply; if it breaks a rule, the device is lost."""
        event = self.reply_event(name, reply)
        try:
            self.tell(event)
        except RemoteProtocolError as wrong:
            self.tell(server.Lost(DeviceId(name), wrong.reason))

    def reply_event(self, name: str, reply: device.Reply) -> server.Event:
        """What a device's reply of this phase is to the server."""
        who, phase = DeviceId(name), PHASES[self._phase]
        if phase == "mask":
            words = np.zeros(0, np.uint64) if reply.words is None else reply.words
            return server.MaskedSent(who, reply.message, words)
        kinds: dict[str, Callable[[DeviceId, bytes], server.Event]] = {
            "train": server.Joined,
            "share": server.SharesSent,
            "confirm": server.ConfirmedSent,
            "unmask": server.Revealed,
        }
        return kinds[phase](who, reply.message)

    def tell(self, event: server.Event) -> tuple[server.Outgoing, ...]:
        """Step the server."""
        self.server, outgoing = server.step(self.server, event)
        return outgoing

    def skip_the_server(self) -> None:
        """Go on to the next phase without the server: a liar asks in its place."""
        self._phase += 1

    def close(self) -> None:
        """End the phase; what the server then asks becomes the requests of the next."""
        outgoing = self.tell(server.Closed())
        self.requests = {request.device: request.message for request in outgoing}
        self._phase += 1

    def plain_sum(self, names: Iterable[str]) -> Words:
        """The sum modulo 2**64 that a round over these devices must give, in Python integers."""
        columns = zip(*(self.vectors[DeviceId(name)].tolist() for name in names), strict=True)
        return np.array([sum(column) % 2**64 for column in columns], np.uint64)
