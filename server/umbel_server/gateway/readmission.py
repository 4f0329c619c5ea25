"""Readmission: a device whose certificate has expired comes back by its identity key, without an operator.

Source: docs/spec/enrollment.md, section 5.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading

from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.enrollment import check_return
from umbel_proto.errors import RefusedError, VerificationError
from umbel_proto.ids import DeviceId, check_name
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.fleet.ca import read_csr
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.rpc import BusyError, Call, Method
from umbel_server.store.devices import Device, Devices

CHALLENGE_LIFE_S = 60
PACE_S = 60
"""A device comes back no more often: by day, one that works needs it once."""
DAY_S = 86400

_NONCE_BYTES = 16
_TIME_BYTES = 8
_MAC_BYTES = 32

log = logging.getLogger(__name__)


class Readmission:
    """The service that lets devices back in.

    A challenge is dated and authenticated, and kept nowhere: who asks for many fills no memory. Each admits a device
    once, as after it the device must bring a younger one.

    Args:
        issuer: Issues the papers, and has the clock.
        devices: The store's devices.
        days: For how long after its newest certificate a device may come back; 0: never.
    """

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Readmission"]

    def __init__(self, issuer: Issuer, devices: Devices, *, days: int) -> None:
        self._issuer = issuer
        self._devices = devices
        self._days = days
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._readmitted_s: dict[DeviceId, int] = {}

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Challenge": self.challenge, "Readmit": self.readmit}

    def challenge(self, _request: pb.ChallengeRequest, _call: Call) -> pb.ChallengeReply:
        """Give something to sign, so that nothing that was signed before is of use."""
        dated = int(self._issuer.clock()).to_bytes(_TIME_BYTES, "big") + secrets.token_bytes(_NONCE_BYTES)
        return pb.ChallengeReply(challenge=dated + self._mac(dated))

    def readmit(self, request: pb.ReadmitRequest, _call: Call) -> pb.RenewReply:
        """Give new papers to a device that signs a challenge with its identity key."""
        asked_s = self._date(request.challenge)
        device = self._authenticate(request)
        away_s = self._issuer.clock() - device.certificate_not_after_s
        if away_s > self._days * DAY_S:
            raise RefusedError(
                f"Device {device.id} was away for more than {self._days} days: ask the fleet's operator for a token, "
                "and run  umbel enroll TOKEN --again"
            )
        read_csr(request.csr)  # What is malformed costs no turn.
        self._take_turn(device.id, asked_s)
        papers = self._issuer.authority.readmit(request)
        log.info("readmitted device=%s after %d s", device.id, away_s)
        return self._issuer.renewal(papers)

    def _authenticate(self, request: pb.ReadmitRequest) -> Device:
        """Return the device that signed.

        Raises:
            RefusedError: Nobody of this name did; or it is revoked, which only itself is told.
        """
        device = self._devices.get(DeviceId(check_name(request.device_id, "device")))
        try:
            if device is None:
                raise VerificationError("unknown")
            check_return(
                device.identity_key,
                request.proof,
                fleet=self._issuer.fleet.name,
                device=device.id,
                challenge=request.challenge,
                csr=request.csr,
            )
        except VerificationError as exc:
            raise RefusedError(
                "This fleet knows no device of this name and identity key: enroll with a token."
            ) from exc
        return self._devices.admit(device.id)

    def _date(self, challenge: bytes) -> int:
        """Return when a challenge was given, Unix seconds.

        Raises:
            BusyError: It is none of ours, or too old: the device gets another.
        """
        dated, mac = challenge[:-_MAC_BYTES], challenge[-_MAC_BYTES:]
        asked_s = int.from_bytes(dated[:_TIME_BYTES], "big")
        ours = len(dated) == _TIME_BYTES + _NONCE_BYTES and hmac.compare_digest(mac, self._mac(dated))
        if not ours or not 0 <= self._issuer.clock() - asked_s < CHALLENGE_LIFE_S:
            raise BusyError("The challenge is none of this gateway's, or too old.")
        return asked_s

    def _take_turn(self, device: DeviceId, asked_s: int) -> None:
        """Let a device in once for every challenge, and once in ``PACE_S``.

        Raises:
            BusyError: It came back a moment ago, or brings a challenge from before that.
        """
        with self._lock:
            last_s = self._readmitted_s.get(device)
            if last_s is not None and asked_s < last_s + PACE_S:
                raise BusyError(f"Device {device} came back a moment ago.")
            self._readmitted_s[device] = int(self._issuer.clock())

    def _mac(self, dated: bytes) -> bytes:
        return hmac.digest(self._key, dated, "sha256")
