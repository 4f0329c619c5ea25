"""The models an application holds, each kept at the version that is active on this device."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from umbel._fork import Lock, leave_alone, renew_in_child
from umbel._predict.listeners import Window
from umbel._predict.loaded import Loaded
from umbel._predict.model import Model
from umbel._releases.package import verify_golden
from umbel._releases.packages import QUANTIZED, Installed
from umbel._releases.shelf import Shelf
from umbel._releases.trial import TRIAL_S, Mark, Purpose, within
from umbel._releases.turns import yielding
from umbel._telemetry.scope import Scope
from umbel.engines import Engine, EngineOptions, load_engine
from umbel_proto.contract import Field
from umbel_proto.errors import PackageError, RefusedError, UmbelError, UsageError
from umbel_proto.package import Package

if TYPE_CHECKING:
    from umbel._predict.shadow import Shadow
    from umbel._quantize.here import Made
    from umbel._releases.slots import Beside
    from umbel._telemetry.comparison import Comparison

STEADY_S = 10.0
"""How long a process has to live with a version that has not run here before, until a crash of it says nothing of
the version."""

log = logging.getLogger(__name__)


class Windows(Protocol):
    """Telemetry, as far as it is needed here."""

    def window(
        self, *, model: str, version: int, variant: str, engine: str, scope: Scope | None = None
    ) -> Window:
        """Return the open window of a model version, which does what the package asks."""

    def comparison(self, *, model: str, version: int, variant: str, engine: str, scope: Scope) -> Comparison:
        """Return the open window of a version that is asked beside the one that answers."""


class Follower:
    """Loads models, and replaces each by a newer version when there is one, while it answers.

    A version is loaded beside the one that answers, has to pass its golden vectors in time, and then one
    reference is replaced. What fails on this device is given up for the version before it.

    Args:
        shelf: The packages.
        telemetry: Counts predictions, and versions that failed.
        clock: Returns Unix time, seconds.
        limit_s: How long a version may take to load and to pass its golden vectors.
    """

    def __init__(
        self, shelf: Shelf, telemetry: Windows, *, clock: Callable[[], float], limit_s: float = TRIAL_S
    ) -> None:
        self._shelf = shelf
        self._telemetry = telemetry
        self._clock = clock
        self._limit_s = limit_s
        self._models: weakref.WeakValueDictionary[tuple[str, _How], Model] = weakref.WeakValueDictionary()
        self._starts: list[_Start] = []
        self._shadows: dict[str, tuple[str, Shadow]] = {}
        self._said: dict[str, str] = {}
        self._lock = Lock()
        # An application that ends in order has not crashed, even if it never closed its device.
        weakref.finalize(self, _end, self._starts)
        renew_in_child(self._renew)

    def model(self, name: str, variant: str | None, options: EngineOptions | None = None) -> Model:
        """Return a model that answers by the active version, now and later.

        Args:
            name: The model.
            variant: The variant to run; None for the fastest one.
            options: How its engine may use the device.

        Raises:
            UsageError: The model is not installed, or has no such variant, or the device not what is asked for.
            PackageError: No version of it that is here can be used.
            StorageError: The shelf's own files are damaged, or the disk is full.
        """
        with self._lock, yielding():
            how = _How(variant, options)
            model = self._models.get((name, how))
            if model is not None:
                self._update(model, name, how)
                self._accompany(name)
                return model
            loaded = self._newest(name, how)
            if loaded is None:
                raise UsageError(
                    f"No model {name!r} is installed: let the device fetch it, with device.sync(), or ask for its release."
                )
            model = Model(loaded.package, loaded.engine, loaded.window, clock=self._clock)
            model._adopt = self._adopt
            self._models[name, how] = model
            self._accompany(name)
            return model

    def follow(self) -> None:
        """Replace versions that are no longer active, and tell telemetry what failed. It never raises.

        What cannot be replaced goes on answering.
        """
        with self._lock, yielding():
            self._note_asked()
            for (name, how), model in list(self._models.items()):
                self._update(model, name, how)
            for name in {name for name, _ in self._models} | self._shadows.keys():
                self._accompany(name)
            try:
                self._prove(STEADY_S)
                for name, failure in self._shelf.versions.untold():
                    window = self._telemetry.window(
                        model=name, version=failure.version, variant="none", engine="none"
                    )
                    window.count("model.fell_back")
            except UmbelError as exc:
                self._say("", exc)

    def close(self) -> None:
        """Say that this process has lived with its versions to a good end. It never raises."""
        with self._lock:
            for model in list(self._models.values()):
                model._shadow = None
            for _, shadow in self._shadows.values():
                shadow.close()
            self._note_asked()
            self._shadows.clear()
            try:
                self._prove(0.0)
            except UmbelError as exc:
                self._say("", exc)

    def _note_asked(self) -> None:
        """Note with the shelf how many examples were put to what is run beside. It never raises."""
        for name, (pair, shadow) in self._shadows.items():
            if number := shadow.asked():
                try:
                    self._shelf.versions.asked(name, pair.partition(" ")[0], number)
                except UmbelError as exc:
                    self._say(name, exc)

    def _accompany(self, name: str) -> None:
        """Let what the fleet wants be run beside the models of a name, and nothing else. It never raises."""
        models = [model for (each, _), model in list(self._models.items()) if each == name]
        try:
            found = self._shelf.beside(name) if models else None
            pair = "" if found is None else f"{found[0].sha256} {models[0]._loaded.package.sha256}"
            present = self._shadows.get(name)
            if present is not None and present[0] != pair:
                self._shadows.pop(name)[1].end()
                present = None
            if found is not None and present is None and self._has_room(*found):
                present = self._shadows[name] = pair, self._begin_shadow(*found, models[0]._loaded)
        except UmbelError as exc:
            self._say(name, exc)
            present = None
        for model in models:
            model._shadow = None if present is None else present[1]

    def _has_room(self, installed: Installed, beside: Beside) -> bool:
        """Whether this process has memory for it beside what answers; the shelf knows if not, and tells the fleet."""
        why = ""
        try:
            self._shelf.require_spare(installed.sha256, installed.size)
        except RefusedError as exc:
            why = str(exc)
        if bool(why) != bool(beside.why):
            self._shelf.versions.accompany(installed.model, replace(beside, why=why))
        return not why

    def _begin_shadow(self, installed: Installed, beside: Beside, active: Loaded) -> Shadow:
        from umbel._predict.shadow import Shadow
        from umbel._releases.beside import load_candidate

        name, versions = installed.model, self._shelf.versions
        with versions.changing():
            mark = versions.begin(Purpose.beside, name, installed.version, installed.sha256)
        self._starts.append(_Start(name, installed.sha256, self._clock(), mark))
        shelf, windows, hidden = self._shelf, self._telemetry, Scope.of(active.package)
        shadow = Shadow(
            lambda: load_candidate(shelf, installed, beside, windows, hidden),
            one_in=beside.one_in,
            example_bytes=_bytes_of(active.contract),
        )
        shadow.start()
        return shadow

    def _update(self, model: Model, name: str, how: _How) -> None:
        try:
            active = self._shelf.active(name)
            if active is None or active.sha256 == model._loaded.package.sha256:
                return
            loaded = self._newest(name, how)
        except UmbelError as exc:
            self._say(name, exc)
            return
        if loaded is not None:
            before = model._loaded.package.sha256
            model._replace(loaded)
            # A version that no longer answers is on trial no more, and every look for crashes opens each mark.
            for start in [each for each in self._starts if (each.model, each.sha256) == (name, before)]:
                self._end(start)
            log.info("%s answers by version %d", name, loaded.version)

    def _newest(self, name: str, how: _How) -> Loaded | None:
        """Load the active version, or, where it fails, the one before it; None if the model is not installed."""
        while (begun := self._shelf.begin(name)) is not None:
            installed, mark = begun
            try:
                loaded = self._tried(installed, how)
            except BaseException:
                if mark is not None:
                    mark.end()
                raise
            if loaded is not None:
                if mark is not None:
                    self._starts.append(_Start(name, installed.sha256, self._clock(), mark))
                return loaded
            if mark is not None:
                mark.end()
        return None

    def _tried(self, installed: Installed, how: _How) -> Loaded | None:
        """Load a version; None if it failed, and another one is active now."""
        name, versions = installed.model, self._shelf.versions
        try:
            package = self._shelf.package(installed)
        except PackageError:
            if not versions.lose(name, installed.sha256):
                raise
            return None
        what = f"{name} {installed.version}"
        try:
            engine = within(self._limit_s, lambda: self._engine(package, installed, how), what)
        except PackageError as exc:
            if how.options is not None:
                # What the application asks for may be what fails: that is not held against the version.
                if self._tried(installed, _How(how.variant, None)) is not None:
                    raise
                return None
            failure = versions.failure(installed.sha256, installed.version, f"failed at start: {exc}")
            if not versions.fall_back(name, failure):
                raise
            return None
        window = self._telemetry.window(
            model=name,
            version=installed.version,
            variant=engine.variant,
            engine=engine.name,
            scope=Scope.of(package),
        )
        return Loaded(package, engine, window)

    def _engine(self, package: Package, installed: Installed, how: _How) -> Engine:
        """Load what is to run: what was asked for, else what this device made or chose itself."""
        if how.variant is None:
            folder, previous = self._shelf.folder(installed.sha256), self._shelf.previous(installed.model)
            before = None if previous is None else self._shelf.folder(previous.sha256)
            if any(each is not None and (each / QUANTIZED).exists() for each in (folder, before)):
                from umbel._releases.kept import kept_engine

                engine = kept_engine(package, installed.variant, folder, before, options=how.options)
                if engine is not None:
                    return engine
        engine = load_engine(package, how.variant or installed.variant, options=how.options)
        verify_golden(package, engine)
        return engine

    def _adopt(self, model: Model, loaded: Loaded, made: Made) -> None:
        """Run a form of a version that was made on this device, now and at the next start, and tell telemetry.

        Raises:
            StorageError: The disk is full; what ran goes on.
        """
        from umbel._quantize.here import tell
        from umbel._releases.kept import keep

        package, report = loaded.package, made.report
        with self._lock:
            windows = {
                form.name: self._telemetry.window(
                    model=package.manifest.model,
                    version=package.manifest.version,
                    variant=form.variant,
                    engine=form.engine,
                )
                for form in report.forms
            }
            # Where a newer version answers by now, this one's package may be gone.
            if made.kept is not None and model._loaded is loaded:
                keep(self._shelf.folder(package.sha256), made.kept)
                model._replace(Loaded(package, made.engine, windows[report.choice]))
            for form in report.forms:
                chosen = form.name == report.choice
                tell(windows[form.name], form, chosen=chosen, held_back=report.held_back)

    def _renew(self) -> None:
        # Whether a version lives long enough, the parent tells.
        leave_alone(list(self._starts))
        self._starts.clear()
        for model in list(self._models.values()):
            model._shadow = None
        self._shadows.clear()

    def _prove(self, after_s: float) -> None:
        for start in [each for each in self._starts if abs(self._clock() - each.at_s) >= after_s]:
            self._end(start)
            self._shelf.versions.prove(start.model, start.sha256)

    def _end(self, start: _Start) -> None:
        start.mark.end()
        self._starts.remove(start)

    def _say(self, name: str, exc: UmbelError) -> None:
        if self._said.get(name) != str(exc):
            log.warning("%s", exc)
            self._said[name] = str(exc)


@dataclass(frozen=True, slots=True)
class _Start:
    """A version that answers for the first time here, since ``at_s``, Unix seconds."""

    model: str
    sha256: str
    at_s: float
    mark: Mark


@dataclass(frozen=True, slots=True)
class _How:
    """What an application asked for beside a name."""

    variant: str | None
    options: EngineOptions | None


def _bytes_of(field: Field) -> int:
    """Return how large an example is."""
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize


def _end(starts: list[_Start]) -> None:
    for start in starts:
        start.mark.end()
