"""The opener: the only holder of the telemetry key. It opens sealed batches and keeps their sums."""

from __future__ import annotations

import logging
from collections.abc import Callable

from umbel_proto.errors import UnavailableError, UsageError, VerificationError
from umbel_proto.seal import SealPrivateKey, open_sealed
from umbel_server.monitor.windows import read_windows
from umbel_server.store.batches import SealedBatch
from umbel_server.store.database import DiskFullError
from umbel_server.store.rollups import Verdict
from umbel_server.store.store import Store

BATCHES_PER_PASS = 64
POLL_S = 0.2

log = logging.getLogger(__name__)


class Opener:
    """Opens what the gateway stores.

    A batch's sums and its mark are written in one transaction: killed at any moment, the next
    opener counts every batch once.

    Args:
        store: Where batches lie and rollups go.
        key: The telemetry key.
    """

    def __init__(self, store: Store, key: SealPrivateKey) -> None:
        self._store = store
        self._key = key

    def run_once(self) -> int:
        """Open the oldest sealed batches; return how many there were, at most ``BATCHES_PER_PASS``.

        Raises:
            StorageError: The store fails; the batches stay sealed.
        """
        batches = self._store.batches.sealed(limit=BATCHES_PER_PASS)
        if batches:
            self._store.rollups.absorb([self._open(batch) for batch in batches])
        return len(batches)

    def run(self, stopped: Callable[[float], bool], *, poll_s: float = POLL_S) -> None:
        """Open batches as they arrive, until told to stop.

        Args:
            stopped: Waits up to so many seconds and tells whether to stop, as ``Event.wait`` does.
            poll_s: How long to wait when there are no batches, seconds.

        Raises:
            StorageError: The store is damaged; the batches stay sealed.
        """
        opened = 1
        while not stopped(0 if opened else poll_s):
            try:
                opened = self.run_once()
            except (DiskFullError, UnavailableError) as exc:
                log.warning("the batches stay sealed for now: %s", exc)
                opened = 0

    def _open(self, batch: SealedBatch) -> Verdict:
        try:
            if batch.key_id != self._key.public.key_id:
                raise VerificationError(
                    f"It is sealed to key {batch.key_id}, which this opener does not hold."
                )
            plaintext = open_sealed(self._key, batch.header, batch.ciphertext)
            return Verdict(batch.id, read_windows(batch.device, plaintext))
        except (VerificationError, UsageError) as exc:
            log.warning("rejected batch=%d device=%s: %s", batch.id, batch.device, exc)
            return Verdict(batch.id, reason=str(exc))
