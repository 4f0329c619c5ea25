"""An enrolled device, as an application holds it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from umbel._home import DeviceHome
from umbel._ledger import Ledger
from umbel._spool import Spool
from umbel._uplink import CLOSE_S, POLL_S, Uplink, upload
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId, FleetId

if TYPE_CHECKING:
    from umbel._delivery import Delivery
    from umbel._model import Model
    from umbel._shelf import Installed, Shelf
    from umbel._telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Release:
    """A model that is installed.

    Args:
        model: Its name.
        version: Its version.
        variant: The variant that is fastest on this device.
    """

    model: str
    version: int
    variant: str


@dataclass(frozen=True, slots=True)
class Status:
    """A device at one moment. Times are Unix seconds.

    Args:
        fleet: Its fleet.
        device: Its name.
        gateway: The address it reports to.
        certificate_ends_s: When its certificate expires.
        last_contact_s: When the gateway last answered; None if it never did.
        agent_runs: Whether ``umbel run`` serves this home.
        models: The active release of every model.
        spooled_batches: Reports that wait to be sent.
        spooled_bytes: Their size.
        dropped_batches: Reports that were given up, most for want of room.
        rounds: Sessions the device was charged for.
        epsilon: Privacy spent, at ``budget_delta``.
        budget_epsilon: What it may spend over its life.
        budget_delta: The delta that goes with it.
    """

    fleet: FleetId
    device: DeviceId
    gateway: str
    certificate_ends_s: float
    last_contact_s: float | None
    agent_runs: bool
    models: tuple[Release, ...]
    spooled_batches: int
    spooled_bytes: int
    dropped_batches: int
    rounds: int
    epsilon: float
    budget_epsilon: float
    budget_delta: float


class Device:
    """An enrolled device: its models, its reports, its privacy ledger.

    Everything but the one background thread is synchronous. Use it with ``with``, or call ``close``.
    """

    def __init__(self, home: DeviceHome, *, online: bool, poll_s: float, clock: Callable[[], float]) -> None:
        self.home: DeviceHome = home
        self._clock = clock
        self._identity = home.identity
        self._closed = False
        home.make()
        self._spool = Spool(home.spool)
        self._uplink: Uplink | None = None
        if online:
            self._uplink = Uplink(
                home,
                spool=self._spool,
                telemetry=self._telemetry,
                delivery=self._delivery,
                poll_s=poll_s,
                clock=clock,
            )
            self._uplink.start()

    @classmethod
    def open(
        cls,
        home: str | Path | None = None,
        *,
        online: bool = True,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.time,
    ) -> Device:
        """Open the device that was enrolled at ``home``.

        Args:
            home: Its directory; by default what ``UMBEL_HOME`` names, else ``~/.umbel``.
            online: Whether to fetch releases and send reports in the background. Offline, reports
                wait in the spool.
            poll_s: How often to ask for releases, seconds.
            clock: Returns Unix time, seconds.

        Raises:
            UsageError: No device is enrolled there.
            StorageError: One of its files is damaged, or the disk is full.
        """
        where = DeviceHome.default() if home is None else DeviceHome(Path(home))
        return cls(where, online=online, poll_s=poll_s, clock=clock)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Device({self._identity.device!r}, fleet={self._identity.fleet!r})"

    @property
    def id(self) -> DeviceId:
        """Its name in the fleet."""
        return self._identity.device

    @property
    def fleet(self) -> FleetId:
        """Its fleet."""
        return self._identity.fleet

    def model(self, name: str, *, variant: str | None = None) -> Model:
        """Load the newest release of a model that is on this device. It needs no network.

        Args:
            name: The model.
            variant: The variant to run; by default the one that is fastest here.

        Raises:
            UsageError: The model is not installed, or has no such variant.
            PackageError: Its package on the disk is damaged, or does not compute what it should.
        """
        from umbel._model import Model
        from umbel._package import verify_golden
        from umbel.engines import load_engine

        installed = self._shelf.active(name)
        if installed is None:
            raise UsageError(f"No model {name!r} is installed: connect the device, or ask for its release.")
        package = self._shelf.package(installed)
        engine = load_engine(package, variant or installed.variant)
        verify_golden(package, engine)
        window = self._telemetry.window(
            model=installed.model, version=installed.version, variant=engine.variant, engine=engine.name
        )
        return Model(package, engine, window)

    def sync(self) -> tuple[Release, ...]:
        """Talk to the gateway now: renew the certificate if it is time, fetch releases, send reports.

        Returns:
            What was installed.

        Raises:
            UnavailableError: The gateway does not answer; nothing is lost.
            CertificateError: The device's certificate has expired.
            PackageError: A release did not verify; the active one stays.
        """
        from umbel._channel import Gateway
        from umbel._enroll import renew

        now_s = self._clock()
        if now_s >= self.home.certificate_validity().renew_at_s():
            with Gateway(self.home, now_s=now_s) as gateway:
                renew(self.home, gateway, now_s=now_s)
        with Gateway(self.home, now_s=now_s) as gateway:
            self._telemetry.flush()
            upload(gateway, self._spool, now_s=self._clock)
            installed = self._delivery.check(gateway)
            self._spool.contacted(now_s)
        return tuple(_release(item) for item in installed)

    def status(self) -> Status:
        """Return how the device is; nothing is sent.

        Raises:
            StorageError: One of its files is damaged.
        """
        policy, depth = self.home.open_policy(), self._spool.depth()
        with Ledger(self.home.ledger) as ledger:
            rounds, epsilon = len(ledger.charges()), ledger.spent(policy.budget_delta)
        names = sorted({item.model for item in self._shelf.installed()})
        active = (self._shelf.active(name) for name in names)
        return Status(
            fleet=self._identity.fleet,
            device=self._identity.device,
            gateway=self._identity.gateway,
            certificate_ends_s=self.home.certificate_validity().ends_s,
            last_contact_s=self._spool.last_contact_s(),
            agent_runs=self.home.agent_runs(),
            models=tuple(_release(item) for item in active if item is not None),
            spooled_batches=depth.batches,
            spooled_bytes=depth.bytes,
            dropped_batches=depth.dropped,
            rounds=rounds,
            epsilon=epsilon,
            budget_epsilon=policy.budget_epsilon,
            budget_delta=policy.budget_delta,
        )

    def close(self, *, timeout_s: float = CLOSE_S) -> None:
        """Seal what telemetry holds, send it if that goes quickly, and end the background thread.

        What could not be sent waits on the disk for the next time. Closing twice does nothing.

        Args:
            timeout_s: How long to wait for the gateway.

        Raises:
            StorageError: The disk is full: the last window is lost.
        """
        uplink, self._uplink = self._uplink, None
        try:
            if uplink is not None:
                uplink.close(timeout_s=timeout_s)
            if "_telemetry" in vars(self) and not self._closed:
                self._telemetry.flush()
        finally:
            self._closed = True
            self._spool.close()

    # The parts below take time to import: each is loaded when it is first needed.

    @functools.cached_property
    def _shelf(self) -> Shelf:
        from umbel._shelf import Shelf

        return Shelf(self.home.shelf, self.home.release_authority())

    @functools.cached_property
    def _telemetry(self) -> Telemetry:
        from umbel._telemetry import Telemetry

        return Telemetry(self.home, self._spool, clock=self._clock)

    @functools.cached_property
    def _delivery(self) -> Delivery:
        from umbel._delivery import Delivery

        return Delivery(self.home, self._shelf)


def _release(installed: Installed) -> Release:
    return Release(installed.model, installed.version, installed.variant)
