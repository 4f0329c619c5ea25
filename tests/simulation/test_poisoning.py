"""Law: what a device with modified code sends through the masks is caught when the sum is open, costs the run
attempts but not its model, and stands out in a round of random groups.

Real devices, training and protocol; only the carrier of messages is in memory. The attack suite with its figures is
``tests/bench/attacks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from simulation.federation import QUICK, TRAINING, Federation, MemoryLink, lenient_policy
from umbel._rounds.contribution import Contribution
from umbel._rounds.ledger import Ledger
from umbel._rounds.participant import Participant, Saved
from umbel_proto.errors import BudgetError, RefusedError
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.encode import encode
from umbel_proto.privacy.ledger import Charge
from umbel_proto.secagg.device import Shared, SharesReceived, step
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.pairwise import MASK
from umbel_proto.secagg.saved import restore, save
from umbel_proto.secagg.session import rotation_seed
from umbel_server.learning import checkpoint
from umbel_server.learning.evaluate import HeldOut
from umbel_server.learning.plan import Guard, Metrics, Privacy, RunPlan
from umbel_server.learning.run import run_to_end
from umbel_server.store.runs import RoundRecord

Vector = NDArray[np.float32]
DEVICES = 9
LIAR = DeviceId("dev-5")
CLIP = 5.0
LIGHT = replace(TRAINING, epochs=1)
LEARNING = replace(TRAINING, epochs=4, batch_size=16, learning_rate=0.05)
"""For tests that look at the accuracy."""

OFF = Guard(gate=False, max_drop=0, groups=0)
THREE = Guard(groups=3)
"""Nine devices make three groups of three, the smallest cohort, where no dropouts are planned for."""

Attack = Callable[[Vector], Vector]


class Poisoner(Participant):
    """A device with modified code: it changes its update and knows no clip, no bound and no ledger.

    Args:
        participant: The honest one.
        attack: What it makes of its update.
        when: The (round, attempt) pairs it attacks in; empty for all.
    """

    def __init__(self, home, data, attack: Attack, when: Collection[tuple[int, int]] = ()) -> None:  # type: ignore[no-untyped-def]
        super().__init__(home, data)
        self._attack, self._when = attack, when

    def answer(
        self, kind: str, body: bytes, vector: bytes, saved: Saved | None
    ) -> tuple[bytes, bytes, Saved | None]:
        if kind != MASK:
            return super().answer(kind, body, vector, saved)
        assert saved is not None
        state = restore(saved.state, self._member())
        assert isinstance(state, Shared)
        descriptor = state.session.descriptor
        if self._when and (descriptor.round, descriptor.attempt) not in self._when:
            return super().answer(kind, body, vector, saved)
        sent = Contribution.from_bytes(saved.contribution)
        lawless = replace(descriptor.encoding, clip=1e7 / descriptor.encoding.scale, bound_sq=2**58)
        encoded = encode(
            self._attack(sent.update),
            lawless,
            rotation_seed=rotation_seed(state.session.sid),
            auxiliary=sent.auxiliary,
        )
        masked, reply = step(state, SharesReceived(body, encoded.words))
        assert reply.words is not None
        return reply.message, reply.words.tobytes(), Saved(save(masked) or b"", b"")


def scaled(factor: float) -> Attack:
    return lambda update: update * np.float32(factor)


def of_norm(length: float) -> Attack:
    """The update's opposite, of a chosen norm: as long as a gate may let pass."""
    return lambda update: update * np.float32(-length / np.linalg.norm(update))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Nine devices; tests give each run a name of its own."""
    policy = replace(lenient_policy(), dropout_fraction=0.0)
    return Federation(tmp_path_factory.mktemp("poisoning"), DEVICES, policy=policy)


def link_to(
    federation: Federation, attack: Attack | None = None, when: Collection[tuple[int, int]] = ()
) -> MemoryLink:
    participants = federation.participants()
    if attack is not None:
        number = int(LIAR.removeprefix("dev-"))
        participants[federation.node(number)] = Poisoner(
            federation.homes[number], federation.data[number], attack, when
        )
    return MemoryLink(participants)


def planned(federation: Federation, rounds: int, guard: Guard, **changes: object) -> RunPlan:
    whole = federation.plan(rounds=rounds, clip=CLIP)
    settings = {"training": LIGHT, "metrics": Metrics(names=()), "guard": guard, "attempts": 4}
    return replace(whole, **{**settings, **changes})  # type: ignore[arg-type]


def course(rounds: Sequence[RoundRecord]) -> list[tuple[int, int, str]]:
    return [(each.round, each.attempt, each.state) for each in rounds]


def charges(federation: Federation, number: int) -> list[Charge]:
    with Ledger(federation.homes[number].ledger) as ledger:
        return list(ledger.charges())


def test_one_huge_update_destroys_a_model_without_a_gate(shared: Federation) -> None:
    """With it the same run learns: the test below."""
    _, rounds = shared.run(
        link_to(shared, scaled(-1000)), planned(shared, 2, OFF, training=LEARNING), "ruined"
    )
    assert course(rounds) == [(1, 1, "opened"), (2, 1, "opened")]
    assert rounds[-1].figures["accuracy"] < 0.3
    assert rounds[-1].figures["guard"] == {}


def test_the_gate_catches_it_and_random_groups_go_on_without_the_liar(shared: Federation) -> None:
    before = [len(charges(shared, number)) for number in range(DEVICES)]
    link = link_to(shared, scaled(-1000), when={(1, 1), (1, 2), (1, 3)})
    record, rounds = shared.run(link, planned(shared, 3, THREE, training=LEARNING), "caught")
    assert record.state == "finished"
    assert course(rounds) == [
        (1, 1, "aborted"), (1, 2, "aborted"), (1, 3, "opened"), (2, 1, "opened"), (3, 1, "opened"),
    ]  # fmt: skip
    for refused in rounds[:2]:
        assert "modified code" in refused.reason
        assert refused.figures["guard"]["norm"] > refused.figures["guard"]["limit"]
        assert {part.outcome for part in refused.participations} == {"summed"}
    diagnosed = rounds[2]
    (left_out,) = [each for each in diagnosed.figures["guard"]["groups"] if each["reason"]]
    assert LIAR in left_out["devices"]
    outcomes = {part.device: part.outcome for part in diagnosed.participations}
    assert {device for device, outcome in outcomes.items() if outcome == "charged"} == set(
        left_out["devices"]
    )
    assert list(outcomes.values()).count("summed") == 6
    for each in rounds[2:]:
        assert 0 < each.figures["guard"]["norm"] < each.figures["guard"]["limit"]
    assert rounds[-1].figures["accuracy"] > 0.5

    # Whoever is honest paid for every attempt, and in a group as in any other.
    spent = [len(charges(shared, n)) - before[n] for n in range(DEVICES)]
    assert spent == [2 if n == 5 else 5 for n in range(DEVICES)]
    sids = {c.sid for n in range(DEVICES) for c in charges(shared, n) if (c.run, c.attempt) == ("caught", 3)}
    assert len(sids) == 3, "each group is a session of its own"


def test_a_server_that_dies_after_two_refusals_goes_on_with_the_groups(shared: Federation) -> None:
    class PowerCut(BaseException):
        pass

    class Dying(MemoryLink):
        def send(self, kind, group, payloads, *, ttl_s):  # type: ignore[no-untyped-def]
            if [each[0] for each in self.sent].count(TRAIN) == 2 * DEVICES:
                raise PowerCut
            return super().send(kind, group, payloads, ttl_s=ttl_s)

    liar = scaled(-1000)
    run = shared.create(planned(shared, 1, THREE), "cut")
    with pytest.raises(PowerCut):
        run_to_end(shared.fleet, run, Dying(link_to(shared, liar).participants))
    run_to_end(shared.fleet, run, link_to(shared, liar))
    record, rounds = shared.record("cut")
    assert record.state == "finished"
    assert len(rounds[-1].figures["guard"]["groups"]) == 3


def test_a_fleet_too_small_for_groups_says_so_and_tries_on(shared: Federation) -> None:
    link = link_to(shared, scaled(-1000), when={(1, 1), (1, 2)})
    _, rounds = shared.run(link, planned(shared, 1, Guard()), "small")
    assert [each.state for each in rounds] == ["aborted", "aborted", "opened"]
    assert rounds[2].figures["guard"]["no_groups"] == "9 devices do not make 10 groups of at least 3"


def test_a_run_under_an_attack_that_does_not_end_fails_with_the_reason_and_keeps_its_model(
    shared: Federation,
) -> None:
    link = link_to(shared, scaled(1000), when={(2, 1), (2, 2)})
    with pytest.raises(RefusedError, match="modified code"):
        shared.run(link, planned(shared, 2, Guard(groups=0), attempts=2), "siege")
    record, rounds = shared.record("siege")
    assert record.state == "failed"
    assert course(rounds) == [(1, 1, "opened"), (2, 1, "aborted"), (2, 2, "aborted")]
    kept = checkpoint.load(shared.fleet.runs / "siege", 1, shared.package)
    assert HeldOut(shared.package, shared.heldout).score(kept.parameters) == rounds[0].figures["accuracy"]


def test_a_round_that_the_gate_passes_and_the_model_does_not_survive_is_rolled_back(
    shared: Federation,
) -> None:
    """The liar knows the gate and stays below it; held-out data tell."""
    link = link_to(shared, of_norm(CLIP * DEVICES * 0.9), when={(3, 1)})
    guard = Guard(groups=0)
    record, rounds = shared.run(link, planned(shared, 3, guard, training=LEARNING), "rolled")
    assert record.state == "finished"
    assert course(rounds) == [(1, 1, "opened"), (2, 1, "opened"), (3, 1, "aborted"), (3, 2, "opened")]
    bad = rounds[2]
    assert "held-out accuracy would fall" in bad.reason
    assert bad.figures["guard"]["norm"] < bad.figures["guard"]["limit"]
    assert bad.figures["accuracy"] < rounds[1].figures["accuracy"] - guard.max_drop
    assert rounds[3].figures["accuracy"] >= rounds[1].figures["accuracy"] - 0.1


def test_recent_rounds_catch_what_the_clip_alone_lets_pass(shared: Federation) -> None:
    """A liar below a generous clip, with held-out data ignored, after three rounds: the median knows better."""
    clip = 20.0
    link = link_to(shared, of_norm(clip * DEVICES * 0.9), when={(4, 1)})
    guard, privacy = Guard(max_drop=0), Privacy(clip=clip, noise_multiplier=0.0)
    _, rounds = shared.run(link, planned(shared, 4, guard, privacy=privacy), "median")
    assert [each for each in course(rounds) if each[2] == "aborted"] == [(4, 1, "aborted")]
    bad = rounds[3]
    median = np.median([each.figures["guard"]["norm"] for each in rounds[:3]])
    assert 3 * median < bad.figures["guard"]["limit"] < bad.figures["guard"]["norm"] < clip


def test_nobody_is_invited_beyond_the_cap_on_participations(shared: Federation) -> None:
    """What a device's own ledger refuses: "devices whose budget is spent" in ``test_federation.py``."""
    link = link_to(shared)
    capped = planned(
        shared,
        4,
        THREE,
        devices=3,
        privacy=Privacy(clip=CLIP, noise_multiplier=0.0, participations=1),
        timing=replace(QUICK, join_timeout_s=0.1),
    )
    with pytest.raises(BudgetError, match="9 of 9 devices online have taken part 1 times"):
        shared.run(link, capped, "capped")
    invited = [node for kind, node in link.sent if kind == TRAIN]
    assert sorted(invited) == [shared.node(number) for number in range(DEVICES)]


def test_an_attempt_that_the_gate_refuses_counts_towards_the_cap(shared: Federation) -> None:
    privacy = Privacy(clip=CLIP, noise_multiplier=0.0, participations=2)
    plan = planned(shared, 2, THREE, privacy=privacy, timing=replace(QUICK, join_timeout_s=0.1))
    with pytest.raises(BudgetError):
        shared.run(link_to(shared, scaled(-1000)), plan, "paid")
    assert course(shared.record("paid")[1]) == [(1, 1, "aborted"), (1, 2, "aborted")]
