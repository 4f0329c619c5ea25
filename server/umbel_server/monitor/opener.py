"""The opener: the only holder of the telemetry key. It opens sealed batches and keeps their sums."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable

from umbel_proto.errors import UnavailableError, UsageError, VerificationError
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey
from umbel_server.access.actor import Actor
from umbel_server.access.reads import Read
from umbel_server.monitor.windows import read_report
from umbel_server.services.metrics import meters
from umbel_server.store.batches import SealedBatch
from umbel_server.store.database import DiskFullError
from umbel_server.store.rollups import Verdict
from umbel_server.store.settings import RetentionPolicy
from umbel_server.store.store import Store

BATCHES_PER_PASS = 64
POLL_S = 0.2
EXPIRE_EVERY_S = 3600.0
ITSELF = Actor("service:opener", frozenset())

log = logging.getLogger(__name__)


class Opener:
    """Opens what the gateway stores.

    A batch's sums and its mark are written in one transaction: killed at any moment, the next
    opener counts every batch once.

    Args:
        store: Where batches lie and rollups go.
        key: The telemetry key.
        others: Returns all keys that there are by now; asked when a batch is sealed to one that is not known.
        retention: For how long the store keeps what; None: for good.
    """

    def __init__(
        self,
        store: Store,
        key: SealPrivateKey,
        *,
        others: Callable[[], Iterable[SealPrivateKey]] = tuple,
        retention: RetentionPolicy | None = None,
    ) -> None:
        self._store = store
        self._keys = {key.public.key_id: key}
        self._others = others
        self._retention = retention
        self._expired_s = -math.inf
        self._recorded: set[str] = set()

    def run_once(self) -> int:
        """Open the oldest sealed batches; return how many there were, at most ``BATCHES_PER_PASS``.

        Raises:
            StorageError: The store fails; the batches stay sealed.
        """
        batches = self._store.batches.sealed(limit=BATCHES_PER_PASS)
        if batches:
            verdicts = [self._open(batch) for batch in batches]
            self._store.rollups.absorb(verdicts)
            rejected = sum(verdict.reason is not None for verdict in verdicts)
            windows = sum(rollup.windows for verdict in verdicts for rollup in verdict.rollups)
            meters().opened(len(verdicts) - rejected, rejected, windows)
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
                self._on_record(self._keys)
                opened = self.run_once()
                self.expire()
            except (DiskFullError, UnavailableError) as exc:
                log.warning("the batches stay as they are for now: %s", exc)
                opened = 0

    def _on_record(self, keys: Iterable[str]) -> None:
        """Keep in the audit log that keys were read which open what devices report, each once."""
        for key_id in sorted(set(keys) - self._recorded):
            self._store.audit.record(
                ITSELF,
                action=Read.TELEMETRY_KEY.value,
                object=f"telemetry-key:{key_id}",
                after={"pid": os.getpid()},
            )
            self._recorded.add(key_id)

    def expire(self) -> None:
        """Delete what the store kept for long enough, if that was not done within the hour.

        Raises:
            StorageError: The store fails; the rest is deleted the next time.
        """
        now_s = self._store.clock()
        if self._retention is None or 0 <= now_s - self._expired_s < EXPIRE_EVERY_S:
            return
        self._expired_s = now_s
        expired = self._store.retention.expire(self._retention)
        if expired.total:
            log.info("expired batches=%d hours=%d days=%d", expired.batches, expired.hours, expired.days)

    def _open(self, batch: SealedBatch) -> Verdict:
        try:
            if batch.key_id not in self._keys:
                there = {each.public.key_id: each for each in self._others()}
                self._on_record(there.keys() - self._keys.keys())
                self._keys |= there
            key = self._keys.get(batch.key_id)
            if key is None:
                raise VerificationError(
                    f"It is sealed to key {batch.key_id}, which this opener does not hold."
                )
            report = read_report(batch.device, open_batch(key, batch.header, batch.ciphertext))
            return Verdict(batch.id, report.windows, waiting=report.waiting, ended=report.ended)
        except (VerificationError, UsageError) as exc:
            log.warning("rejected batch=%d device=%s: %s", batch.id, batch.device, exc)
            return Verdict(batch.id, reason=str(exc))
