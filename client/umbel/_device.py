"""An enrolled device, as an application holds it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from umbel._fork import Lock, leave_alone, renew_in_child
from umbel._home.directory import DeviceHome
from umbel._parts import Part
from umbel._telemetry.rhythm import CLOSE_S, MIN_POLL_S, POLL_S, REST_S, SHORT_S
from umbel._telemetry.spool import Spool
from umbel_proto.errors import RefusedError, StorageError, UsageError
from umbel_proto.ids import DeviceId, FleetId

if TYPE_CHECKING:
    from umbel._data.consent import Consent
    from umbel._data.dataset import DataSet
    from umbel._fleet.channel import Gateway
    from umbel._fleet.delivery import Delivery
    from umbel._fleet.uplink import Uplink
    from umbel._predict.model import Model
    from umbel._privacy import Privacy
    from umbel._releases.follow import Follower
    from umbel._releases.packages import Installed
    from umbel._releases.shelf import Shelf
    from umbel._review.desk import Desk
    from umbel._rounds.conditions import Conditions
    from umbel._status import Release, Status
    from umbel._telemetry.flusher import Flusher
    from umbel._telemetry.telemetry import Telemetry
    from umbel.engines import EngineOptions


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
        self._data: dict[str, DataSet] = {}
        self._uplink: Uplink | Flusher | None = None
        self._forked = False
        self._online, self._poll_s = online, poll_s
        self._asleep = True
        self._waking = Lock()
        self._making = threading.RLock()
        self._wake()
        renew_in_child(self._renew)

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
            online: Whether to fetch releases and send reports in the background. Offline, reports are put into the
                spool in the background, and wait there.
            poll_s: How often to ask for releases, seconds, >= 0.1.
            clock: Returns Unix time, seconds.

        Raises:
            UsageError: No device is enrolled there, or it would ask without a pause.
            StorageError: One of its files is damaged, or the disk is full.
        """
        given: object = poll_s
        if not (isinstance(given, int | float) and poll_s >= MIN_POLL_S):
            raise UsageError(f"poll_s is {given!r:.40}: give {MIN_POLL_S} seconds or more.")
        given = home
        if not isinstance(given, str | os.PathLike | None):
            raise UsageError(f"home is {given!r:.40}: give the path of the device's directory.")
        where = DeviceHome.default() if home is None else DeviceHome(Path(home))
        return cls(where, online=online, poll_s=poll_s, clock=clock)

    def __enter__(self) -> Device:
        self._require_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = ", closed=True" if self._closed else ""
        return f"Device({self._identity.device!r}, fleet={self._identity.fleet!r}{closed})"

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"Device {self.id} is not copied or sent to another process: open it anew, once in each process."
        )

    @property
    def id(self) -> DeviceId:
        """Its name in the fleet."""
        return self._identity.device

    @property
    def fleet(self) -> FleetId:
        """Its fleet."""
        return self._identity.fleet

    def model(self, name: str, *, variant: str | None = None, engine: EngineOptions | None = None) -> Model:
        """Return a model of this device. It needs no network.

        It answers by the newest release that is here, and goes over to the next one between two questions
        when that is installed. A version that fails on this device gives way to the one before it.

        Args:
            name: The model.
            variant: The variant to run; by default the one that is fastest here.
            engine: How its engine may use the device; by default one thread.

        Raises:
            UsageError: The model is not installed, or has no such variant, or the device not what is asked for; or the
                device was closed.
            PackageError: Its package on the disk is damaged, or does not compute what it should, and there is
                none before it.
            StorageError: The disk is full, or the device's own files are damaged.
        """
        self._require_open()
        from umbel.engines import require_options

        require_options(engine)
        model = self._follower.model(name, variant, engine)
        if model._queue is None and model.labels:
            model._queue = self._desk.queue(name)
        return model

    @property
    def telemetry(self) -> Telemetry:
        """Counts what happens in the application: ``device.telemetry.count("purchase")``."""
        return self._telemetry

    def data(self, model: str) -> DataSet:
        """Return the examples of a model that this device keeps to train on; they never leave it.

        It is closed with the device.

        Args:
            model: The model; what it takes is what an example must look like.

        Raises:
            UsageError: The model is not installed, or the device was closed.
            StorageError: The data set is damaged.
        """
        self._require_open()
        from umbel._data.dataset import open_data

        if model not in self._data or self._data[model].closed:  # As it is at the end of a with.
            self._data[model] = open_data(self.home, self._shelf, model, clock=self._clock)
        return self._data[model]

    @property
    def consent(self) -> Consent:
        """What the user allows. ``device.consent.revoke("training")`` deletes every example of every data set."""
        from umbel._data.consent import Consent

        return Consent(self.home, clock=self._clock)

    @Part
    def conditions(self) -> Conditions:
        """When this device trains; printed, it says why it does not now."""
        from umbel._rounds.conditions import Conditions

        return Conditions(self.home)

    @property
    def privacy(self) -> Privacy:
        """What this device has shared, when, and what that cost; printed, in plain words.

        Raises:
            StorageError: The ledger is missing or damaged, or another of the device's files.
        """
        from umbel._privacy import account

        return account(self.home, self.conditions)

    def sync(self) -> tuple[Release, ...]:
        """Talk to the gateway now: renew the certificate if it is time, fetch releases, send reports.

        Returns:
            What was installed.

        Raises:
            UsageError: The process was forked while the device was open: its parent talks to the gateway. Or the device
                was closed.
            UnavailableError: The gateway does not answer; nothing is lost.
            RefusedError: The device was removed from the fleet, or its certificate expired too long ago.
            CertificateError: The papers that the fleet gives do not hold together, or not now.
            PackageError: A release did not verify, or what the fleet signed of its releases has expired; the active one
                stays.
        """
        self._require_open()
        if self._forked:
            raise UsageError(
                "This process was forked while the device was open: let the one it was forked from talk to the "
                "gateway, or open the device after the fork."
            )
        try:
            return self._synced()
        except RefusedError:
            with contextlib.suppress(StorageError):  # Why it is refused says more than a full disk.
                self._spool.refused(self._clock())
            raise

    def _synced(self) -> tuple[Release, ...]:
        from umbel._fleet.channel import Gateway
        from umbel._fleet.enroll import keep_certificate, renew
        from umbel._fleet.uplink import upload

        now_s = self._clock()
        keep_certificate(self.home, now_s=now_s)
        if now_s >= self.home.certificate_validity().renew_at_s():
            with Gateway(self.home, now_s=now_s) as gateway:
                renew(self.home, gateway, now_s=now_s)
        with Gateway(self.home, now_s=now_s) as gateway:
            self._attend_reviews()
            self._telemetry.flush()
            upload(gateway, self._spool, now_s=self._clock)
            try:
                installed = self._delivery.check(gateway)
            finally:
                self._follower.follow()
            upload(gateway, self._spool, now_s=self._clock)  # What became of answers that came.
            self._spool.contacted(now_s)
        return tuple(_release(item) for item in installed)

    def status(self) -> Status:
        """Return how the device is; nothing is sent.

        Raises:
            UsageError: The device was closed.
            StorageError: One of its files is damaged.
        """
        self._require_open()
        from umbel._fleet.trust import trusted_until_s
        from umbel._releases.shadows import shadows
        from umbel._rounds.ledger import Ledger
        from umbel._status import FailedRelease, Status

        policy, depth = self.home.open_policy(), self._spool.depth()
        with Ledger(self.home.ledger) as ledger:
            rounds, epsilon = len(ledger.charges()), ledger.spent(policy.budget_delta)
        versions = self._shelf.versions
        with contextlib.suppress(StorageError):  # A full disk is no reason to say nothing.
            versions.collect()
        names = versions.models()
        active = (self._shelf.active(name) for name in names)
        failed = [(name, failure) for name in names for failure in versions.slots(name).failed]
        return Status(
            fleet=self._identity.fleet,
            device=self._identity.device,
            gateway=self._identity.gateway,
            certificate_ends_s=self.home.certificate_validity().ends_s,
            last_contact_s=self._spool.last_contact_s(),
            refused_s=self._spool.refused_s(),
            agent_runs=self.home.agent_runs(),
            models=tuple(_release(item) for item in active if item is not None),
            releases_until_s=trusted_until_s(self.home),
            failed=tuple(FailedRelease(name, each.version, each.why, each.at_s) for name, each in failed),
            shadows=shadows(self._shelf),
            spooled_batches=depth.batches,
            spooled_bytes=depth.bytes,
            dropped_batches=depth.dropped,
            rounds=rounds,
            epsilon=epsilon,
            budget_epsilon=policy.budget_epsilon,
            budget_delta=policy.budget_delta,
            training=self.conditions.now(),
        )

    def close(self, *, timeout_s: float = CLOSE_S) -> None:
        """Seal what telemetry holds, send it if that goes quickly, and end the background thread.

        What could not be sent waits on the disk for the next time. Closing twice does nothing. A model that was opened
        goes on answering, and nothing of that is reported, nor of what the application counts later.

        Args:
            timeout_s: How long to wait for the gateway.

        Raises:
            StorageError: The disk is full: the last window is lost.
        """
        uplink, self._uplink = self._uplink, None
        try:
            if uplink is not None:
                uplink.close(timeout_s=timeout_s)
            if "_follower" in vars(self) and not self._closed:
                self._follower.close()
            if "_desk" in vars(self) and not self._closed:
                self._desk.close()
            if "_telemetry" in vars(self) and not self._closed:
                self._telemetry.flush()
        finally:
            self._closed = True
            self._spool.close()
            for data in self._data.values():
                data.close()

    def _require_open(self) -> None:
        # Else what is closed says of itself that the disk is at fault.
        if self._closed:
            raise UsageError(f"Device {self.id} was closed: open it again with Device.open.")

    def _wake(self) -> None:
        """Begin what goes on in the background; offline or in a forked process, once something may be reported."""
        with self._waking:
            if not self._asleep or self._closed:
                return
            if self._forked:
                self._put_away(self._telemetry)
            if not self._online or self._forked:
                return
            self._asleep = False
            from umbel._fleet.uplink import Uplink

            self._uplink = Uplink(
                self.home,
                spool=self._spool,
                telemetry=self._telemetry,
                delivery=self._deliver,
                follow=self._attend,
                poll_s=self._poll_s,
                # Without a model there is nothing to predict with: the sooner one comes, the better.
                rest_s=min(REST_S, self._poll_s) if self._shelf.versions.models() else 0.0,
                clock=self._clock,
            )
            self._uplink.start()

    def _put_away(self, telemetry: Telemetry) -> None:
        """Begin to put reports into the spool, for another process to send."""
        if not self._asleep or self._closed:
            return
        from umbel._telemetry.flusher import Flusher

        self._asleep = False
        period_s = min(SHORT_S, max(self._poll_s, 1.0))
        self._uplink = Flusher(telemetry, self._spool, self._attend, period_s=period_s)
        self._uplink.start()

    def _deliver(self, gateway: Gateway) -> list[Installed]:
        return self._delivery.check(gateway)

    def _renew(self) -> None:
        leave_alone(self._uplink)
        self._making = threading.RLock()
        self._uplink, self._asleep, self._forked = None, True, True

    def _attend(self) -> None:
        """Do what is due in the background. It never raises."""
        self._follower.follow()
        self._attend_reviews()

    def _attend_reviews(self) -> None:
        """Put on disk what waits for a person, and let the fleet know where that is allowed. It never raises."""
        if "_desk" in vars(self):
            self._desk.keep()
        elif not self.home.reviews.exists():
            return
        self._desk.announce()

    def _answered(self, answers: Sequence[bytes]) -> None:
        self._desk.take(answers)

    def _labels(self, model: str) -> Sequence[str]:
        installed = self._shelf.active(model)
        if installed is None:
            raise UsageError(f"The model {model} is not installed.")
        return self._shelf.package(installed).manifest.labels

    # The parts below take time to import: each is loaded when it is first needed.

    @Part
    def _desk(self) -> Desk:
        from umbel._review.desk import Desk

        return Desk(self.home, self._telemetry, data=self.data, labels=self._labels, clock=self._clock)

    @Part
    def _shelf(self) -> Shelf:
        from umbel._releases.shelf import open_shelf

        return open_shelf(self.home, clock=self._clock)

    @Part
    def _follower(self) -> Follower:
        from umbel._releases.follow import Follower

        return Follower(self._shelf, self._telemetry, clock=self._clock)

    @Part
    def _telemetry(self) -> Telemetry:
        from umbel._telemetry.telemetry import Telemetry

        # Telemetry belongs to the device, and must not keep it alive.
        wake = weakref.WeakMethod(self._wake)
        telemetry = Telemetry(self.home, self._spool, clock=self._clock, wake=lambda: (wake() or _nothing)())
        if self._forked or not self._online:
            self._put_away(telemetry)
        return telemetry

    @Part
    def _delivery(self) -> Delivery:
        from umbel._fleet.delivery import Delivery

        return Delivery(
            self.home,
            self._shelf,
            tell=self._telemetry._add,
            answered=self._answered,
            clock=self._clock,
        )


def _nothing() -> None:
    pass


def _release(installed: Installed) -> Release:
    from umbel._status import Release

    return Release(installed.model, installed.version, installed.variant)
