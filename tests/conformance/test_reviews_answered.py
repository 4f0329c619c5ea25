"""Reviews that a device announces, over a real gateway: answered from afar, exactly once, and nothing of an example told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crashing import crashed
from device_world import World, make_world
from model_packages import digits, first, resigned
from service_fleet import ManualClock, running
from umbel import Device, Prediction
from umbel._home.directory import DeviceHome
from umbel._privacy import account
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.report import open_batch
from umbel_proto.reviews import MAX_ANNOUNCED, ReviewAnswer, open_answer, sign_answer
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.access.actor import Actor, Role
from umbel_server.fleet.policy_command import ANNOUNCE, change_policy
from umbel_server.fleet.publish import publish
from umbel_server.monitor.opener import Opener
from umbel_server.reviews.answer import answer

ADA, EVE = (Actor(name, frozenset({Role.REVIEWER})) for name in ("ada", "eve"))
ADMIN = Actor("admin", frozenset({Role.ADMIN}))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = ManualClock()
    fleet = make_world(tmp_path, clock)
    with running(fleet, clock=clock) as (_, store):
        world = World(fleet, store, clock, tmp_path)
        publish(fleet, store, first(), actor=ADMIN)
        change_policy(fleet, store, {ANNOUNCE: True}, actor=ADMIN, reason="to help out")
        yield world


@pytest.fixture
def device(world: World) -> Iterator[Device]:
    with Device.open(world.device().path, online=False, clock=world.clock) as device:
        device.sync()
        device.consent.grant("reviews", by="Rose")
        yield device


def ask(device: Device, row: int = 0) -> Prediction:
    said = device.model("digits").predict(digits().held_out.x[row])
    assert isinstance(said, Prediction)
    assert said.decision == "review"
    return said


def told(world: World) -> list[Any]:
    """What the fleet knows after the opener has read what came, the oldest first."""
    Opener(world.store, world.fleet.telemetry_private()).run_once()
    return sorted(world.store.reviews.page(limit=1000), key=lambda each: each.id)


def reports(world: World) -> list[pb.Batch]:
    """What devices sent that nobody has opened yet."""
    key = world.fleet.telemetry_private()
    return [open_batch(key, each.header, each.ciphertext) for each in world.store.batches.sealed(limit=1000)]


def test_an_answer_given_far_away_resolves_what_waits_here_and_the_fleet_hears_of_it(
    world: World, device: Device
) -> None:
    said = ask(device)
    device.sync()
    [found] = told(world)
    assert (found.device, found.model, found.version, found.label) == ("d1", "digits", 1, said.label)
    assert (found.percent, found.unsure, found.flagged) == (int(100 * said.confidence), True, False)
    assert found.predicted_s == world.clock() - world.clock() % 60
    right = (said.label + 1) % 10
    done = answer(world.fleet, world.store, found.id, str(right), actor=ADA, reason="a closed loop")
    assert (done.state, done.answer, done.answered_by) == ("answered", right, "ada")
    device.sync()
    review = device.model("digits").review
    assert review.pending() == ()
    [ruling] = review.rulings()
    assert (ruling.label, ruling.said, ruling.by, ruling.why) == (
        right, said.label, "console:ada", "a closed loop"
    )  # fmt: skip
    [example] = device.data("digits").examples()
    assert (example.y, example.labels[0].annotator) == (right, "console:ada")
    np.testing.assert_array_equal(example.x, digits().held_out.x[0])
    [ended] = told(world)
    assert (ended.state, ended.ended_s) == ("applied", world.clock())
    device.sync()
    assert world.counted("review.answered") == world.counted("review.changed") == 1
    [agreed] = world.store.reviews.agreement()
    assert (agreed.waiting, agreed.answered, agreed.agreed) == (0, 1, 0)
    [entry] = [each for each in world.store.audit.all() if each.action == "review.answer"]
    assert (entry.actor, entry.object, entry.reason) == ("ada", f"review:{found.id}", "a closed loop")


@pytest.mark.parametrize(("asked", "consents"), [(False, True), (True, False), (False, False)])
def test_nothing_is_announced_unless_the_policy_asks_and_the_user_allows(
    world: World, tmp_path: Path, asked: bool, consents: bool
) -> None:
    change_policy(world.fleet, world.store, {ANNOUNCE: asked}, actor=ADMIN, reason="as it was")
    with Device.open(world.device("d2").path, online=False, clock=world.clock) as device:
        device.sync()
        if consents:
            device.consent.grant("reviews")
        ask(device)
        device.sync()
        assert all(not each.waiting_reviews for each in reports(world))
        assert told(world) == []


def test_an_announcement_has_an_id_of_its_own_and_nothing_else_than_it_says(
    world: World, device: Device
) -> None:
    said = ask(device)
    device.sync()
    [announced] = [each for report in reports(world) for each in report.waiting_reviews]
    names = {field.name for field, _ in announced.ListFields()}
    assert names <= {"id", "model", "version", "minute", "label", "percent", "unsure", "flagged"}
    assert len(announced.id) == 16
    assert said.id not in announced.id.hex()
    assert announced.id.hex() not in said.id
    assert announced.ByteSize() < 64
    raw = np.ascontiguousarray(digits().held_out.x[0]).tobytes()
    assert all(raw not in report.SerializeToString() for report in reports(world))


def test_why_a_person_is_needed_is_told_as_it_was(world: World) -> None:
    def flagging(body: dict[str, Any]) -> None:
        body["version"] = 2
        body["decision_threshold"] = 0.0
        body["contract"][0] |= {"action": "flag", "max_age_s": 5.0, "stale": "flag", "columns": []}

    publish(world.fleet, world.store, resigned(first(), flagging), actor=ADMIN)
    with Device.open(world.device("d3").path, online=False, clock=world.clock) as device:
        device.sync()
        device.consent.grant("reviews")
        odd = device.model("digits").predict(np.full((1, 8, 8), 17.0, np.float32), at=world.clock())
        assert isinstance(odd, Prediction)
        assert odd.decision == "review"
        device.sync()
        [found] = told(world)
        assert (found.version, found.unsure, found.flagged) == (2, False, True)


def test_an_answer_that_comes_twice_is_taken_once(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    device.sync()
    # The opener has not read the report yet: the gateway says it again.
    assert len(world.store.reviews.answers_for(found.device)) == 1
    device.sync()
    assert len(device.model("digits").review.rulings()) == 1
    assert len(device.data("digits").examples()) == 1
    [ended] = told(world)
    assert ended.state == "applied"
    assert world.store.reviews.answers_for(found.device) == ()
    assert world.counted("review.answered") == 1


def test_what_became_of_an_answer_is_told_again_where_that_was_lost(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    device.sync()
    for batch in world.store.batches.sealed(limit=100):  # A disk that fails between gateway and opener.
        with world.store.database.write() as connection:
            connection.exec_driver_sql("UPDATE batches SET state = 'rejected' WHERE id = ?", (batch.id,))
    device.sync()
    assert told(world)[0].state == "answered"
    world.clock.now_s += 3700
    device.sync()
    device.sync()
    assert told(world)[0].state == "applied"
    assert len(device.model("digits").review.rulings()) == 1


def test_a_device_that_decides_itself_says_so_and_keeps_its_word(world: World, device: Device) -> None:
    said = ask(device)
    device.sync()
    [found] = told(world)
    device.model("digits").review.resolve(said.id, 5, by="Rose")
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    device.sync()
    [ended] = told(world)
    assert (ended.state, ended.answer, ended.answered_by) == ("here", 3, "ada")
    [ruling] = device.model("digits").review.rulings()
    assert (ruling.label, ruling.by) == (5, "Rose")
    assert world.counted("review.answered") == 0


def test_who_answers_second_is_told_who_was_first(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    with pytest.raises(UsageError, match="no label '11'"):
        answer(world.fleet, world.store, found.id, "11", actor=EVE, reason="four")
    with pytest.raises(UsageError, match="Say why"):
        answer(world.fleet, world.store, found.id, "4", actor=EVE, reason=" ")
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    with pytest.raises(RefusedError, match="ada answered it already"):
        answer(world.fleet, world.store, found.id, "4", actor=EVE, reason="four")
    assert world.store.reviews.get(found.id).answer == 3


def test_consent_taken_back_withdraws_what_was_announced(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    device.consent.revoke("reviews", by="Rose")
    device.sync()
    [after] = told(world)
    assert (after.state, after.label, after.percent, after.predicted_s) == ("withdrawn", None, None, None)
    with pytest.raises(RefusedError, match="shares nothing any more"):
        answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    assert len(device.model("digits").review.pending()) == 1
    device.consent.grant("reviews", by="Rose")
    device.sync()
    assert [each.state for each in told(world)] == ["withdrawn", "open"]


def test_an_answer_on_its_way_is_left_once_consent_is_taken_back(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    device.consent.revoke("reviews", by="Rose")
    device._desk.take(world.store.reviews.answers_for(found.device))
    assert len(device.model("digits").review.pending()) == 1
    assert len(device.data("digits").examples()) == 0
    device.sync()
    assert [each.state for each in told(world)] == ["withdrawn"]


def test_consent_taken_back_withdraws_also_what_was_decided(world: World, device: Device) -> None:
    for row in range(2):
        ask(device, row)
    device.sync()
    first_one, second = told(world)
    answer(world.fleet, world.store, first_one.id, "3", actor=ADA, reason="three strokes")
    device.model("digits").review.resolve(device.model("digits").review.pending()[1].id, 4, by="Rose")
    device.sync()
    assert [each.state for each in told(world)] == ["applied", "here"]
    device.consent.revoke("reviews", by="Rose")
    device.sync()
    assert [(each.state, each.label, each.percent) for each in told(world)] == [("withdrawn", None, None)] * 2
    assert world.store.reviews.get(first_one.id).answered_by == "ada"
    device.sync()
    assert not any(report.ended_reviews for report in reports(world))
    assert second.label is not None


def test_what_a_device_gave_up_is_gone_here_too(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    told(world)
    device.model("digits").review.clear()
    device.sync()
    assert [each.state for each in told(world)] == ["gone"]


def test_a_device_has_so_many_announced_and_no_more(world: World, device: Device) -> None:
    for row in range(MAX_ANNOUNCED + 5):
        ask(device, row)
    device.sync()
    assert len(told(world)) == MAX_ANNOUNCED
    model = device.model("digits")
    for case in model.review.pending()[:3]:
        model.review.resolve(case.id, case.label, by="Rose")
    device.sync()
    states = [each.state for each in told(world)]
    assert (states.count("here"), states.count("open")) == (3, MAX_ANNOUNCED)


def test_an_answer_that_the_authority_did_not_sign_for_this_device_is_left(
    world: World, device: Device
) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    fleet, key = world.fleet, world.fleet.authority_signer()
    own = ReviewAnswer(fleet.name, found.device, found.announced_id, 3, "eve", "for fun", "3")
    for signer, changed in (
        (SigningKey.generate(), own),
        (key, ReviewAnswer(fleet.name, type(found.device)("d9"), own.id, 3, "eve", "for fun")),
        (key, ReviewAnswer(type(fleet.name)("heath"), own.device, own.id, 3, "eve", "for fun")),
    ):
        device._desk.take([sign_answer(signer, changed), b"\x0a\xff", b""])
        assert len(device.model("digits").review.pending()) == 1
    signed = sign_answer(key, own)
    opened_again = open_answer(
        signed, authority=fleet.authority_public(), fleet=fleet.name, device=found.device
    )
    assert opened_again == own
    device._desk.take([signed])
    assert device.model("digits").review.pending() == ()


def test_an_answer_to_what_the_device_never_had_is_told_as_gone(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    reviews = device.home.reviews
    device._desk.close()
    with sqlite3.connect(reviews) as db:
        db.execute("DELETE FROM announced")
    device.sync()
    assert told(world)[0].state == "gone"


def test_a_label_that_the_model_here_has_not_is_refused_and_goes_on_waiting(
    world: World, device: Device
) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    own = ReviewAnswer(world.fleet.name, found.device, found.announced_id, 400, "eve", "for fun")
    device._desk.take([sign_answer(world.fleet.authority_signer(), own)])
    device.sync()
    assert told(world)[0].state == "refused"
    assert len(device.model("digits").review.pending()) == 1


def numbered_backwards(body: dict[str, Any]) -> None:
    body |= {"version": 2, "labels": [str(number) for number in reversed(range(10))]}


def without_a_three(body: dict[str, Any]) -> None:
    body |= {"version": 2, "labels": [str(number).replace("3", "drei") for number in range(10)]}


def updated(world: World, device: Device, change: Callable[[dict[str, Any]], None]) -> Any:
    """Announce a prediction of version 1, then install a version with other labels; return the review."""
    ask(device)
    device.sync()
    [found] = told(world)
    publish(world.fleet, world.store, resigned(first(), change), actor=ADMIN)
    device.sync()
    assert device.model("digits").version == 2
    return found


def test_an_answer_to_an_older_version_is_the_class_that_this_one_names_so_not_the_number(
    world: World, device: Device
) -> None:
    found = updated(world, device, numbered_backwards)
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    device.sync()
    [ruling] = device.model("digits").review.rulings()
    assert (ruling.name, ruling.label) == ("3", 6)
    [example] = device.data("digits").examples()
    assert example.y == 6
    [ended] = told(world)
    assert (ended.state, ended.answer) == ("applied", 3)


def test_who_answers_as_the_older_version_did_has_changed_nothing(world: World, device: Device) -> None:
    found = updated(world, device, numbered_backwards)
    answer(world.fleet, world.store, found.id, found.label, actor=ADA, reason="it is")
    device.sync()
    [ruling] = device.model("digits").review.rulings()
    assert ruling.name == str(found.label)
    told(world)
    device.sync()
    assert (world.counted("review.answered"), world.counted("review.changed")) == (1, 0)


def test_an_answer_that_the_active_version_has_no_name_for_is_refused_and_goes_on_waiting(
    world: World, device: Device
) -> None:
    found = updated(world, device, without_a_three)
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    device.sync()
    assert told(world)[0].state == "refused"
    assert len(device.model("digits").review.pending()) == 1
    assert device.model("digits").review.rulings() == ()


def test_an_answer_that_names_no_class_is_not_read_as_a_number(world: World, device: Device) -> None:
    ask(device)
    device.sync()
    [found] = told(world)
    own = ReviewAnswer(world.fleet.name, found.device, found.announced_id, 3, "eve", "for fun")
    device._desk.take([sign_answer(world.fleet.authority_signer(), own)])
    device.sync()
    assert told(world)[0].state == "refused"


def test_privacy_says_in_plain_words_what_was_shared(world: World, device: Device) -> None:
    home: DeviceHome = device.home
    before = str(account(home))
    assert "Consent to tell the fleet which predictions wait for a person was given by Rose" in before
    assert "no example and no single prediction" in before or "has made no report" in before
    ask(device)
    device.sync()
    after = str(account(home))
    assert "The fleet was told of 1 prediction that waited for a person" in after
    assert "no example and of single predictions only those that waited for a person" in after
    device.consent.revoke("reviews", by="Rose")
    assert "taken back by Rose" in str(account(home))


def test_a_device_killed_at_any_instant_of_taking_an_answer_takes_it_once(
    world: World, tmp_path: Path
) -> None:
    home = world.device("d7")
    with Device.open(home.path, online=False, clock=world.clock) as device:
        device.sync()
        device.consent.grant("reviews")
        ask(device)
        device.sync()
    [found] = told(world)
    answer(world.fleet, world.store, found.id, "3", actor=ADA, reason="three strokes")
    signed = tmp_path / "answer"
    signed.write_bytes(world.store.reviews.answers_for(found.device)[0])
    lines = crashed("crashing_answers.py", home.path, signed)
    assert set(lines) == {"3/console:ada 0 closed answered"}, lines
    assert len(lines) > 20  # Each was another instant.
