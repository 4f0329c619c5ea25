"""The devices of the past: enrolled with keys of their own, tagged, asking for releases, and sending sealed reports."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from umbel_proto.ids import DeviceId, ModelName
from umbel_proto.keys import SigningKey
from umbel_proto.report import PACKED, pack
from umbel_proto.seal import seal
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.access.actor import Actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.opener import Opener
from umbel_server.rollouts.offers import Offers
from umbel_server.store.admission import Application
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store

GENERATED = "generated"
"""The tag of every device that is made up."""
CERTIFICATE_S = 86400.0
FACTS = (
    {"arch": "aarch64", "os": "linux", "memory_mib": 3800, "engine": "onnx"},
    {"arch": "aarch64", "os": "linux", "memory_mib": 1900, "engine": "onnx"},
    {"arch": "x86_64", "os": "linux", "memory_mib": 7800, "engine": "onnx"},
)


@dataclass(eq=False)
class Vans:
    """Devices that are made up.

    Args:
        fleet: Their fleet.
        store: Its store, whose clock dates what they do.
        models: The models that they take; the real devices have another.
        names: Who they are, once they are enrolled.
        has: Which version of each model answers on them.
    """

    fleet: FleetDir
    store: Store
    models: frozenset[ModelName]
    names: list[DeviceId] = field(default_factory=list)
    has: dict[DeviceId, dict[ModelName, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tls: dict[DeviceId, bytes] = {}
        self._offers = Offers(self.store.releases, self.store.placements)
        self._opener = Opener(self.store, self.fleet.telemetry_private())

    def enroll(self, count: int, tags: Mapping[str, slice], *, actor: Actor) -> None:
        """Let devices in, and put them into groups.

        Args:
            count: How many.
            tags: Which of them are in which group.
            actor: Who invites and tags them.
        """
        token = self.store.tokens.issue(valid_s=3600, uses=count, actor=actor)
        for number in range(count):
            name, facts = f"van-{number + 1:02d}", json.dumps(FACTS[number % len(FACTS)])
            node, tls = (
                _public(ec.generate_private_key(curve)) for curve in (ec.SECP384R1(), ec.SECP256R1())
            )
            identity = SigningKey.generate().public
            tls_hash = hashlib.sha256(tls).digest()
            asks = Application(token, name, identity, node, tls_hash, facts)
            device = self.store.devices.enroll(asks, certificate_life_s=CERTIFICATE_S)
            self.names.append(device.id)
            self.has[device.id], self._tls[device.id] = {}, tls_hash
        for number, device_id in enumerate(self.names):
            mine = [tag for tag, which in tags.items() if number in range(count)[which]]
            self.store.placements.tag(device_id, [GENERATED, *mine], actor=actor)

    def ask(self, devices: Iterable[DeviceId]) -> None:
        """Let devices ask for releases, take what they are offered, and say what they have."""
        for device in devices:
            has = self.has[device]
            before = dict(has)
            for offer in self._offers.for_device(device, _plain(has), ()):
                release = offer.release
                newer = offer.back or release.version > has.get(release.model, 0)
                if release.model in self.models and newer:
                    has[release.model] = release.version
            if has != before:
                self._offers.for_device(device, _plain(has), ())

    def heard(self, devices: Iterable[DeviceId]) -> None:
        """Keep that devices have called just now, and that their certificates are of this hour, as they renew them."""
        now_s = self.store.clock()
        called = dict.fromkeys(devices, now_s)
        self.store.devices.seen(called)
        for device in called:
            tls = self._tls[device]
            self.store.devices.renewed(device, not_after_s=now_s + CERTIFICATE_S, tls_key_hash=tls)

    def send(self, reports: Mapping[DeviceId, Sequence[pb.Window]]) -> None:
        """Seal what devices report as they would, store it as the gateway does, and open it as the opener does."""
        for device, windows in reports.items():
            self.store.batches.append(device, [self._sealed(device, windows)])
        while self._opener.run_once():
            pass

    def _sealed(self, device: DeviceId, windows: Sequence[pb.Window]) -> Arrival:
        to, now_s = self.fleet.telemetry_public(), int(self.store.clock())
        header = pb.BatchHeader(
            schema=PACKED,
            suite=to.suite,
            key_id=to.key_id,
            fleet_id=self.fleet.name,
            device_id=device,
            batch_id=secrets.token_bytes(16),
            sequence=now_s,
            created_s=now_s,
        )
        raw, batch = header.SerializeToString(), pack(pb.Batch(windows=windows))
        return Arrival(header.batch_id, to.key_id, raw, seal(to, raw, batch), now_s)


def _plain(has: Mapping[ModelName, int]) -> dict[str, int]:
    return {str(model): version for model, version in has.items()}


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, kind)
