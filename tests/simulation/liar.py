"""A server that lies to real devices.

An honest run over real devices is recorded first: what each was asked in each phase, and what it kept. A liar
then takes a copy of a device at any of these moments, asks it something else, and goes on honestly after it::

    liar = Liar(tmp_path)
    stage = liar.stage(MASK)                # dev-0 is about to be asked for its update
    device = stage.device()
    with pytest.raises(UmbelError):
        device.ask(MASK, Payload(stage.other.request.body))
    device.go_on(MASK)

Devices are enrolled over the real gateway, train on real data and keep real ledgers; a copy is the whole home.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from simulation.federation import FLEET, Federation, MemoryLink
from umbel._home.directory import DeviceHome
from umbel._rounds.ledger import Ledger
from umbel._rounds.participant import Participant, Saved
from umbel_proto.credentials import Credential, FleetPolicy, sign_credential
from umbel_proto.encoding import enc
from umbel_proto.errors import UmbelError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.privacy.ledger import Charge
from umbel_proto.secagg import device as protocol
from umbel_proto.secagg import server
from umbel_proto.secagg.boxes import Held, Lane, seal_shares
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.entries import JOIN_LABEL
from umbel_proto.secagg.messages import (
    Confirmations,
    JoinEntry,
    Roster,
    SealedShares,
    Survivors,
    to_bitmap,
)
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_proto.secagg.session import Descriptor, entry_hash, model_hash, plan_hash, session_id
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.link import Answer, NodeId, Payload

ORDER = (TRAIN, SHARE, MASK, CONFIRM, UNMASK)
DEVICES = 5
STRICT = FleetPolicy(FLEET, 0.1, 0.2, True, 4, 0.5, 40.0, 1e-5)
"""Five devices make a complete graph with t = 4; four survivors suffice; the budget covers many rounds."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A device about to be asked.

    Args:
        request: What an honest server asks.
        saved: What the device kept from the phase before.
        answer: What it answered.
    """

    request: Payload
    saved: Saved | None
    answer: Payload


class Recorder(MemoryLink):
    """Keeps every moment of the rounds it carries, by (round, kind, node)."""

    def __init__(self, participants: Mapping[NodeId, Participant]) -> None:
        super().__init__(participants)
        self.moments: dict[tuple[int, str, NodeId], Moment] = {}
        self._round = 0

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        self._round += kind == TRAIN
        return super().send(kind, group, payloads, ttl_s=ttl_s)

    def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
        before = None if kind == TRAIN else self.saved.get(node)
        answer = super().answer(node, kind, payload)
        assert answer.payload is not None, answer.reason
        self.moments[self._round, kind, node] = Moment(payload, before, answer.payload)
        return answer


class Device:
    """A real device at one moment, with a home of its own.

    Args:
        home: A copy of its home.
        data: Its training data.
        moments: What an honest server would ask it, by kind.
        kind: What it is about to be asked.
        clock: Tells it the time.
    """

    def __init__(
        self,
        home: DeviceHome,
        data: Path,
        moments: Mapping[str, Moment],
        kind: str,
        clock: Callable[[], float],
    ) -> None:
        self.home = home
        self.moments = moments
        self.saved = moments[kind].saved
        self.vectors: list[bytes] = []
        self.participant = Participant(home, data, clock=clock)

    def ask(self, kind: str, request: Payload) -> Payload:
        """Ask it something. As every host does, it keeps what it kept when it refuses."""
        body, vector, self.saved = self.participant.answer(kind, request.body, request.vector, self.saved)
        if vector:
            self.vectors.append(vector)
        return Payload(body, vector)

    def go_on(self, kind: str) -> None:
        """Ask it, from ``kind`` on, what an honest server asks. Its invitation leads no further: its keys are new."""
        for each in ORDER[ORDER.index(kind) :]:
            assert self.ask(each, self.moments[each].request).body
            if each == TRAIN:
                return

    def charges(self) -> tuple[Charge, ...]:
        with Ledger(self.home.ledger) as ledger:
            return ledger.charges()

    def spend(self, charge: Charge, times: int) -> None:
        """Charge it for as many other sessions as that."""
        with Ledger(self.home.ledger) as ledger:
            for number in range(times):
                other = replace(charge, sid=number.to_bytes(32, "big"))
                ledger.charge(other, budget_epsilon=float("inf"), budget_delta=STRICT.budget_delta)


class Liar:
    """Holds a fleet of real devices and the record of an honest run of two rounds.

    Args:
        root: A directory of its own.
        policy: What the devices insist on.
    """

    def __init__(self, root: Path, *, policy: FleetPolicy = STRICT) -> None:
        self.federation = Federation(root / "honest", DEVICES, policy=policy)
        self.authority: SigningKey = self.federation.fleet.authority_signer()
        self._copies = (root / f"copy-{i}" for i in itertools.count())
        self._pristine = [self._copy(home.path) for home in self.federation.homes]
        self.now_s = time.time()
        """When the run begins; on the clocks of the copies it stays this time, so that no session closes."""
        link = Recorder(self.federation.participants())
        plan = self.federation.plan(rounds=2, clip=2.0, noise_multiplier=2.0)
        record, _ = self.federation.run(link, plan)
        assert record.state == "finished"
        self.moments = link.moments

    def stage(self, kind: str, *, number: int = 0, round_: int = 1) -> Stage:
        """Return the moment before ``kind`` is asked of a device."""
        return Stage(self, kind, number, round_)

    def copy(self, number: int) -> DeviceHome:
        """Return a copy of a device's home as it was before the run: its ledger is empty."""
        return DeviceHome(self._copy(self._pristine[number]))

    def member(self, number: int) -> tuple[SigningKey, bytes]:
        """Return identity key and credential of a device: what the server has of one that it corrupted."""
        home = self.federation.homes[number]
        return home.signing_key(), home.credential.read_bytes()

    def accomplice(
        self,
        name: str,
        *,
        authority: SigningKey | None = None,
        fleet: FleetId = FLEET,
        not_after_s: int | None = None,
    ) -> tuple[SigningKey, bytes]:
        """Return identity key and credential of a device that the server made up."""
        identity = SigningKey.generate()
        until = int(self.now_s) + 3600 if not_after_s is None else not_after_s
        credential = Credential(fleet, DeviceId(name), identity.public, until)
        return identity, sign_credential(authority or self.authority, credential)

    def _copy(self, path: Path) -> Path:
        return Path(shutil.copytree(path, next(self._copies)))


@dataclass(frozen=True, slots=True)
class Stage:
    """What a liar has to work with: a device at one moment, and the honest messages of its session.

    Args:
        liar: The fleet.
        kind: What the device is about to be asked.
        number: Which device.
        round: Which session, 1 or 2.
    """

    liar: Liar
    kind: str
    number: int
    round: int

    @property
    def name(self) -> DeviceId:
        return DeviceId(f"dev-{self.number}")

    @property
    def moments(self) -> Mapping[str, Moment]:
        node = Federation.node(self.number)
        return {kind: self.liar.moments[self.round, kind, node] for kind in ORDER}

    @property
    def request(self) -> Payload:
        """What an honest server sends."""
        return self.moments[self.kind].request

    @property
    def other(self) -> Stage:
        """The same device at the same moment of the other session."""
        return replace(self, round=3 - self.round)

    def of(self, number: int) -> Stage:
        """The same moment at another device."""
        return replace(self, number=number)

    def at(self, kind: str) -> Stage:
        """The same device at another moment."""
        return replace(self, kind=kind)

    def device(self, *, clock: Callable[[], float] | None = None) -> Device:
        """Return a fresh copy of the device."""
        data = self.liar.federation.data[self.number]
        return Device(self.liar.copy(self.number), data, self.moments, self.kind, clock or self.now)

    def now(self) -> float:
        """What the device's clock says, Unix seconds."""
        return self.liar.now_s

    # What an honest server sends, read.

    @property
    def invitation(self) -> pb.TrainRequest:
        return pb.TrainRequest.FromString(self.moments[TRAIN].request.body)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor.from_bytes(self.invitation.descriptor)

    @property
    def sid(self) -> bytes:
        return session_id(self.invitation.descriptor)

    @property
    def model(self) -> bytes:
        return self.moments[TRAIN].request.vector

    @property
    def roster(self) -> Roster:
        return Roster.from_bytes(self.moments[SHARE].request.body, "server")

    @property
    def shares(self) -> SealedShares:
        return SealedShares.from_bytes(self.moments[MASK].request.body, "server")

    @property
    def survivors(self) -> Survivors:
        return Survivors.from_bytes(self.moments[CONFIRM].request.body, "server")

    @property
    def confirmations(self) -> Confirmations:
        return Confirmations.from_bytes(self.moments[UNMASK].request.body, "server")

    # What a liar makes of it.

    def invite(
        self,
        *,
        model: bytes | None = None,
        plan: Mapping[str, object] | None = None,
        beside: Sequence[tuple[str, float, float]] | None = None,
        **changes: object,
    ) -> Payload:
        """Return an invitation to another session, whose hashes are right for what it brings.

        Args:
            model: Other parameters.
            plan: Changed fields of the plan.
            beside: What to ask for beside the update: (name, low, high).
            changes: Changed fields of the descriptor.
        """
        vector = self.model if model is None else model
        training = pb.TrainPlan.FromString(self.invitation.plan)
        for field, value in (plan or {}).items():
            setattr(training, field, value)
        if beside is not None:
            del training.auxiliary[:]
            training.auxiliary.extend(
                pb.Quantity(name=name, low=low, high=high) for name, low, high in beside
            )
        raw = training.SerializeToString(deterministic=True)
        whole = {"model_hash": model_hash(vector), "plan_hash": plan_hash(raw), **changes}
        descriptor = replace(self.descriptor, **whole)  # type: ignore[arg-type]
        return self.raw_invitation(descriptor.to_bytes(), raw, vector)

    def raw_invitation(
        self, descriptor: bytes | None = None, plan: bytes | None = None, model: bytes | None = None
    ) -> Payload:
        """Return an invitation of these bytes; the honest ones where none are given."""
        request = pb.TrainRequest(
            descriptor=self.invitation.descriptor if descriptor is None else descriptor,
            plan=self.invitation.plan if plan is None else plan,
        )
        body = request.SerializeToString(deterministic=True)
        return Payload(body, self.model if model is None else model)

    def entry(
        self,
        name: str,
        identity: SigningKey,
        credential: bytes,
        *,
        sid: bytes | None = None,
        keys: list[bytes] | None = None,
    ) -> bytes:
        """Return a join entry with keys that the liar knows."""
        fresh = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
        keys = keys or fresh
        signature = identity.sign(JOIN_LABEL, enc(sid or self.sid, name, *keys, bytes(32)))
        return JoinEntry(credential, *keys, bytes(32), signature).to_bytes()

    def roster_with(self, victim: int, entry: bytes, name: str | None = None) -> Payload:
        """Return the roster with another entry for a neighbor, and its hash put right."""
        roster = self.roster
        old = DeviceId(f"dev-{victim}")
        rows = tuple(
            (DeviceId(name or row), entry_hash(entry)) if row == old else (row, hash_)
            for row, hash_ in roster.rows
        )
        place = [row for row, _ in roster.rows if row != self.name].index(old)
        entries = (*roster.entries[:place], entry, *roster.entries[place + 1 :])
        return Payload(replace(roster, rows=rows, entries=entries).to_bytes())

    def surviving(self, *numbers: int) -> Payload:
        """Return the request to confirm these survivors."""
        return Payload(replace(self.survivors, bitmap=to_bitmap(numbers, DEVICES)).to_bytes())

    def confirmed_by(self, *numbers: int, survivors: tuple[int, ...]) -> Payload:
        """Return confirmations of a set of survivors by devices whose keys the server has."""
        base = self.confirmations
        body = enc(base.sid, base.roster_hash, to_bitmap(survivors, DEVICES))
        signatures = tuple(
            (i, self.liar.member(i)[0].sign(protocol.CONFIRM_LABEL, body)) for i in sorted(numbers)
        )
        return Payload(replace(base, signatures=signatures).to_bytes())


class Session:
    """A session that the liar itself holds with real devices, honestly until the test stops it.

    Args:
        liar: The fleet.
        devices: The real devices, by number.
        invitation: What they are sent first.
    """

    def __init__(self, liar: Liar, devices: Mapping[int, Device], invitation: Payload) -> None:
        self.devices = {DeviceId(f"dev-{number}"): device for number, device in devices.items()}
        self.requests = dict.fromkeys(self.devices, invitation)
        self.reasons: dict[DeviceId, str] = {}
        self._state: server.State = server.open_session(
            Descriptor.from_bytes(pb.TrainRequest.FromString(invitation.body).descriptor),
            authority=liar.authority.public,
            invited=self.devices,
            now_s=liar.now_s,
        )

    def run(self, until: str | None = None) -> server.State:
        """Go through the phases before ``until``, or all: what devices refuse is in ``reasons``."""
        for kind in ORDER:
            if kind == until or isinstance(self._state, server.Opened | server.Aborted):
                break
            for name, request in self.requests.items():
                try:
                    event = _event(name, kind, self.devices[name].ask(kind, request))
                except UmbelError as refusal:
                    self.reasons[name] = str(refusal)
                    event = server.Lost(name, str(refusal))
                self._state, _ = server.step(self._state, event)
            self._state, outgoing = server.step(self._state, server.Closed())
            self.requests = {out.device: Payload(out.message) for out in outgoing}
        return self._state


def _event(name: DeviceId, kind: str, answer: Payload) -> server.Event:
    if kind == MASK:
        return server.MaskedSent(name, answer.body, np.frombuffer(answer.vector, "<u8").astype(np.uint64))
    kinds: Mapping[str, Callable[[DeviceId, bytes], server.Event]] = {
        TRAIN: server.Joined,
        SHARE: server.SharesSent,
        CONFIRM: server.ConfirmedSent,
        UNMASK: server.Revealed,
    }
    return kinds[kind](name, answer.body)


class Alone:
    """A session in which every device but the first is the server's own, corrupt or made up.

    Args:
        stage: Any moment of the device.
        device: The device.
        invitation: What it is sent first.
        mask_keys: Mask keys to show in place of honest ones, by number.
    """

    def __init__(
        self, stage: Stage, device: Device, invitation: Payload, mask_keys: Mapping[int, bytes] | None = None
    ) -> None:
        self._name = stage.name
        self._sid = session_id(pb.TrainRequest.FromString(invitation.body).descriptor)
        self._entry = device.ask(TRAIN, invitation).body
        self._keys = {DeviceId(f"dev-{i}"): X25519PrivateKey.generate() for i in range(1, DEVICES)}
        entries = []
        for i, key in enumerate(self._keys.values(), 1):
            public = key.public_key().public_bytes_raw()
            keys = [(mask_keys or {}).get(i, public), public]
            entries.append(stage.entry(f"dev-{i}", *stage.liar.member(i), sid=self._sid, keys=keys))
        names = (self._name, *self._keys)
        rows = tuple(zip(names, map(entry_hash, (self._entry, *entries)), strict=True))
        roster = Roster(self._sid, rows, tuple(entries))
        answer = device.ask(SHARE, Payload(roster.to_bytes()))
        self._sent = SealedShares.from_bytes(answer.body, self._name)

    def shares(self, *without: int) -> Payload:
        """Return the request for the masked update, with boxes that open, but for those of some devices."""
        mine = JoinEntry.from_bytes(self._entry, self._name).share_key
        boxes = []
        for i, (name, key) in enumerate(self._keys.items(), 1):
            if i not in without:
                lane = Lane(self._sid, self._sent.roster_hash, name, self._name)
                boxes.append((i, seal_shares(Held(bytes(32), bytes(32)), lane.key(key, mine), lane)))
        return Payload(replace(self._sent, boxes=tuple(boxes)).to_bytes())


@dataclass(frozen=True, slots=True)
class Crowd:
    """A session of one real device among many accomplices: large enough for a sparse graph.

    Args:
        device: The device; it has joined.
        roster: What an honest server would show it.
        entries: Everyone's entry but its own.
        degree: How many neighbors it has.
    """

    device: Device
    roster: Roster
    entries: tuple[bytes, ...]
    degree: int

    @classmethod
    def around(cls, stage: Stage, size: int) -> Crowd:
        invitation = stage.invite(max_cohort=size)
        descriptor = Descriptor.from_bytes(pb.TrainRequest.FromString(invitation.body).descriptor)
        sid = session_id(descriptor.to_bytes())
        device = stage.device()
        entries = {stage.name: device.ask(TRAIN, invitation).body}
        for i in range(1, size):
            name = DeviceId(f"fake-{i:03}")
            entries[name] = stage.entry(name, *stage.liar.accomplice(name), sid=sid)
        state: server.State = server.open_session(
            descriptor, authority=stage.liar.authority.public, invited=entries, now_s=stage.liar.now_s
        )
        for name, entry in entries.items():
            state, _ = server.step(state, server.Joined(name, entry))
        state, outgoing = server.step(state, server.Closed())
        (mine,) = (out.message for out in outgoing if out.device == stage.name)
        others = tuple(entry for name, entry in entries.items() if name != stage.name)
        degree = descriptor.graph_parameters(size).degree
        return cls(device, Roster.from_bytes(mine, "server"), others, degree)
