"""``umbel serve otlp``: what ``/metrics`` tells, pushed to a receiver of OTLP over HTTPS.

OpenTelemetry's own SDK counts by itself and reads some twenty variables, among them where to send and whom to trust.
Here there is one set of counters, prometheus_client's, and one place that says where figures go. So of OpenTelemetry
there are its messages only (``umbel_server.services.otlp_messages``), and a POST carries them.

A push that fails is not repeated: counters are sums from a beginning, and the next push has all that it had.

Source: OTLP specification 1.9, section "OTLP/HTTP".
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import httpx

from umbel_proto.errors import MissingExtraError, StorageError, UmbelError, UnavailableError, UsageError
from umbel_server.clock import Clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.secret import Secret
from umbel_server.monitor.alerts.send import cause
from umbel_server.services.metrics import forget_ended, registry_of
from umbel_server.services.otlp_settings import OtlpSettings
from umbel_server.services.vitals import Vitals
from umbel_server.store.store import Store

try:
    from umbel_server.services.otlp_messages import rejected, request
except ModuleNotFoundError as exc:
    if not (exc.name or "").startswith("opentelemetry"):
        raise
    raise MissingExtraError("otlp", "Pushing metrics to OpenTelemetry") from exc

PATIENCE_S = 10.0
LONGEST_PAUSE_S = 3600.0
MAX_ANSWER = 64 * 1024
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")
"""RFC 9110, sections 5.1 and 5.5, of what is visible ASCII."""
_OURS = frozenset({"content-type", "content-encoding", "content-length", "host", "transfer-encoding"})

log = logging.getLogger(__name__)


class Pusher:
    """Sends what a fleet's services count.

    Args:
        fleet: The fleet; its settings say where to.
        store: Its store.
        environment: Environment variables, for headers.
    """

    def __init__(self, fleet: FleetDir, store: Store, environment: Mapping[str, str]) -> None:
        self._settings = fleet.settings.otlp
        self._fleet = fleet
        self._environment = environment
        self._clock: Clock = store.clock
        self._registry = registry_of(fleet.metrics, Vitals(fleet, store))
        self._about = {
            "service.name": "umbel",
            "service.version": version("umbel"),
            "service.instance.id": f"{fleet.settings.name}@{socket.gethostname()}",
        }
        self._since_s: float | None = None
        self._files: frozenset[Path] = frozenset()
        self._trust()
        self._headers()

    def push(self) -> float:
        """Send the figures of now, and return after how many seconds the receiver wants to be left alone; 0: any.

        Raises:
            UnavailableError: The receiver does not answer, or refuses.
            StorageError: The headers or certificates cannot be read.
            UsageError: The headers are none.
        """
        now_s = self._clock()
        files = frozenset(self._fleet.metrics.glob("*.db"))
        if self._since_s is None or not self._files <= files:
            self._since_s = now_s  # What an ended process counted was forgotten: the sums begin anew.
        self._files = files
        body = request(self._registry.collect(), self._about, since_s=self._since_s, now_s=now_s)
        headers = {
            **self._headers(),
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
        }
        # The environment's proxies would see what is told, and a redirect would take the headers with it.
        client = httpx.Client(
            verify=self._trust(), timeout=PATIENCE_S, follow_redirects=False, trust_env=False
        )
        try:
            with (
                client,
                client.stream(
                    "POST", self._settings.url, content=gzip.compress(body, 6), headers=headers
                ) as answer,
            ):
                return self._read(answer)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise UnavailableError(f"The OTLP receiver does not answer: {cause(exc)}.") from None

    def _read(self, answer: httpx.Response) -> float:
        if answer.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
            pause = answer.headers.get("retry-after", "")
            log.warning("the OTLP receiver answers with %d: this push is left out", answer.status_code)
            return min(float(pause), LONGEST_PAUSE_S) if pause.isdecimal() and len(pause) < 10 else 0.0
        if not answer.is_success:
            raise UnavailableError(f"The OTLP receiver answers with {answer.status_code}: see its own log.")
        told = b""
        for part in answer.iter_bytes():
            told += part
            if len(told) > MAX_ANSWER:
                raise UnavailableError(f"The OTLP receiver answers with more than {MAX_ANSWER} bytes.")
        points, why = rejected(told)
        if points:
            log.warning("the OTLP receiver left out %d points: %s", points, why)
        return 0.0

    def _headers(self) -> dict[str, str]:
        settings = self._settings
        if not settings.headers_file and not settings.headers_env:
            return {}
        secret = Secret(file=settings.headers_file, environment=settings.headers_env)
        return read_headers(secret.read(self._fleet.path, self._environment))

    def _trust(self) -> ssl.SSLContext:
        file = self._settings.ca_file
        try:
            trust = ssl.create_default_context(cafile=str(self._fleet.path / file) if file else None)
        except (OSError, ssl.SSLError) as exc:
            raise StorageError(f"ca_file of [otlp], {file}, holds no certificate that can be read.") from exc
        trust.minimum_version = ssl.TLSVersion.TLSv1_2
        return trust


def read_headers(text: str) -> dict[str, str]:
    """Return headers that are written as ``Name: value``, one a line.

    Raises:
        UsageError: A line is none, or is of a header that this client sets; the sentence has its number, never its text.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _HEADER.fullmatch(line.strip())
        if match is None:
            raise UsageError(f"Line {number} of the headers of [otlp] is not  Name: value  in ASCII.")
        if match[1].lower() in _OURS:
            raise UsageError(f"Line {number} of the headers of [otlp] sets {match[1]}, which is umbel's own.")
        found[match[1]] = match[2]
    return found


def serve_otlp(
    fleet: FleetDir, store: Store, stopped: Callable[[float], bool], *, on_ready: Callable[[], None]
) -> None:
    """Push until told to stop.

    Args:
        fleet: The fleet.
        store: Its store.
        stopped: Waits up to so many seconds and tells whether to stop.
        on_ready: Called once the settings are good; the receiver need not be there yet.

    Raises:
        UsageError: The fleet's settings name no endpoint, or the headers are none.
        StorageError: The headers or certificates cannot be read.
    """
    settings: OtlpSettings = fleet.settings.otlp
    if not settings.endpoint:
        raise UsageError("Nobody is to be told: name a receiver, endpoint in [otlp] of fleet.toml.")
    forget_ended(fleet.metrics)
    pusher = Pusher(fleet, store, os.environ)
    on_ready()
    pause_s = 0.0
    failing = False
    while not stopped(pause_s):
        try:
            pause_s = max(pusher.push(), settings.interval_s)
            if failing:
                log.info("the OTLP receiver answers again")
            failing = False
        except UmbelError as exc:
            # Once: the receiver may be away for days.
            if not failing:
                log.warning("nothing was pushed: %s It is tried again every %d s", exc, settings.interval_s)
            pause_s, failing = settings.interval_s, True
