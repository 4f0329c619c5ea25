"""Which version of each model answers on this device: slots on disk, and what became of loading them.

::

    shelf/
      state.lock               held while what follows changes: milliseconds
      models/MODEL.json        the model's ``Slots``, replaced in one step
      marks/                   packages being loaded that have not run here before

Any number of processes may read while one changes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from umbel._home.files import locked, make_private_directory, write_atomically
from umbel._releases.slots import Beside, Failure, Slots
from umbel._releases.trial import Attempt, Mark, Marks, Purpose
from umbel_proto.errors import StorageError
from umbel_proto.ids import check_name

CRASHES = 3
"""Crashes at start after which the version before answers again."""
CRASHES_WITHIN_S = 600.0

log = logging.getLogger(__name__)


class Versions:
    """The slots of every model of a shelf.

    Args:
        root: The shelf's directory.
        clock: Returns Unix time, seconds.

    Raises:
        StorageError: The directory cannot be made.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float]) -> None:
        self._root = root
        self._clock = clock
        self._marks = Marks(root / "marks")
        make_private_directory(root / "models")

    def models(self) -> list[str]:
        """Return the models that have slots, sorted."""
        return sorted(path.stem for path in (self._root / "models").glob("*.json") if path.stem[0] != ".")

    def slots(self, model: str) -> Slots:
        """Return a model's slots; empty ones if nothing is known of it.

        Raises:
            StorageError: Their file is damaged.
        """
        path = self._path(model)
        try:
            return Slots.from_json(path.read_bytes())
        except FileNotFoundError:
            return Slots()
        except (OSError, ValueError) as exc:
            raise StorageError(f"{path} is damaged: remove it and install the package again.") from exc

    def begin(self, purpose: Purpose, model: str, version: int, sha256: str) -> Mark:
        """Say, on disk, that a package will now be loaded. Whoever calls is in ``changing``.

        Raises:
            StorageError: The disk is full or damaged.
        """
        return self._marks.begin(Attempt(purpose, model, version, sha256, self._clock()))

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one to change slots for the length of a block. What other processes died of is known by then.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with locked(self._root / "state.lock"):
            self._collect()
            yield

    def write(self, model: str, slots: Slots) -> None:
        """Replace a model's slots in one step. Whoever calls is in ``changing``.

        Raises:
            StorageError: The disk is full or damaged.
        """
        write_atomically(self._path(model), slots.to_json())

    def collect(self) -> None:
        """Find out what processes died of while they loaded a package, if any did.

        Raises:
            StorageError: The disk is full or damaged.
        """
        if self._marks.any():
            with self.changing():
                pass

    def failure(self, sha256: str, version: int, why: str, *, told: bool = False) -> Failure:
        """Return a failure of this moment and this umbel."""
        return Failure(sha256, version, why, self._clock(), umbel_version(), told)

    def refuse(self, model: str, failure: Failure) -> None:
        """Remember that a version failed before it was active.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with self.changing():
            self.write(model, self.slots(model).refused(failure))
        log.warning("%s %d is not used: it %s", model, failure.version, failure.why)

    def fall_back(self, model: str, failure: Failure) -> bool:
        """Let the version before the active one answer again, if there is one.

        Returns:
            Whether another version is active now.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with self.changing():
            slots = self.slots(model)
            if slots.active == failure.sha256:
                if slots.previous is None:
                    return False
                self.write(model, slots.fell_back(failure))
                level = logging.INFO if failure.told else logging.WARNING
                log.log(level, "%s fell back from version %d: it %s", model, failure.version, failure.why)
        return True

    def accompany(self, model: str, beside: Beside | None) -> None:
        """Let another version, or none, be run beside the active one.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with self.changing():
            slots = self.slots(model)
            if slots.beside != beside:
                self.write(model, slots.accompanied(beside))

    def asked(self, model: str, sha256: str, examples: int) -> None:
        """Count examples that were put to the version beside the active one.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with self.changing():
            slots = self.slots(model)
            if (after := slots.asked(sha256, examples)) is not slots:
                self.write(model, after)

    def lose(self, model: str, sha256: str) -> bool:
        """Take away a package that is damaged on the disk, so that it is fetched again.

        Returns:
            Whether another version is active now.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with self.changing():
            slots = self.slots(model)
            if slots.active == sha256:
                slots = slots.lost()
                self.write(model, slots)
        return slots.active is not None

    def prove(self, model: str, sha256: str) -> None:
        """Remember that a version has run here without a crash.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with self.changing():
            slots = self.slots(model)
            if slots.active == sha256 and not slots.proven:
                self.write(model, slots.proved())

    def retry(self, model: str) -> tuple[Failure, ...]:
        """Forget what failed, so that it is tried again when it is offered.

        Returns:
            What was forgotten.

        Raises:
            StorageError: The disk is full or damaged.
        """
        with self.changing():
            slots = self.slots(model)
            if slots.failed:
                self.write(model, slots.retried())
        return slots.failed

    def failed(self) -> list[str]:
        """Return the hashes of the packages that this umbel does not try again, of every model.

        Raises:
            StorageError: A file is damaged.
        """
        failures = [failure for model in self.models() for failure in self.slots(model).failed]
        return [failure.sha256 for failure in failures if failure.umbel == umbel_version()]

    def untold(self) -> list[tuple[str, Failure]]:
        """Return the failures that telemetry has not counted, with their models; from now on they are told.

        Raises:
            StorageError: The disk is full or damaged.
        """
        if not any(failure.told is False for model in self.models() for failure in self.slots(model).failed):
            return []
        found = []
        with self.changing():
            for model in self.models():
                slots = self.slots(model)
                new = [(model, failure) for failure in slots.failed if not failure.told]
                if new:
                    self.write(model, slots.told())
                    found += new
        return found

    def _collect(self) -> None:
        """Hold crashes against the versions that were being loaded: one in a trial, several at start or beside another."""
        besides: dict[str, list[tuple[Attempt, Path]]] = {}
        starts: dict[str, list[tuple[Attempt, Path]]] = {}
        for attempt, mark in self._marks.crashed():
            slots = self.slots(attempt.model)
            recent = abs(self._clock() - attempt.at_s) <= CRASHES_WITHIN_S
            if attempt.purpose is Purpose.start and slots.active == attempt.sha256 and recent:
                starts.setdefault(attempt.model, []).append((attempt, mark))
                continue
            accompanies = slots.beside is not None and slots.beside.sha256 == attempt.sha256
            if attempt.purpose is Purpose.beside and accompanies and recent:
                besides.setdefault(attempt.model, []).append((attempt, mark))
                continue
            if attempt.purpose is Purpose.trial and slots.active != attempt.sha256:
                failure = self.failure(attempt.sha256, attempt.version, "ended the process that tried it")
                self.write(attempt.model, slots.refused(failure))
                log.warning("%s %d is not used: it %s", attempt.model, failure.version, failure.why)
            mark.unlink(missing_ok=True)
        for model, died in starts.items():
            if len(died) >= CRASHES:
                self._give_up(model, died)
        for model, died in besides.items():
            if len(died) >= CRASHES:
                self._leave(model, died)

    def _leave(self, model: str, died: list[tuple[Attempt, Path]]) -> None:
        attempt, _ = died[-1]
        why = f"ended {len(died)} processes soon after they had loaded it beside the active version"
        failure = self.failure(attempt.sha256, attempt.version, why)
        self.write(model, self.slots(model).refused(failure))
        log.warning("%s %d is not used: it %s", model, attempt.version, why)
        for _, mark in died:
            mark.unlink(missing_ok=True)

    def _give_up(self, model: str, died: list[tuple[Attempt, Path]]) -> None:
        slots, (attempt, _) = self.slots(model), died[-1]
        # Without a version before it there is none to go back to, and it may well be the application that crashes.
        if slots.previous is not None:
            why = f"ended {len(died)} processes soon after they had loaded it"
            self.write(model, slots.fell_back(self.failure(attempt.sha256, attempt.version, why)))
            log.warning("%s fell back from version %d: it %s", model, attempt.version, why)
        for _, mark in died:
            mark.unlink(missing_ok=True)

    def _path(self, model: str) -> Path:
        return self._root / "models" / f"{check_name(model, 'model')}.json"


@functools.cache
def umbel_version() -> str:
    """Return the version of this umbel: what failed under it may run under another."""
    import importlib.metadata  # Takes longer than to load a model, and only a failure needs it.

    return importlib.metadata.version("umbel")
