"""The device's one background thread: certificate, reports and releases, whenever they are due."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from umbel_proto.errors import (
    PackageError,
    RemoteProtocolError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
)
from umbel_proto.wire import telemetry_pb2 as pb

if TYPE_CHECKING:
    from umbel._channel import Gateway
    from umbel._delivery import Delivery
    from umbel._home import DeviceHome
    from umbel._spool import Spool
    from umbel._telemetry import Telemetry

POLL_S = 60.0
WINDOW_S = 60.0
CLOSE_S = 5.0
LONGEST_PAUSE_S = 300.0
MAX_BATCHES = 64
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

    A batch that the gateway calls malformed would block all others for ever: it is given up, alone.

    Returns:
        In how many seconds the gateway wants more; 0 for at any time.

    Raises:
        UnavailableError: The gateway does not answer; nothing is lost.
        RefusedError: The device was removed from the fleet; nothing is lost.
    """
    from umbel._channel import call

    limit = MAX_BATCHES
    while batches := spool.oldest(max_batches=limit, max_bytes=MAX_UPLOAD_BYTES):
        request = pb.UploadRequest(
            batches=[pb.SealedBatch(header=batch.header, ciphertext=batch.ciphertext) for batch in batches]
        )
        try:
            reply: pb.UploadReply = call(gateway.telemetry.Upload, request, gateway.address)
        except UsageError as exc:
            if len(batches) == 1:
                log.warning("the gateway refuses a batch for good: %s", exc)
                spool.give_up(batches[0].batch_id)
            limit = 1
            continue
        acknowledged = {batch.batch_id for batch in batches}.intersection(reply.acknowledged)
        spool.acknowledge(acknowledged, now_s=now_s())
        if reply.retry_after_s:
            return float(reply.retry_after_s)
        if not acknowledged:
            raise RemoteProtocolError("server", "an upload was answered without acknowledging anything")
    return 0.0


class Uplink:
    """The background thread. It never raises: what goes wrong is logged once, and tried again.

    Args:
        home: The enrolled device.
        spool: What is to be sent.
        telemetry: The windows to close in time.
        delivery: Where releases go; None to leave releases to others.
        poll_s: How often to ask for releases.
        window_s: How long a telemetry window is open.
        clock: Returns Unix time, seconds.
    """

    def __init__(
        self,
        home: DeviceHome,
        *,
        spool: Spool,
        telemetry: Telemetry,
        delivery: Delivery | None,
        poll_s: float = POLL_S,
        window_s: float = WINDOW_S,
        clock: Callable[[], float],
    ) -> None:
        self._home = home
        self._spool = spool
        self._telemetry = telemetry
        self._delivery = delivery
        self._poll_s = poll_s
        self._window_s = min(window_s, max(poll_s, 1.0))
        self._clock = clock
        self._backoff = Backoff(first_s=min(1.0, poll_s), longest_s=min(LONGEST_PAUSE_S, 5 * poll_s))
        self._stop = threading.Event()
        self._gateway: Gateway | None = None
        self._closed = False
        self._closing = threading.Lock()
        self._poll_at_s = self._flush_at_s = self._upload_at_s = 0.0
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="umbel-uplink", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._flush_at_s = self._clock() + self._window_s
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
        while not self._stop.is_set():
            try:
                self._work()
                wait_s = self._until_due()
            except UmbelError as exc:
                wait_s = self._failed(exc)
            except Exception:
                # A bug of ours must not silence the device for good.
                log.exception("the uplink failed")
                wait_s = self._backoff.failed()
            self._stop.wait(wait_s)
        try:
            self._telemetry.flush()
            upload(self._connect(), self._spool, now_s=self._clock)
        except UmbelError as exc:
            self._say(exc)

    def _work(self) -> None:
        """Do what is due. What must not wait for the gateway comes first."""
        now_s = self._clock()
        if now_s >= self._flush_at_s:
            self._flush_at_s = now_s + self._window_s
            try:
                self._telemetry.flush()
            except StorageError as exc:
                self._say(exc)  # Sending what waits makes room.
        gateway = self._connect()
        if now_s >= self._home.certificate_validity().renew_at_s():
            self._renew(gateway, now_s)
            gateway = self._connect()
        if now_s >= self._upload_at_s:
            self._upload_at_s = now_s + upload(gateway, self._spool, now_s=self._clock)
        if self._delivery is not None and now_s >= self._poll_at_s:
            try:
                self._delivery.check(gateway)
            except PackageError as exc:
                log.warning("a release was refused: %s", exc)
            self._poll_at_s = now_s + self._poll_s
            self._spool.contacted(now_s)
        self._backoff.succeeded()
        if self._trouble:
            log.info("the gateway %s answers again", gateway.address)
            self._trouble = ""

    def _until_due(self) -> float:
        due_s = min(self._flush_at_s, self._poll_at_s) if self._delivery else self._flush_at_s
        return max(due_s - self._clock(), 0.0)

    def _connect(self) -> Gateway:
        from umbel._channel import Gateway

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

    def _renew(self, gateway: Gateway, now_s: float) -> None:
        from umbel._enroll import renew

        renew(self._home, gateway, now_s=now_s)
        self._disconnect()  # The next call connects with the new certificate.

    def _failed(self, exc: UmbelError) -> float:
        from umbel._channel import LaterError

        self._say(exc)
        self._disconnect()
        return self._backoff.failed(exc.retry_after_s if isinstance(exc, LaterError) else 0.0)

    def _say(self, exc: UmbelError) -> None:
        if str(exc) != self._trouble:
            log.warning("%s", exc)
            self._trouble = str(exc)
