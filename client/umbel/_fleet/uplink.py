"""The device's one background thread: certificate, reports and releases, whenever they are due."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from umbel._fork import Lock
from umbel._telemetry.rhythm import CLOSE_S, POLL_S, SHORT_S, elapsed_s, window_s
from umbel_proto.errors import (
    PackageError,
    RefusedError,
    RemoteProtocolError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from umbel._fleet.channel import Gateway
    from umbel._home.directory import DeviceHome
    from umbel._telemetry.spool import Sealed, Spool
    from umbel._telemetry.telemetry import Telemetry

LONGEST_PAUSE_S = 300.0
MAX_BATCHES = 64
MAX_REFUSED = 64
"""Batches that are tried one by one where the gateway takes none, before others are tried in their stead."""
PROBES = 16
"""How many others."""
MAX_UPLOAD_BYTES = 3 * 1024 * 1024

_uniform = secrets.SystemRandom().uniform

log = logging.getLogger(__name__)


class Backoff:
    """How long to wait after a failure: a random time up to a bound that doubles.

    Args:
        first_s: Bound after the first failure.
        longest_s: Bound at most.
        uniform: Returns a random number between its arguments.

    Source:
        Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog 2015, "Full Jitter": a fleet
        that lost its server at one moment does not come back at one moment.
    """

    def __init__(
        self,
        *,
        first_s: float = 1.0,
        longest_s: float = LONGEST_PAUSE_S,
        uniform: Callable[[float, float], float] = _uniform,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._uniform = uniform
        self._failures = 0

    def failed(self, retry_after_s: float = 0.0) -> float:
        """Return how long to wait now, seconds; never less than the server asks for."""
        bound = min(self._longest_s, self._first_s * 2 ** min(self._failures, 32))
        self._failures += 1
        return retry_after_s + self._uniform(0.0, bound)

    def succeeded(self) -> None:
        """Begin anew with the next failure."""
        self._failures = 0


def upload(gateway: Gateway, spool: Spool, *, now_s: Callable[[], float]) -> float:
    """Send what waits in the spool, oldest first, and forget what the gateway has committed.

    A batch that the gateway calls malformed would block all others for ever: it is given up, alone, once the gateway
    has taken another. One that takes none at all is what is wrong.

    Returns:
        In how many seconds the gateway wants more; 0 for at any time.

    Raises:
        UnavailableError: The gateway does not answer; nothing is lost.
        RefusedError: The device was removed from the fleet; nothing is lost.
        RemoteProtocolError: The gateway answers what it never should; nothing is lost.
    """
    limit = MAX_BATCHES
    refused: list[bytes] = []
    taken = False
    while batches := spool.oldest(max_batches=limit, max_bytes=MAX_UPLOAD_BYTES, skip=len(refused)):
        try:
            some, wait_s = _send(gateway, spool, batches, now_s)
        except UsageError as exc:
            if len(batches) == 1:
                log.warning("the gateway refuses a batch: %s", exc)
                refused.append(batches[0].batch_id)
            limit = max(len(batches) // 2, 1)
            if len(refused) >= MAX_REFUSED and not taken:
                taken = _takes_another(gateway, spool, len(refused), now_s)
                if not taken:
                    break
            continue
        taken = taken or some
        limit = min(2 * limit, MAX_BATCHES)
        if wait_s:
            return wait_s
    if refused and not taken:
        raise RemoteProtocolError("server", "it calls every report malformed; they wait")
    for batch_id in refused:
        spool.give_up(batch_id)
    return 0.0


def _send(
    gateway: Gateway, spool: Spool, batches: Sequence[Sealed], now_s: Callable[[], float]
) -> tuple[bool, float]:
    """Send some batches; return whether the gateway took any, and in how many seconds it wants more.

    Raises:
        UsageError: The gateway refuses them for good.
        UmbelError: As ``upload``.
    """
    from umbel._fleet.channel import MAX_RETRY_AFTER_S, call
    from umbel_proto.wire import telemetry_pb2 as pb

    request = pb.UploadRequest(
        batches=[pb.SealedBatch(header=batch.header, ciphertext=batch.ciphertext) for batch in batches]
    )
    reply: pb.UploadReply = call(gateway.telemetry.Upload, request, gateway.address)
    acknowledged = set(reply.acknowledged)
    if not acknowledged.issubset(batch.batch_id for batch in batches):
        raise RemoteProtocolError("server", "an upload was answered with batches that it did not have")
    spool.acknowledge(acknowledged, now_s=now_s())
    wait_s = min(float(reply.retry_after_s), MAX_RETRY_AFTER_S)
    if not acknowledged and not wait_s:
        raise RemoteProtocolError("server", "an upload was answered without acknowledging anything")
    return bool(acknowledged), wait_s


def _takes_another(gateway: Gateway, spool: Spool, refused: int, now_s: Callable[[], float]) -> bool:
    """Return whether the gateway takes any of the batches behind those it refused: the newest, or some by chance."""
    for batch in spool.some(count=PROBES, skip=refused):
        try:
            taken, _ = _send(gateway, spool, [batch], now_s)
        except UsageError:
            continue
        return taken
    return False


class Uplink:
    """The background thread. It never raises: what goes wrong is logged once, and tried again.

    Args:
        home: The enrolled device.
        spool: What is to be sent.
        telemetry: The windows to close in time.
        delivery: Fetches releases and installs them; None to leave releases to others.
        follow: Lets what is open answer by what is installed; it waits for no network and never raises.
        poll_s: How often to ask for releases.
        rest_s: How long to wait before anything is done: to import what talks to the gateway takes the interpreter
            from an application that starts, and this may be later.
        clock: Returns Unix time, seconds.
        elapsed: Returns seconds since some moment; no change of the clock moves it. All pauses are by it.
    """

    def __init__(
        self,
        home: DeviceHome,
        *,
        spool: Spool,
        telemetry: Telemetry,
        delivery: Callable[[Gateway], object] | None,
        follow: Callable[[], None] = lambda: None,
        poll_s: float = POLL_S,
        rest_s: float = 0.0,
        clock: Callable[[], float],
        elapsed: Callable[[], float] = elapsed_s,
    ) -> None:
        self._home = home
        self._spool = spool
        self._telemetry = telemetry
        self._delivery = delivery
        self._follow = follow
        self._poll_s = poll_s
        self._rest_s = rest_s
        self._shortest_s = min(SHORT_S, max(poll_s, 1.0))
        self._clock = clock
        self._elapsed = elapsed
        self._backoff = Backoff(first_s=min(1.0, poll_s), longest_s=min(LONGEST_PAUSE_S, 5 * poll_s))
        self._stop = threading.Event()
        self._gateway: Gateway | None = None
        self._closed = False
        self._closing = Lock()
        # Of the time that has elapsed: when windows were last closed and will be next, and what else is due when.
        self._flushed_s = self._talk_at_s = self._poll_at_s = self._upload_at_s = elapsed()
        self._flush_at_s = self._flushed_s + self._shortest_s
        self._trouble = self._refusal = ""
        self._thread = threading.Thread(target=self._run, name="umbel-uplink", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, *, timeout_s: float = CLOSE_S) -> None:
        """Close the windows, send what waits if that goes quickly, and end the thread.

        What could not be sent stays in the spool.

        Args:
            timeout_s: How long to wait for the gateway at most.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._closing:
            self._closed = True
            if self._gateway is not None:
                self._gateway.close()  # Ends a call that still waits, and with it the thread.
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = self._rest_s
        while not self._stop.wait(pause_s):
            pause_s = self.turn()
        try:
            self._telemetry.flush()
            upload(self._connect(), self._spool, now_s=self._clock)
        except UmbelError as exc:
            self._say(exc)
        except Exception:
            # What was counted is in the spool, or is said by nobody: the application ends in peace.
            log.exception("the uplink's last report failed")

    def turn(self) -> float:
        """Do what is due.

        Returns:
            In how many seconds something is due again.
        """
        try:
            self._follow()  # Another process may have installed something.
            self._close_windows()
            if self._elapsed() >= self._talk_at_s:
                self._talk()
        except UmbelError as exc:
            self._talk_at_s = self._elapsed() + self._failed(exc)
        except Exception:
            # A bug of ours must not silence the device for good.
            log.exception("the uplink failed")
            self._talk_at_s = self._elapsed() + self._backoff.failed()
        return self._until_due()

    def _close_windows(self) -> None:
        self._flush_at_s = self._flushed_s + window_s(self._spool.depth(), shortest_s=self._shortest_s)
        if self._elapsed() < self._flush_at_s:
            return
        self._flushed_s = self._elapsed()
        try:
            self._telemetry.flush()
        except StorageError as exc:
            self._say(exc)  # Sending what waits makes room.
        self._flush_at_s = self._flushed_s + window_s(self._spool.depth(), shortest_s=self._shortest_s)

    def _talk(self) -> None:
        """Do what the gateway is needed for, as far as it is due."""
        now_s, elapsed_s = self._clock(), self._elapsed()
        if self._gateway is None:
            self._come_back(now_s)
        gateway = self._connect()
        if now_s >= self._home.certificate_validity().renew_at_s():
            self._renew(gateway, now_s)
            gateway = self._connect()
        if elapsed_s >= self._upload_at_s:
            self._upload_at_s = elapsed_s + upload(gateway, self._spool, now_s=self._clock)
        if self._delivery is not None and elapsed_s >= self._poll_at_s:
            try:
                self._delivery(gateway)
                self._refusal = ""
            except PackageError as exc:
                if str(exc) != self._refusal:
                    log.warning("a release was refused: %s", exc)
                self._refusal = str(exc)
            self._follow()
            self._poll_at_s = elapsed_s + self._poll_s
            self._spool.contacted(now_s)
        self._backoff.succeeded()
        if self._trouble:
            log.info("the gateway %s answers again", gateway.address)
            self._trouble = ""

    def _until_due(self) -> float:
        now_s = self._elapsed()
        # Without the gateway, too, another process may install something, and what waits for a person is kept.
        dues_s = [self._flush_at_s, now_s + self._poll_s]
        if self._talk_at_s > now_s:  # After a failure.
            dues_s.append(self._talk_at_s)
        elif self._delivery is not None:
            dues_s.append(self._poll_at_s)
        return min((due_s for due_s in dues_s if due_s > now_s), default=now_s) - now_s

    def _connect(self) -> Gateway:
        from umbel._fleet.channel import Gateway

        with self._closing:
            if self._closed:
                raise UnavailableError("The device was closed before everything was sent; the rest waits.")
            if self._gateway is None:
                self._gateway = Gateway(self._home, now_s=self._clock())
            return self._gateway

    def _disconnect(self) -> None:
        with self._closing:
            if self._gateway is not None:
                self._gateway.close()
                self._gateway = None

    def _come_back(self, now_s: float) -> None:
        from umbel._fleet.enroll import keep_certificate

        keep_certificate(self._home, now_s=now_s)

    def _renew(self, gateway: Gateway, now_s: float) -> None:
        from umbel._fleet.enroll import renew

        renew(self._home, gateway, now_s=now_s)
        self._disconnect()  # The next call connects with the new certificate.

    def _failed(self, exc: UmbelError) -> float:
        from umbel._fleet.channel import LaterError

        self._say(exc)
        if isinstance(exc, RefusedError):  # With any other the fleet may still know the device.
            self._note_refusal()
        self._disconnect()
        return self._backoff.failed(exc.retry_after_s if isinstance(exc, LaterError) else 0.0)

    def _note_refusal(self) -> None:
        try:
            self._spool.refused(self._clock())
        except StorageError as exc:
            self._say(exc)

    def _say(self, exc: UmbelError) -> None:
        if str(exc) != self._trouble:
            log.warning("%s", exc)
            self._trouble = str(exc)
