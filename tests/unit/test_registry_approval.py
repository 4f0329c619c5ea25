"""Which approvals count: as a calculation, whatever got into the store and however."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Actor, Role
from umbel_server.registry.approval import (
    DAY_S,
    Decision,
    Present,
    Request,
    Rules,
    Verdict,
    approvers,
    lapse,
    missing,
    require_comment,
    require_may_decide,
)

PACKAGE, EVIDENCE = bytes(32), bytes([1] * 32)
PRESENT = Present(PACKAGE, EVIDENCE, "anna")
ASKED = Request("digits", 2, 1, PACKAGE, "{}", EVIDENCE, "pipeline", 1000.0, "better")
NAMES = st.sampled_from(["anna", "ben", "carl", "pipeline", "local:ben", "local:dora", "service:umbel", ""])


def said(*names: str, verdict: Verdict = Verdict.APPROVE) -> tuple[Decision, ...]:
    return tuple(Decision(name, verdict, "looked at it", 1001.0) for name in names)


@given(names=st.lists(NAMES), needed=st.integers(0, 3), by=NAMES, asker=NAMES)
def test_only_accounts_count_each_once_and_none_that_had_a_part_in_it(
    names: list[str], needed: int, by: str, asker: str
) -> None:
    request = dataclasses.replace(ASKED, decisions=said(*names), requested_by=asker)
    present = dataclasses.replace(PRESENT, added_by=by)
    counted = {"anna", "ben", "carl", "pipeline"} & set(names) - {
        by.removeprefix("local:"),
        asker.removeprefix("local:"),
    }
    assert approvers(request, present) == counted
    assert missing(request, present, Rules(needed)) == max(0, needed - len(counted))


def test_a_rejection_is_no_approval() -> None:
    request = dataclasses.replace(ASKED, decisions=said("ben", verdict=Verdict.REJECT))
    assert approvers(request, PRESENT) == frozenset()


@pytest.mark.parametrize(
    ("present", "now_s", "sentence"),
    [
        (PRESENT, 1000.0, None),
        (PRESENT, 1000.0 + 30 * DAY_S - 1, None),
        (PRESENT, 1000.0 + 30 * DAY_S, "30 days ago"),
        (dataclasses.replace(PRESENT, package_sha256=EVIDENCE), 1000.0, "package is another"),
        (dataclasses.replace(PRESENT, evidence_sha256=PACKAGE), 1000.0, "evidence is not"),
    ],
)
def test_approvals_are_of_one_package_and_its_evidence_for_some_days(
    present: Present, now_s: float, sentence: str | None
) -> None:
    found = lapse(ASKED, present, Rules(2, 30), now_s=now_s)
    assert found is None if sentence is None else sentence in str(found)


@pytest.mark.parametrize("role", Role)
def test_reviewers_release_managers_and_administrators_decide_and_nobody_else(role: Role) -> None:
    actor = Actor("ben", frozenset({role}))
    if role in (Role.REVIEWER, Role.RELEASE_MANAGER, Role.ADMIN):
        require_may_decide(ASKED, PRESENT, actor, Verdict.APPROVE)
    else:
        with pytest.raises(RefusedError, match="may not approve"):
            require_may_decide(ASKED, PRESENT, actor, Verdict.APPROVE)


def test_who_made_it_may_reject_but_not_approve() -> None:
    for name in ("anna", "pipeline"):
        actor = Actor(name, frozenset({Role.REVIEWER}))
        require_may_decide(ASKED, PRESENT, actor, Verdict.REJECT)
        with pytest.raises(RefusedError, match="let another account approve"):
            require_may_decide(ASKED, PRESENT, actor, Verdict.APPROVE)


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_comment_says_something(text: str) -> None:
    with pytest.raises(UsageError):
        require_comment(text)
