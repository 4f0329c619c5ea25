"""Reviews and the fleet: what waits is announced where policy and user allow it, and answers that come are taken.

The input stays here. See docs/spec/reviews.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from umbel._data.consent import REVIEWS, Consent
from umbel._home.directory import DeviceHome
from umbel._review.announced import Announced, Due
from umbel._review.queue import Queue
from umbel._review.review import Review, case_of
from umbel_proto.errors import CertificateError, PackageError, UsageError
from umbel_proto.reviews import EndedReview, ReviewAnswer, WaitingReview, end_of, open_answer

if TYPE_CHECKING:
    from umbel._telemetry.telemetry import Telemetry

AWAY = "console:"
"""Begins the name of whoever answered from afar."""

log = logging.getLogger(__name__)


def may_announce(home: DeviceHome) -> bool:
    """Return whether the fleet asks for announcements and the user allows them.

    Raises:
        StorageError: The user's word is damaged.
        CertificateError: The policy is not the fleet's.
    """
    return Consent(home).decision(REVIEWS).state == "granted" and home.open_policy().announce_reviews


class Remote:
    """A device's reviews as the fleet sees them.

    Args:
        home: The device's files.
        queue: Returns the queue of a model.
        labels: Returns the names of a model's classes; raises ``UsageError`` where it is not installed.
        announced: What was announced.
        telemetry: Seals what is told.
        clock: Returns Unix time, seconds.
    """

    def __init__(
        self,
        home: DeviceHome,
        *,
        queue: Callable[[str], Queue],
        labels: Callable[[str], Sequence[str]],
        announced: Announced,
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        self._home = home
        self._queue = queue
        self._labels = labels
        self._announced = announced
        self._telemetry = telemetry
        self._clock = clock

    def announce(self) -> None:
        """Put into the spool what the fleet does not know yet: what waits, and what waits no more.

        Raises:
            UmbelError: A file is damaged or the disk full; the rest is told the next time.
        """
        from umbel_proto.wire import telemetry_pb2 as pb

        now_s, allowed = self._clock(), may_announce(self._home)
        if not allowed and self._announced.nothing():
            return
        due = self._announced.due(allowed=allowed, now_s=now_s)
        if not due.fresh and not due.ended:
            return
        waiting = [each.to_wire() for each in self._waiting(due)]
        ended = [EndedReview(name, end_of(how)).to_wire() for name, how in due.ended]
        self._telemetry._report(pb.Batch(waiting_reviews=waiting, ended_reviews=ended))
        self._announced.told(due, now_s=now_s)

    def take(self, answers: Sequence[bytes]) -> None:
        """Decide on predictions as the fleet's people answered; one that was taken before changes nothing.

        Nobody decides from afar where nothing may be announced any more: an answer that was on its way is left.

        Args:
            answers: Signed answers, as they came.

        Raises:
            StorageError: The disk is full: the rest waits until it comes again.
        """
        if not may_announce(self._home):
            return
        identity, authority = self._home.identity, self._home.authority()
        for signed in answers:
            try:
                answer = open_answer(
                    signed, authority=authority, fleet=identity.fleet, device=identity.device
                )
            except CertificateError as exc:
                log.warning("%s It is left.", exc)
                continue
            self._take(answer)

    def _take(self, answer: ReviewAnswer) -> None:
        found = self._announced.find(answer.id, now_s=self._clock())
        if not found.waits:
            return
        try:
            labels = self._labels(found.model)
            review = Review(self._queue(found.model), labels, 0)
            by = f"{AWAY}{answer.by}"
            if review._answer(found.prediction, _class_of(answer, labels), by=by, why=answer.why):
                log.info("a prediction of %s that waited was answered from afar", found.model)
        except (UsageError, PackageError) as exc:
            log.warning("an answer to a review of %s cannot be taken: %s", found.model, exc)
            self._announced.end(answer.id, "refused", now_s=self._clock())

    def _waiting(self, due: Due) -> Iterator[WaitingReview]:
        for model, names in due.fresh.items():
            for row in self._announced.store.cases(model):
                if row[0] in names:
                    case = case_of(row)
                    yield WaitingReview.of(
                        names[row[0]],
                        model=model,
                        version=case.model_version,
                        at_s=case.at_s,
                        label=case.label,
                        confidence=case.confidence,
                        unsure=case.unsure,
                        flagged=case.flagged,
                    )


def _class_of(answer: ReviewAnswer, labels: Sequence[str]) -> int:
    """Return the number that the active version has for the class that an answer names.

    The answer's own number is of the version that made the prediction, and that may not be here any more.

    Raises:
        UsageError: The active version has no such class, or several.
    """
    if answer.label < len(labels) and labels[answer.label] == answer.name:
        return answer.label
    if labels.count(answer.name) != 1:
        raise UsageError("the version that is active has no class of that name.")
    return labels.index(answer.name)
