"""What rounds rely on in a masking engine, whichever it is. The next engine joins with a line in ENGINES."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from simulation.fleet import MODEL_HASH, NOW_S, PLAN_HASH, Fleet, descriptor
from simulation.freeze import freeze
from umbel_proto.encoding import digest
from umbel_proto.errors import RemoteProtocolError, UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import SigningKey
from umbel_proto.secagg.engine import (
    TRAIN,
    Aborted,
    Admission,
    Due,
    Engine,
    Invited,
    Opened,
    Outgoing,
    Phase,
    Running,
    Turn,
)
from umbel_proto.secagg.masks import Words
from umbel_proto.secagg.pairwise import PAIRWISE
from umbel_proto.secagg.session import Descriptor, Member, session_id

ENGINES: dict[str, Engine] = {"pairwise": PAIRWISE}
SIZES = (3, 8, 20)
LATE = NOW_S + 3600


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@dataclass
class Rounds:
    """A session over bytes alone: nothing here knows which engine runs."""

    engine: Engine
    session: Descriptor
    members: dict[DeviceId, Member]
    authority: SigningKey
    vectors: dict[DeviceId, Words]
    state: Running | Opened | Aborted
    requests: dict[DeviceId, bytes]
    kept: dict[DeviceId, bytes | None]
    phases: list[Phase] = field(default_factory=list)
    charged: set[DeviceId] = field(default_factory=set)
    refusals: dict[DeviceId, str] = field(default_factory=dict)
    turns: list[tuple[DeviceId, str, bytes, Turn]] = field(default_factory=list)

    @classmethod
    def of(cls, engine: Engine, n: int, *, session: Descriptor | None = None) -> Rounds:
        fleet = Fleet(n)  # For its members only.
        described = session or descriptor()
        state = engine.open(described, authority=fleet.authority.public, invited=fleet.ids, now_s=NOW_S)
        requests = dict.fromkeys(fleet.ids, described.to_bytes())
        kept: dict[DeviceId, bytes | None] = dict.fromkeys(fleet.ids)
        vectors = dict(fleet.vectors)
        return cls(engine, described, fleet.members, fleet.authority, vectors, state, requests, kept)

    @property
    def running(self) -> Running:
        assert not isinstance(self.state, Opened | Aborted)
        return self.state

    def ask(self, name: DeviceId, body: bytes, *, kind: str, now_s: float = NOW_S) -> Turn:
        """Ask a device as a participant does, and give it the update when it is due."""
        member, kept = self.members[name], self.kept[name]
        if kind == TRAIN:
            step = self.engine.join(member, kept, Invited(body, MODEL_HASH, PLAN_HASH, now_s)).step
        else:
            step = self.engine.answer(member, kept, kind, body, now_s=now_s)
        if not isinstance(step, Turn):
            self.charged.add(name)
            step = step.give(self.vectors[name])
        return step

    def run_phase(self, silent: Collection[DeviceId] = ()) -> Phase:
        phase = self.running.phase
        self.phases.append(phase)
        for name in sorted(self.requests):
            if name in silent:
                continue
            try:
                turn = self.ask(name, self.requests[name], kind=phase.kind)
            except RemoteProtocolError as exc:
                self.refusals[name] = exc.reason
                self.state = self.running.lose(name, exc.reason)
                continue
            self.turns.append((name, phase.kind, self.requests[name], turn))
            self.kept[name] = turn.kept
            self.state = self.running.take(name, turn.message, raw(turn.words))
        self.state, outgoing = self.running.close()
        self.requests = {out.device: out.message for out in outgoing}
        return phase

    def run(self) -> Opened | Aborted:
        while not isinstance(self.state, Opened | Aborted):
            self.run_phase()
        return self.state

    def plain_sum(self, names: Iterable[DeviceId]) -> Words:
        columns = zip(*(self.vectors[name].tolist() for name in names), strict=True)
        return np.array([sum(column) % 2**64 for column in columns], np.uint64)


def raw(words: Words | None) -> bytes:
    return b"" if words is None else words.astype("<u8").tobytes()


def stages(engine: Engine, n: int = 8) -> Iterator[Rounds]:
    """The same session, paused before each of its phases."""
    count = 1
    while count:
        rounds = Rounds.of(engine, n)
        for _ in range(count - 1):
            rounds.run_phase()
        if isinstance(rounds.state, Opened | Aborted):
            return
        yield rounds
        count += 1


@pytest.mark.parametrize("n", SIZES)
def test_the_sum_over_all_devices_is_exact(engine: Engine, n: int) -> None:
    rounds = Rounds.of(engine, n)
    end = rounds.run()
    assert isinstance(end, Opened)
    assert list(end.survivors) == sorted(rounds.members)
    assert np.array_equal(end.total, rounds.plain_sum(end.survivors))
    assert end.lost == ()


def test_the_first_phase_is_the_invitation_and_the_others_are_those_the_device_knows(engine: Engine) -> None:
    rounds = Rounds.of(engine, 8)
    rounds.run()
    kinds = [phase.kind for phase in rounds.phases]
    assert kinds[0] == TRAIN
    assert kinds[1:] == list(engine.kinds)
    assert len(set(kinds)) == len(kinds)
    assert len({phase.name for phase in rounds.phases}) == len(kinds)
    assert sum(phase.takes_updates for phase in rounds.phases) == 1
    assert rounds.phases[-1].members == rounds.members.keys()
    assert all(kept is None for kept in rounds.kept.values())


@pytest.mark.parametrize("n", [8, 20])
def test_a_device_lost_in_any_phase_costs_at_most_its_own_share(engine: Engine, n: int) -> None:
    for rounds in stages(engine, n):
        gone = sorted(rounds.members)[n // 2]
        when = rounds.run_phase(silent=[gone])
        end = rounds.run()
        assert isinstance(end, Opened), when.name
        assert set(rounds.members) - set(end.survivors) <= {gone}
        assert np.array_equal(end.total, rounds.plain_sum(end.survivors)), when.name
        assert {loss.device for loss in end.lost} == {gone}
        asked = next(i for i, phase in enumerate(rounds.phases) if phase.takes_updates)
        assert (gone in end.survivors) is (rounds.phases.index(when) > asked)


def test_too_few_answers_end_the_session_with_a_reason_and_no_sum(engine: Engine) -> None:
    for rounds in stages(engine):
        least = rounds.running.phase.least
        assert rounds.session.min_cohort <= least <= len(rounds.members)
        rounds.run_phase(silent=sorted(rounds.members)[least - 1 :])
        end = rounds.run()
        assert isinstance(end, Aborted)
        assert end.reason


def test_as_many_answers_as_a_phase_says_are_enough(engine: Engine) -> None:
    for rounds in stages(engine):
        least = rounds.running.phase.least
        rounds.run_phase(silent=sorted(rounds.members)[least:])
        assert isinstance(rounds.run(), Opened)


def test_a_repeated_request_gets_the_same_bytes_and_no_update_a_second_time(engine: Engine) -> None:
    rounds = Rounds.of(engine, 5)
    name = sorted(rounds.members)[0]
    while not isinstance(rounds.state, Opened | Aborted):
        rounds.run_phase()
        _, kind, request, turn = next(t for t in reversed(rounds.turns) if t[0] == name)
        if turn.kept is None:
            continue
        rounds.charged.clear()
        again = rounds.ask(name, request, kind=kind)
        assert (again.message, raw(again.words), again.kept) == (turn.message, raw(turn.words), turn.kept)
        assert rounds.charged == set()


def test_an_invitation_answered_before_says_so(engine: Engine) -> None:
    rounds = Rounds.of(engine, 3)
    name = sorted(rounds.members)[0]
    invited = Invited(rounds.requests[name], MODEL_HASH, PLAN_HASH, NOW_S)
    first = rounds.engine.join(rounds.members[name], None, invited)
    assert isinstance(first.step, Turn)
    again = rounds.engine.join(rounds.members[name], first.step.kept, invited)
    assert (first.repeated, again.repeated) == (False, True)
    assert first.session.sid == again.session.sid == session_id(rounds.requests[name])
    other = Invited(descriptor(attempt=1).to_bytes(), MODEL_HASH, PLAN_HASH, NOW_S)
    assert not rounds.engine.join(rounds.members[name], first.step.kept, other).repeated


def test_a_refused_request_changes_nothing(engine: Engine) -> None:
    for rounds in stages(engine, 5):
        name = sorted(rounds.members)[0]
        kind, body, kept = rounds.running.phase.kind, rounds.requests[name], rounds.kept[name]
        rounds.charged.clear()
        for wrong in (body[:-1], body + b"\x00", b"", b"\xff" * 40):
            with pytest.raises(RemoteProtocolError) as caught:
                rounds.ask(name, wrong, kind=kind)
            assert caught.value.peer == "server"
        for other in {TRAIN, *engine.kinds, "query.tea"} - {kind}:
            with pytest.raises(RemoteProtocolError):
                rounds.ask(name, b"?", kind=other)
        assert (rounds.kept[name], rounds.charged) == (kept, set())
        end = rounds.run()
        assert isinstance(end, Opened)
        assert name in end.survivors


def test_an_answer_that_breaks_a_rule_names_its_device_and_changes_nothing(engine: Engine) -> None:
    for rounds in stages(engine, 5):
        first, second = sorted(rounds.members)[:2]
        turn = rounds.ask(first, rounds.requests[first], kind=rounds.running.phase.kind)
        before = freeze(rounds.state)
        for body, vector in (
            (turn.message[:-1], raw(turn.words)),
            (turn.message + b"\x00", raw(turn.words)),
            (b"", b""),
            (turn.message, raw(turn.words)[:-1] if turn.words is not None else None),
        ):
            if vector is not None:
                with pytest.raises(RemoteProtocolError) as caught:
                    rounds.running.take(first, body, vector)
                assert caught.value.peer == first
        assert freeze(rounds.state) == before
        assert {first, second} <= rounds.running.waiting
        rounds.charged.clear()
        assert isinstance(rounds.run(), Opened)


def test_an_answer_is_awaited_once(engine: Engine) -> None:
    for rounds in stages(engine, 5):
        name = sorted(rounds.members)[0]
        turn = rounds.ask(name, rounds.requests[name], kind=rounds.running.phase.kind)
        after = rounds.running.take(name, turn.message, raw(turn.words))
        assert name not in after.waiting
        with pytest.raises(RemoteProtocolError):
            after.take(name, turn.message, raw(turn.words))
        assert name not in rounds.running.lose(name, "it left").waiting


def test_the_update_is_due_only_for_a_request_that_is_right_and_in_time(engine: Engine) -> None:
    for rounds in stages(engine, 5):
        phase, name = rounds.running.phase, sorted(rounds.members)[0]
        if not phase.takes_updates:
            continue
        with pytest.raises(RemoteProtocolError, match="over"):
            rounds.ask(name, rounds.requests[name], kind=phase.kind, now_s=LATE)
        assert rounds.charged == set()
        step = due(rounds, name, phase.kind)
        assert step.session.sid == session_id(rounds.session.to_bytes())
        for words in (rounds.vectors[name][:-1], rounds.vectors[name].astype(np.int64)):
            with pytest.raises(UsageError):
                step.give(words)
        before = rounds.vectors[name].copy()
        turn = step.give(rounds.vectors[name])
        assert np.array_equal(rounds.vectors[name], before)
        assert turn.words is not None
        assert not np.array_equal(turn.words, before)


def due(rounds: Rounds, name: DeviceId, kind: str) -> Due:
    body = rounds.requests[name]
    if kind == TRAIN:
        invited = Invited(body, MODEL_HASH, PLAN_HASH, NOW_S)
        step = rounds.engine.join(rounds.members[name], rounds.kept[name], invited).step
    else:
        step = rounds.engine.answer(rounds.members[name], rounds.kept[name], kind, body, now_s=NOW_S)
    assert not isinstance(step, Turn)
    return step


def test_a_device_with_another_model_never_reveals_its_update(engine: Engine) -> None:
    """It refuses: the model it received is not the session's."""
    rounds = Rounds.of(engine, 4)
    name = sorted(rounds.members)[0]
    invited = Invited(rounds.requests[name], digest("umbel/1/model", b"another"), PLAN_HASH, NOW_S)
    with pytest.raises(RemoteProtocolError, match="model"):
        engine.join(rounds.members[name], None, invited)


def test_what_is_sent_says_nothing_of_one_device_s_words(engine: Engine) -> None:
    """The same words twice look unrelated, and no plain word is in any message."""
    seen = []
    for _ in range(2):
        rounds = Rounds.of(engine, 5)
        for words in rounds.vectors.values():
            words[:] = 0x0123456789ABCDEF
        rounds.run()
        sent = [turn for _, _, _, turn in rounds.turns]
        assert not any(b"\xef\xcd\xab\x89\x67\x45\x23\x01" in turn.message + raw(turn.words) for turn in sent)
        seen += [raw(turn.words) for turn in sent if turn.words is not None]
    assert len(set(seen)) == len(seen) == 10


def test_no_repr_shows_what_a_device_keeps_or_sends(engine: Engine) -> None:
    rounds = Rounds.of(engine, 4)
    shown: list[object] = []
    name = sorted(rounds.members)[0]
    admission = engine.join(
        rounds.members[name], None, Invited(rounds.requests[name], MODEL_HASH, PLAN_HASH, NOW_S)
    )
    assert isinstance(admission, Admission)
    while not isinstance(rounds.state, Opened | Aborted):
        phase = rounds.running.phase
        if phase.takes_updates:
            shown.append(due(rounds, name, phase.kind))
        shown += [rounds.state, phase]
        rounds.run_phase()
        shown += [Outgoing(device, body) for device, body in rounds.requests.items()]
    shown += [rounds.state, admission, *(turn for _, _, _, turn in rounds.turns)]
    text = "".join(map(repr, shown))
    secret = [turn.kept for _, _, _, turn in rounds.turns if turn.kept]
    secret += [raw(turn.words) for _, _, _, turn in rounds.turns if turn.words is not None]
    assert secret
    assert not any(repr(part)[2:-1] in text or part.hex() in text for part in secret)
    assert "array(" not in text
