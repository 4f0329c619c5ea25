"""Reviews that cross the wire: what a device announces of a prediction that waits for a person, and the answer to it.

Source: docs/spec/reviews.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import DecodeError

from umbel_proto.errors import CertificateError, UsageError, VerificationError
from umbel_proto.ids import DeviceId, FleetId, ModelName, check_name
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.wire import identity_pb2
from umbel_proto.wire import reviews_pb2 as pb

ANSWER_LABEL = "umbel/1/review-answer"
ID_BYTES = 16
MAX_LABEL = 1 << 20
MAX_WORDS = 200
"""Characters of a name or a reason."""
MAX_ANSWER_BYTES = 4096
MAX_ANNOUNCED = 100
"""Announcements of a device that nobody has answered yet, and of one report."""
LATEST_MINUTE = (1 << 40) // 60

End = Literal["answered", "here", "gone", "withdrawn", "refused"]
"""What became of a prediction that was announced: see ``ReviewEnd`` of ``wire/reviews.proto``."""

_ENDS: dict[End, pb.ReviewEnd] = {
    "answered": pb.REVIEW_END_ANSWERED,
    "here": pb.REVIEW_END_HERE,
    "gone": pb.REVIEW_END_GONE,
    "withdrawn": pb.REVIEW_END_WITHDRAWN,
    "refused": pb.REVIEW_END_REFUSED,
}


@dataclass(frozen=True, slots=True)
class WaitingReview:
    """A prediction that waits for a person, as its device announces it: nothing of the input.

    Args:
        id: 16 random bytes, of this announcement alone.
        model: The model.
        version: Its version.
        minute: When it was made, minutes since 1970 by the device's clock.
        label: Number of the class that the model gave.
        percent: How sure it was, 0 to 100, rounded down.
        unsure: Whether that is below what the model asks for.
        flagged: Whether the data contract flags a value of the input.

    Raises:
        UsageError: There can be no such prediction.
    """

    id: bytes
    model: ModelName
    version: int
    minute: int
    label: int
    percent: int
    unsure: bool
    flagged: bool

    def __post_init__(self) -> None:
        _check_id(self.id)
        check_name(self.model, "model")
        if not 1 <= self.version < 1 << 31:
            raise UsageError("A review is of version 0 of its model.")
        if not 0 <= self.minute < LATEST_MINUTE:
            raise UsageError("A review is of no time that there is.")
        if not 0 <= self.label < MAX_LABEL or not 0 <= self.percent <= 100:
            raise UsageError("A review has a label or a confidence that no model gives.")
        if not (self.unsure or self.flagged):
            raise UsageError("A review does not say why a person is needed.")

    @classmethod
    def of(
        cls,
        announced: bytes,
        *,
        model: str,
        version: int,
        at_s: float,
        label: int,
        confidence: float,
        unsure: bool,
        flagged: bool,
    ) -> WaitingReview:
        """Return the announcement of a prediction: time and confidence are told less exactly than they are known."""
        minute = min(max(int(at_s // 60), 0), LATEST_MINUTE - 1) if math.isfinite(at_s) else 0
        percent = min(max(int(100 * confidence), 0), 100) if math.isfinite(confidence) else 0
        return cls(announced, ModelName(model), version, minute, label, percent, unsure, flagged)

    @classmethod
    def from_wire(cls, message: pb.WaitingReview) -> WaitingReview:
        """Read an announcement.

        Raises:
            UsageError: There can be no such prediction.
        """
        return cls(
            message.id,
            ModelName(message.model),
            message.version,
            message.minute,
            message.label,
            message.percent,
            message.unsure,
            message.flagged,
        )

    def to_wire(self) -> pb.WaitingReview:
        """Return it as it travels."""
        return pb.WaitingReview(
            id=self.id,
            model=self.model,
            version=self.version,
            minute=self.minute,
            label=self.label,
            percent=self.percent,
            unsure=self.unsure,
            flagged=self.flagged,
        )


@dataclass(frozen=True, slots=True)
class EndedReview:
    """A prediction that was announced, and waits no more.

    Args:
        id: The announcement's.
        end: What became of it.
    """

    id: bytes
    end: End

    def __post_init__(self) -> None:
        _check_id(self.id)

    @classmethod
    def from_wire(cls, message: pb.EndedReview) -> EndedReview:
        """Read how it ended.

        Raises:
            UsageError: There is no such end.
        """
        found = next((end for end, number in _ENDS.items() if number == message.end), None)
        if found is None:
            raise UsageError("A review ended in a way that there is not.")
        return cls(message.id, found)

    def to_wire(self) -> pb.EndedReview:
        """Return it as it travels."""
        return pb.EndedReview(id=self.id, end=_ENDS[self.end])


@dataclass(frozen=True, slots=True)
class ReviewAnswer:
    """What a person decided on a prediction that a device announced.

    Args:
        fleet: The fleet.
        device: The device.
        id: The announcement's.
        label: Number of the class that holds, in the version that the announcement is of.
        by: Whose account, 1 to 200 characters.
        why: For what reason, 1 to 200 characters.
        name: What that version calls the class, up to 200 characters: a device with another version finds it by its
            name. Empty: an older umbel, which did not say.

    Raises:
        UsageError: There can be no such answer.
    """

    fleet: FleetId
    device: DeviceId
    id: bytes
    label: int
    by: str
    why: str
    name: str = ""

    def __post_init__(self) -> None:
        _check_id(self.id)
        if not 0 <= self.label < MAX_LABEL:
            raise UsageError(f"There is no label {self.label}.")
        if len(self.name) > MAX_WORDS:
            raise UsageError(f"An answer to a review names a label of at most {MAX_WORDS} characters.")
        for words, what in ((self.by, "says who decides"), (self.why, "has a reason")):
            if not words.strip() or len(words) > MAX_WORDS:
                raise UsageError(f"An answer to a review {what}, in 1 to {MAX_WORDS} characters.")


def sign_answer(key: SigningKey, answer: ReviewAnswer) -> bytes:
    """Return an answer as a serialized ``Signed`` message."""
    body = pb.ReviewAnswer(
        fleet_id=answer.fleet,
        device_id=answer.device,
        id=answer.id,
        label=answer.label,
        by=answer.by,
        why=answer.why,
        name=answer.name,
    ).SerializeToString(deterministic=True)
    return identity_pb2.Signed(body=body, signature=key.sign(ANSWER_LABEL, body)).SerializeToString()


def open_answer(signed: bytes, *, authority: VerifyKey, fleet: FleetId, device: DeviceId) -> ReviewAnswer:
    """Return the answer inside ``signed``, if it is this fleet's and for this device.

    Raises:
        CertificateError: Malformed, not signed by ``authority``, or for somebody else.
    """
    if len(signed) > MAX_ANSWER_BYTES:
        raise CertificateError(
            f"An answer to a review has {len(signed)} bytes, more than {MAX_ANSWER_BYTES}."
        )
    try:
        outer = identity_pb2.Signed.FromString(signed)
        authority.verify(ANSWER_LABEL, outer.body, outer.signature)
        message = pb.ReviewAnswer.FromString(outer.body)
        answer = ReviewAnswer(
            FleetId(message.fleet_id),
            DeviceId(message.device_id),
            message.id,
            message.label,
            message.by,
            message.why,
            message.name,
        )
    except VerificationError as exc:
        raise CertificateError("An answer to a review is not signed by this fleet's authority.") from exc
    except (DecodeError, UsageError) as exc:
        raise CertificateError("An answer to a review is malformed.") from exc
    if (answer.fleet, answer.device) != (fleet, device):
        raise CertificateError("An answer to a review is for another device.")
    return answer


def end_of(word: str) -> End:
    """Return an end by its word, as a file keeps it.

    Raises:
        UsageError: There is none of that word.
    """
    if word not in _ENDS:
        raise UsageError("A review ended in a way that there is not.")
    return word


def _check_id(announced: bytes) -> None:
    if len(announced) != ID_BYTES:
        raise UsageError(f"A review's id has {ID_BYTES} bytes, not {len(announced)}.")
