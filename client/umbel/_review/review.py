"""What people say of predictions: reviews of those that a model was not sure enough of, overrides, and feedback.

Examples and decisions stay on the device; telemetry hears how many there were.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel._data.lineage import check_words, pack, unpack
from umbel._review.recent import Said, recall
from umbel_proto.errors import ContractError, RefusedError, UmbelError, UsageError

if TYPE_CHECKING:
    from umbel._predict.answer import Prediction
    from umbel._review.queue import Offered, Queue
    from umbel._review.store import Row

SOURCES = frozenset({"user", "expert", "sensor", "outcome", "rule"})
"""Where a label is from, in words that telemetry counts by themselves; any other is one of the others there."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A prediction that waits for a person.

    Args:
        id: The prediction's.
        model_version: Version of the model that made it.
        label: Index of the class that the model gave.
        name: Its name.
        confidence: Its probability, in [0, 1].
        at_s: When it was made, Unix seconds of the device's clock.
        unsure: Whether it waits because that is less than the model asks for.
        flagged: Whether it waits because the data contract flags a value of the input.
        x: What it was made from, as the model took it, shape of one example.
    """

    id: str
    model_version: int
    label: int
    name: str
    confidence: float
    at_s: float
    unsure: bool
    flagged: bool
    x: NDArray[Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a person decided on a prediction.

    Args:
        id: The prediction's.
        label: Index of the class that holds.
        name: Its name.
        said: Index of the class that the model gave; None where that is not known any more.
        by: Who decided.
        why: For what reason; empty where a review gave none.
        override: Whether it took the place of a decision that was made already.
        at_s: When, Unix seconds of the device's clock.
    """

    id: str
    label: int
    name: str
    said: int | None
    by: str
    why: str
    override: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class Feedback:
    """What came of a label that arrived after its prediction.

    Args:
        agreed: Whether it is the label that the model gave.
        kept: Whether the example went into the local data set, with this label.
    """

    agreed: bool
    kept: bool


class _Known(NamedTuple):
    """A prediction's id, label, version, confidence and input, as far as they are known."""

    name: str
    label: int | None
    version: int
    confidence: float | None
    x: NDArray[Any] | None


class Review:
    """The reviews of one model on this device: ``model.review``.

    Args:
        queue: What waits.
        labels: Name of each class.
        version: The version that answers now.
    """

    def __init__(self, queue: Queue, labels: Sequence[str], version: int) -> None:
        self._queue = queue
        self._labels = labels
        self._version = version

    def __repr__(self) -> str:
        return f"Review({self._queue.model!r})"

    def pending(self) -> tuple[Case, ...]:
        """Return the predictions that wait for a person, oldest first.

        Raises:
            StorageError: The file is damaged, or its key missing.
        """
        self._queue.keep()
        return tuple(case_of(row) for row in self._queue.store.cases(self._queue.model))

    def resolve(
        self,
        id: Prediction | str,  # noqa: A002
        label: int | str,
        *,
        by: str,
        why: str = "",
    ) -> Ruling:
        """Say what holds for a prediction that waits. It then waits no more.

        Its example goes into the local data set with this label, if the user allows training.

        Args:
            id: The prediction, or its id.
            label: The class that holds, by number or name, whether the model gave it or not.
            by: Who says so.
            why: For what reason.

        Raises:
            UsageError: No such prediction waits, or the model has no such class.
            StorageError: The disk is full, or a file damaged; the prediction goes on waiting.
        """
        name = _name(id)
        case = self._waiting(name)
        if case is None:
            raise UsageError(
                f"No prediction {name!r} of {self._queue.model} waits for a review: override(...) changes what was "
                "decided already."
            )
        made = self._ruled(name, label, said=case.label, by=by, why=why, override=False)
        self._decide(made, case.x, source="review")
        self._resolved(case, made)
        return made

    def _answer(self, id: str, label: int, *, by: str, why: str) -> bool:  # noqa: A002
        """Resolve a prediction that was announced to the fleet, as somebody there decided.

        Returns:
            Whether it still waited; if not, nothing is recorded.

        Raises:
            UsageError: The model has no such class, or nobody is named.
            StorageError: The disk is full; the prediction goes on waiting.
        """
        case = self._waiting(id)
        if case is None:
            return False
        made = self._ruled(id, label, said=case.label, by=by, why=why, override=False)
        if not self._decide(made, case.x, source="review", answering=True):
            return False
        self._resolved(case, made)
        self._queue.tell(case.model_version, "review.answered", 1)
        return True

    def _resolved(self, case: Case, made: Ruling) -> None:
        """Tell telemetry of a prediction that waited and is decided on."""
        self._queue.tell(case.model_version, "review.resolved", 1)
        if made.name != case.name:  # Another version may number its classes otherwise.
            self._queue.tell(case.model_version, "review.changed", 1)
        self._compare(case.id, case.model_version, made.by, made.label)

    def override(self, prediction: Prediction | str, label: int | str, *, by: str, why: str) -> Ruling:
        """Put a person's label in the place of any prediction's, reviewed or automatic.

        Args:
            prediction: The prediction, or its id.
            label: The class that holds, by number or name.
            by: Who says so.
            why: For what reason; it must say something.

        Raises:
            UsageError: Nobody or no reason is named, or the model has no such class.
            StorageError: The disk is full, or a file damaged; nothing changes.
        """
        check_words(why)
        if not why.strip():
            raise UsageError("An override needs a reason: say why=...")
        name, said, version, _, x = self._known(prediction)
        made = self._ruled(name, label, said=said, by=by, why=why, override=True)
        self._decide(made, x, source="override")
        self._queue.tell(version, "review.overridden", 1)
        self._compare(name, version, by, made.label)
        return made

    def rulings(self) -> tuple[Ruling, ...]:
        """Return what was decided on this device, oldest first, up to the last 10,000.

        Raises:
            StorageError: The file is damaged, or its key missing.
        """
        return tuple(self._ruling(row) for row in self._queue.store.records(self._queue.model))

    def clear(self) -> int:
        """Delete everything that waits, and return how much it was. What was decided stays."""
        return self._queue.clear()

    def feedback(
        self, prediction: Prediction | str, *, label: int | str, source: str, annotator: str, x: object
    ) -> Feedback:
        """Take a label that arrived after its prediction: see ``Model.feedback``."""
        right = self._class(label)
        check_words(source, annotator)
        if not source:
            raise UsageError("Say where a label is from: give a source, such as 'user'.")
        name, said, version, confidence, own = self._known(prediction)
        if said is None:
            raise UsageError(
                f"What was said in prediction {prediction!r} is not kept: give the Prediction itself."
            )
        given = own if x is None else x
        kept = given is not None and bool(self._learn(given, right, source=source, annotator=annotator))
        self._queue.judge(version, said == right, confidence)
        self._queue.tell(version, f"feedback.from.{source if source in SOURCES else 'other'}", 1)
        self._compare(name, version, annotator, right)
        return Feedback(said == right, kept)

    def _known(self, prediction: Prediction | str) -> _Known:
        name = _name(prediction)
        case = self._waiting(name)
        if not isinstance(prediction, str):
            said: Prediction | Said | None = prediction
            version, x = prediction.model_version, None if case is None else case.x
        elif case is not None:
            return _Known(name, case.label, case.model_version, case.confidence, case.x)
        else:
            said = recall(name)
            version, x = self._version if said is None else said.version, None
        if said is None:
            return _Known(name, None, version, None, None)
        return _Known(name, said.label, version, said.confidence, x)

    def _compare(self, name: str, version: int, annotator: str, label: int) -> None:
        """Count whether somebody agrees with who labeled the same prediction before; who that was stays here."""
        agrees = self._queue.labeled.agrees(name, annotator, label)
        if agrees is not None:
            self._queue.tell(version, "feedback.compared", 1)
            if agrees:
                self._queue.tell(version, "feedback.alike", 1)

    def _waiting(self, name: str) -> Case | None:
        self._queue.keep()
        return next((case_of(row) for row in self._queue.store.cases(self._queue.model, name)), None)

    def _ruled(
        self, name: str, label: int | str, *, said: int | None, by: str, why: str, override: bool
    ) -> Ruling:
        right = self._class(label)
        check_words(by, why)
        if not by.strip():
            raise UsageError("Say who decides: by=...")
        return Ruling(name, right, self._labels[right], said, by, why, override, self._queue.clock())

    def _decide(self, made: Ruling, x: NDArray[Any] | None, *, source: str, answering: bool = False) -> bool:
        """Record a decision, and learn from its example: both or, where one of them fails, neither.

        A crash between the two leaves the example labeled and the prediction waiting: nothing of it is lost.

        Returns:
            What the store says of it.
        """
        learned: tuple[str, ...] = ()
        if x is not None:
            # What an older version was asked may be no example of the installed one: then there is nothing to learn.
            with contextlib.suppress(ContractError):
                learned = self._learn(x, made.label, source=source, annotator=made.by)
        store, model = self._queue.store, self._queue.model
        try:
            decided = store.decide(model, made.id, _record(made), at_s=made.at_s, answering=answering)
        except BaseException:
            self._forget(learned)
            raise
        if answering and not decided:
            self._forget(learned)
        return decided

    def _forget(self, learned: Sequence[str]) -> None:
        if learned:
            with contextlib.suppress(UmbelError):  # What is told is why there is no decision.
                self._queue.data().remove(*learned)

    def _learn(self, x: object, label: int, *, source: str, annotator: str) -> tuple[str, ...]:
        """Put an example into the local data set; return its id there, or nothing where the user does not allow it."""
        try:
            return self._queue.data().add(x, label, source=source, annotator=annotator)
        except RefusedError:
            return ()

    def _class(self, label: int | str) -> int:
        if isinstance(label, str) and self._labels.count(label) == 1:
            return self._labels.index(label)
        if (
            isinstance(label, bool | str)
            or not isinstance(label, int | np.integer)
            or not 0 <= label < len(self._labels)
        ):
            raise UsageError(
                f"Model {self._queue.model} has no class {label!r}: give a number in 0..{len(self._labels) - 1}, or "
                "one of its labels."
            )
        return int(label)

    def _ruling(self, row: Row) -> Ruling:
        name, at_s, plain = row
        return _ruling(unpack(plain)[0], name, at_s)


def _name(prediction: Prediction | str) -> str:
    """Return a prediction's id."""
    if isinstance(prediction, str):
        return prediction
    from umbel._predict.answer import Prediction

    if isinstance(prediction, Prediction):
        return prediction.id
    raise UsageError(f"A {type(prediction).__name__} is no prediction: give one Prediction, or its id.")


def case_of(row: Row) -> Case:
    """Read a prediction that waits, as the store has it."""
    name, at_s, plain = row
    fields, raw = unpack(plain)
    return Case(
        name,
        int(fields["version"]),
        int(fields["label"]),
        fields["name"],
        float(fields["confidence"]),
        at_s,
        # Rows of an older umbel do not say; nearly all wait because of their confidence.
        unsure=bool(fields.get("unsure", "1")),
        flagged=bool(fields.get("flagged", "")),
        x=np.load(io.BytesIO(raw), allow_pickle=False),
    )


def row_of(offered: Offered) -> Row:
    """Return a prediction that wants a review, as the store has it."""
    said = offered.prediction
    fields = {
        "version": str(said.model_version),
        "label": str(said.label),
        "name": said.name,
        "confidence": repr(said.confidence),
        "unsure": "1" if offered.unsure else "",
        "flagged": "1" if offered.flagged else "",
    }
    raw = io.BytesIO()
    np.save(raw, offered.x, allow_pickle=False)
    return said.id, offered.at_s, pack(fields, raw.getvalue())


def _record(ruling: Ruling) -> bytes:
    fields = {
        "label": str(ruling.label),
        "name": ruling.name,
        "said": "" if ruling.said is None else str(ruling.said),
        "by": ruling.by,
        "why": ruling.why,
        "override": "1" if ruling.override else "",
    }
    return pack(fields, b"")


def _ruling(fields: Mapping[str, str], name: str, at_s: float) -> Ruling:
    said = int(fields["said"]) if fields["said"] else None
    override = bool(fields["override"])
    return Ruling(
        name, int(fields["label"]), fields["name"], said, fields["by"], fields["why"], override, at_s
    )
