"""Telemetry intake: sealed batches are stored once, and acknowledged when they are on disk.

The gateway reads a batch's header only to know whose it is. It has no key that opens the rest.
"""

from __future__ import annotations

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.report import SCHEMAS
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.gateway.peer import Peers
from umbel_server.gateway.rpc import Call, Method
from umbel_server.store.batches import Arrival, Batches

MAX_BATCHES = 64
MAX_BATCH_BYTES = 256 << 10
MAX_HEADER_BYTES = 1024
MAX_KEY_ID_CHARS = 64
BATCH_ID_BYTES = 16


class Telemetry:
    """The service that takes reports in.

    Args:
        fleet: The fleet whose reports it takes.
        batches: Where it stores them.
        peers: Tells who calls.
    """

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Telemetry"]

    def __init__(self, fleet: FleetId, batches: Batches, peers: Peers) -> None:
        self._fleet = fleet
        self._batches = batches
        self._peers = peers

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Upload": self.upload}

    def upload(self, request: pb.UploadRequest, call: Call) -> pb.UploadReply:
        """Store the calling device's batches: all of them, or none and a reason."""
        caller = self._peers.identify(call)
        if len(request.batches) > MAX_BATCHES:
            raise UsageError(f"An upload has at most {MAX_BATCHES} batches, not {len(request.batches)}.")
        arrivals = [self._read(batch, caller.name) for batch in request.batches]
        self._batches.append(caller.name, arrivals, key_hash=caller.key_hash)
        return pb.UploadReply(acknowledged=[arrival.batch_id for arrival in arrivals])

    def _read(self, batch: pb.SealedBatch, device: DeviceId) -> Arrival:
        packed, ciphertext = batch.header, batch.ciphertext
        if len(packed) > MAX_HEADER_BYTES or not 0 < len(ciphertext) <= MAX_BATCH_BYTES:
            raise UsageError(
                f"A batch has a header of up to {MAX_HEADER_BYTES} bytes and a ciphertext of 1 to "
                f"{MAX_BATCH_BYTES}, not {len(packed)} and {len(ciphertext)}."
            )
        try:
            header = pb.BatchHeader.FromString(packed)
        except DecodeError as exc:
            raise UsageError("A batch's header is malformed.") from exc
        if header.schema not in SCHEMAS:
            known = " and ".join(map(str, SCHEMAS))
            raise UsageError(f"A batch has schema {header.schema}, and this gateway takes {known}.")
        batch_id, key_id = header.batch_id, header.key_id
        if len(batch_id) != BATCH_ID_BYTES:
            raise UsageError(f"A batch id has {BATCH_ID_BYTES} bytes, not {len(batch_id)}.")
        if not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
            raise UsageError(f"A key id has 1 to {MAX_KEY_ID_CHARS} characters, not {len(key_id)}.")
        if header.device_id != device or header.fleet_id != self._fleet:
            raise RefusedError(f"Device {device} may only send its own batches.")
        return Arrival(batch_id, key_id, packed, ciphertext, header.created_s)
