"""Laws: a query's answer is what numpy finds in all rows together; a device answers only what its fleet signed, its user
allows and its budget covers, once; and its own log says what it was asked.

Only the carrier of messages is in memory (``simulation/tabular.py``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulation.federation import MemoryLink, lenient_policy
from simulation.tabular import AGE, GROUP, LABELS, TabularFederation
from simulation.tiny import SimulatedClock
from umbel._data.consent import Consent
from umbel._privacy import account
from umbel._rounds.conditions import Conditions
from umbel._rounds.ledger import Ledger
from umbel_proto.analytics.query import sign_query
from umbel_proto.errors import BudgetError, RefusedError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.keys import SigningKey
from umbel_server.access.actor import local_actor
from umbel_server.learning.fleet_ledger import FleetLedger
from umbel_server.learning.link import NodeId, Payload
from umbel_server.queries.ask import check
from umbel_server.queries.drive import query_to_end
from umbel_server.queries.plan import Question
from umbel_server.store.queries import QueryRecord

ALL = 1000
"""More examples than any device has: each counts as all of its own."""
DEVICES = 6


def question(kind: str = "histogram", **changes: Any) -> Question:
    own = {
        "histogram": {"field": "age"},
        "mean": {"field": "age"},
        "quantile": {"field": "age", "quantiles": (0.1, 0.5)},
        "fairness": {"cohort": "group", "positive": "b"},
    }[kind]
    made = {
        "kind": kind,
        "model": "tiny",
        "why": "to know",
        "epsilon": None,
        "per_device": ALL,
        "wait_s": 5.0,
    }
    return Question(**{**made, **own, **changes})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> TabularFederation:
    """A fleet whose devices accept sums without noise, for what is read and not spoiled."""
    return TabularFederation(tmp_path_factory.mktemp("fleet"), DEVICES)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> TabularFederation:
    """A fleet that insists on noise, and whose devices have a budget."""
    policy = replace(lenient_policy(), noise_floor=0.3, budget_epsilon=8.0, corrupt_fraction=0.0)
    return TabularFederation(tmp_path_factory.mktemp("strict"), DEVICES, policy=policy)


@pytest.fixture
def federation(strict: TabularFederation, tmp_path: Path) -> TabularFederation:
    """A strict fleet of the test's own."""
    return strict.copy(tmp_path / "own")  # type: ignore[misc]


def answered(record: QueryRecord) -> dict[str, Any]:
    assert (record.state, record.reason) == ("finished", "")
    assert record.result is not None
    return dict(record.result)


def failing(federation: TabularFederation, name: RunId, link: MemoryLink) -> UmbelError:
    clock = SimulatedClock()
    with pytest.raises(UmbelError) as caught:
        query_to_end(federation.fleet, name, link, clock=clock, pause=clock.pause)
    assert federation.query(name).state == "failed"
    assert federation.query(name).reason == str(caught.value)
    return caught.value


def test_a_histogram_of_a_column_is_numpys_of_all_rows(shared: TabularFederation) -> None:
    found = answered(shared.ask(question(edges=(1.5, 2.0, 2.5))))
    ages = shared.pooled().x[:, AGE].astype(np.float64)
    expected = np.histogram(ages, [-np.inf, 1.5, 2.0, 2.5, np.inf])[0]
    counts = [cell["count"]["value"] for cell in found["cells"]]
    assert counts == pytest.approx(expected.tolist(), abs=0.05)
    shares = [cell["share"]["value"] for cell in found["cells"]]
    assert shares == pytest.approx((expected / expected.sum()).tolist(), abs=1e-3)
    assert found["missing"]["value"] == pytest.approx(0, abs=0.05)
    assert found["devices"] == DEVICES


@pytest.mark.parametrize("field", ["label", "prediction"])
def test_labels_given_and_right_are_counted(shared: TabularFederation, field: str) -> None:
    found = answered(shared.ask(question(field=field)))
    pooled = shared.pooled()
    numbers = pooled.y if field == "label" else shared.predictions(pooled.x)
    expected = np.bincount(numbers, minlength=3).tolist()
    assert [cell["label"] for cell in found["cells"]] == list(LABELS)
    assert [cell["count"]["value"] for cell in found["cells"]] == pytest.approx(expected, abs=0.05)


def test_a_mean_is_numpys_of_all_rows_clamped(shared: TabularFederation) -> None:
    found = answered(shared.ask(question("mean", low=1.0, high=2.5)))
    ages = np.clip(shared.pooled().x[:, AGE].astype(np.float64), 1.0, 2.5)
    assert found["mean"]["value"] == pytest.approx(ages.mean(), abs=1e-3)
    assert found["deviation"] == pytest.approx(ages.std(), abs=1e-2)
    half = 1.96 * ages.std() / ages.size**0.5
    assert found["mean"]["sampling"] == pytest.approx(half, rel=0.02)
    assert found["mean"]["noise"] < 1e-3


def test_quantiles_are_within_a_cell_of_numpys(shared: TabularFederation) -> None:
    found = answered(shared.ask(question("quantile")))
    ages = shared.pooled().x[:, AGE].astype(np.float64)
    for line in found["quantiles"]:
        exact = np.quantile(ages, line["quantile"])
        assert line["figure"]["value"] == pytest.approx(exact, abs=4 / 32)
        assert line["figure"]["low"] <= exact <= line["figure"]["high"]


def test_a_device_with_many_rows_counts_as_much_as_one_with_few(shared: TabularFederation) -> None:
    found = answered(shared.ask(question(field="label", per_device=1)))
    expected = np.zeros(3)
    for path in shared.data:
        y = np.load(path)["y"]
        expected += np.bincount(y, minlength=3) / y.size
    assert [cell["count"]["value"] for cell in found["cells"]] == pytest.approx(expected.tolist(), abs=1e-3)


def test_fairness_is_fairlearns_of_all_rows(shared: TabularFederation) -> None:
    from fairlearn.metrics import (
        MetricFrame,
        demographic_parity_difference,
        equalized_odds_difference,
        false_positive_rate,
        selection_rate,
        true_positive_rate,
    )

    found = answered(shared.ask(question("fairness")))
    pooled = shared.pooled()
    right, given = pooled.y == 1, shared.predictions(pooled.x) == 1
    group = pooled.x[:, GROUP].astype(int)
    metrics = {
        "selection_rate": selection_rate,
        "true_positive_rate": true_positive_rate,
        "false_positive_rate": false_positive_rate,
    }
    oracle = MetricFrame(metrics=metrics, y_true=right, y_pred=given, sensitive_features=group)
    for number, cohort in enumerate(found["cohorts"]):
        for name in metrics:
            value = cohort["rates"][name]["figure"]["value"]
            assert value == pytest.approx(oracle.by_group[name][number], abs=2e-3), (number, name)
    own = {"y_true": right, "y_pred": given, "sensitive_features": group}
    differences = found["differences"]
    assert differences["selection_rate"] == pytest.approx(demographic_parity_difference(**own), abs=4e-3)
    odds = max(differences["true_positive_rate"], differences["false_positive_rate"])
    assert odds == pytest.approx(equalized_odds_difference(**own), abs=4e-3)


def test_examples_of_the_local_data_set_are_asked_about_where_no_file_is_given(
    shared: TabularFederation, tmp_path: Path
) -> None:
    from umbel._data.dataset import DataSet
    from umbel._rounds.participant import Participant

    own = shared.copy(tmp_path / "own")
    x = np.full((4, 6), 1.0, np.float32)
    for number, home in enumerate(own.homes):
        if number:  # The first has none, and answers with zeros.
            with DataSet(home, own.package.manifest) as data:
                data.add(x, source="user")
                data.add(2 * x[0], 1, source="user")
    link = MemoryLink({own.node(i): Participant(home) for i, home in enumerate(own.homes)})
    found = answered(own.ask(question(field="label"), link))  # type: ignore[attr-defined]
    assert [cell["count"]["value"] for cell in found["cells"]] == pytest.approx([0, 5, 0], abs=0.05)
    assert found["missing"]["value"] == pytest.approx(20, abs=0.05)
    assert found["devices"] == DEVICES


def test_an_answer_costs_its_epsilon_once_in_every_ledger(federation: TabularFederation) -> None:
    checked = federation.check(question(epsilon=1.0, per_device=1))
    assert checked.figures["epsilon"] <= 1.0
    assert checked.figures["able"] == DEVICES
    found = answered(federation.ask(question(epsilon=1.0, per_device=1)))
    assert found["epsilon"] == checked.figures["epsilon"]
    with federation.fleet.open_store() as store:
        known = FleetLedger.of(store, federation.fleet.runs)
    for number, home in enumerate(federation.homes):
        with Ledger(home.ledger) as own:
            assert [charge.run for charge in own.charges()] == ["histogram-1"]
            assert own.spent(1e-5) == pytest.approx(found["epsilon"], rel=1e-9)
            assert known.spent(DeviceId(f"dev-{number}"), 1e-5) == pytest.approx(own.spent(1e-5), rel=1e-12)


def test_a_devices_own_log_says_what_it_was_asked_and_what_that_cost(federation: TabularFederation) -> None:
    federation.ask(question(epsilon=1.0, per_device=1, why="to choose a threshold"))
    told = account(federation.homes[0])
    assert any(
        "asked how age is distributed" in each and "to choose a threshold" in each for each in told.sentences
    )
    assert not told.runs
    (line,) = told.to_json()["queries"]
    assert line["answered"]
    assert (line["query"], line["kind"], line["asked_by"]) == ("histogram-1", "histogram", "anna")
    assert line["epsilon_after"] == pytest.approx(told.epsilon)


def test_a_question_is_refused_before_it_is_asked_when_budgets_do_not_cover_it(
    federation: TabularFederation,
) -> None:
    federation.ask(question(epsilon=7.0))
    with pytest.raises(BudgetError, match=r"0 of 6 devices can pay epsilon .* allow a smaller"):
        federation.check(question(epsilon=4.0))
    with pytest.raises(RefusedError, match="choose an epsilon"):
        federation.check(question())


def test_devices_whose_budget_is_spent_refuse_a_server_that_asks_all_the_same(
    federation: TabularFederation,
) -> None:
    federation.ask(question(epsilon=7.0, name="costly"))
    with federation.fleet.open_store() as store:
        # A server that forgot what it charged.
        (federation.fleet.runs / "costly" / "cost.json").unlink()
        checked = check(federation.fleet, store, question(epsilon=4.0), asked_by="anna")
        signed = sign_query(federation.fleet.authority_signer(), checked.query)
        store.queries.ask(checked.query, signed, checked.asking.to_json(checked.query), actor=local_actor())
    says = failing(federation, checked.query.id, federation.link())
    assert "cost nothing" in str(says)
    for home in federation.homes:
        assert federation.charges(home) == ["costly"]
        refused = account(home).to_json()["queries"][-1]
        assert not refused["answered"]
        assert "would bring this device's epsilon" in refused["refused"]


def test_what_the_authority_did_not_sign_is_refused_by_every_device(federation: TabularFederation) -> None:
    name = federation.put(question(epsilon=1.0))
    link = Swapped(federation, name, SigningKey.generate())
    assert "cost nothing" in str(failing(federation, name, link))
    assert "not signed by this fleet's authority" in link.reasons.pop()
    assert not any(federation.charges(home) for home in federation.homes)


class Swapped(MemoryLink):
    """A server that hands out another query than was signed, or another session."""

    def __init__(self, federation: TabularFederation, name: RunId, key: SigningKey, **changes: Any) -> None:
        super().__init__(federation.participants())
        self.reasons: set[str] = set()
        self._federation, self._name, self._key, self._changes = federation, name, key, changes

    def answer(self, node: NodeId, kind: str, payload: Payload) -> Any:
        from umbel_proto.analytics.query import open_query, query_hash
        from umbel_proto.secagg.session import Descriptor
        from umbel_proto.wire import rounds_pb2 as pb

        if kind == "train":
            fleet = self._federation.fleet
            request = pb.TrainRequest.FromString(payload.body)
            query = open_query(request.query, authority=fleet.authority_public(), fleet=fleet.name, now_s=0)
            signed = sign_query(self._key, replace(query, **self._changes))
            descriptor = replace(Descriptor.from_bytes(request.descriptor), plan_hash=query_hash(signed))
            made = pb.TrainRequest(descriptor=descriptor.to_bytes(), query=signed)
            payload = Payload(made.SerializeToString(), payload.vector)
        answer = super().answer(node, kind, payload)
        if answer.payload is None:
            self.reasons.add(answer.reason)
        return answer


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"noise_multiplier": 1000.0}, "that the query promises"),
        ({"per_device": 7}, "bounds answers by"),
        ({"edges": (1.0,)}, "and the query has 3"),
        ({"min_cohort": 5}, "below the query's smallest cohort, 5"),
        ({"id": RunId("another")}, "not query another"),
        ({"kind": "mean", "edges": (), "low": 0.0, "high": 1.0}, "the session's task"),
        ({"package_sha256": "00" * 32}, "no package tiny"),
        ({"field": "height"}, "has no field 'height': ask about label"),
        ({"not_after_s": 1}, "too old"),
    ],
)
def test_a_session_that_does_not_hold_what_the_query_promises_is_refused(
    strict: TabularFederation, changes: dict[str, Any], says: str
) -> None:
    name = strict.put(question(epsilon=1.0, edges=tuple(range(1, 4))))
    link = Swapped(strict, name, strict.fleet.authority_signer(), **changes)
    failing(strict, name, link)
    assert says in " ".join(link.reasons)
    assert not any(name in strict.charges(home) for home in strict.homes)


def test_a_device_answers_a_query_once_however_often_it_is_put(federation: TabularFederation) -> None:
    name = federation.ask(question(epsilon=0.5, name="mine")).id
    with federation.fleet.open_store() as store, store.database.write() as connection:
        for statement in (
            "UPDATE queries SET result = NULL, answered_s = NULL",
            "UPDATE runs SET state = 'running', finished_s = NULL",
            "DELETE FROM participations",
            "DELETE FROM rounds",
        ):
            connection.exec_driver_sql(statement)
    failing(federation, name, federation.link())
    with federation.fleet.open_store() as store:
        parts = store.runs.rounds(name)[0].participations
    assert {part.reason for part in parts} == {
        "This device has answered query mine already: each is answered once."
    }
    assert all(federation.charges(home) == ["mine"] for home in federation.homes)


def test_whoever_took_back_consent_to_queries_is_not_in_the_sum_and_the_server_is_not_told_why(
    federation: TabularFederation,
) -> None:
    Consent(federation.homes[0]).revoke("queries", by="ben")
    Conditions(federation.homes[1]).require(consent=True)
    Consent(federation.homes[1]).grant("training")
    found = answered(federation.ask(question(epsilon=1.0)))
    assert found["devices"] == DEVICES - 2
    reasons = " ".join(found["reasons"])
    assert "consent" not in reasons
    assert "ben" not in reasons
    for home, says in (
        (federation.homes[0], "ben took back consent"),
        (federation.homes[1], "was not asked"),
    ):
        assert not federation.charges(home)
        told = account(home)
        assert says in told.to_json()["queries"][-1]["refused"]
        assert any("Refused:" in each and says in each for each in told.sentences)
    Consent(federation.homes[1]).grant("queries")
    assert answered(federation.ask(question(epsilon=1.0)))["devices"] == DEVICES - 1


def test_consent_taken_back_between_joining_and_answering_keeps_the_answer_here(
    federation: TabularFederation,
) -> None:
    class Late(MemoryLink):
        def answer(self, node: NodeId, kind: str, payload: Payload) -> Any:
            if kind == "query.mask" and node == federation.node(0):
                Consent(federation.homes[0]).revoke("queries")
            return super().answer(node, kind, payload)

    found = answered(federation.ask(question(epsilon=1.0), Late(federation.participants())))
    assert found["devices"] == DEVICES - 1
    assert not federation.charges(federation.homes[0])
    assert Consent(federation.homes[0]).decision("training").state == "unasked"


def test_devices_of_before_queries_only_refuse(federation: TabularFederation) -> None:
    class Older(MemoryLink):
        """Its first devices know no field 3 of an invitation."""

        def answer(self, node: NodeId, kind: str, payload: Payload) -> Any:
            from umbel_server.learning.link import Answer

            if kind == "train" and node in (federation.node(0), federation.node(1)):
                return Answer(node, None, "server: TrainRequest is not in canonical form")
            return super().answer(node, kind, payload)

    found = answered(federation.ask(question(epsilon=1.0), Older(federation.participants())))
    assert (found["devices"], found["refused"]) == (DEVICES - 2, 2)


def test_a_query_that_nobody_was_charged_for_is_put_again_and_one_that_somebody_was_is_not(
    federation: TabularFederation,
) -> None:
    class Flaky(MemoryLink):
        """Loses all devices in a phase, the first time."""

        def __init__(self, phase: str) -> None:
            super().__init__(federation.participants())
            self.phase, self.failed = phase, False

        def send(self, kind: str, group: str, payloads: Any, *, ttl_s: float) -> int:
            sent = super().send(kind, group, payloads, ttl_s=ttl_s)
            if kind == self.phase and not self.failed:
                self.failed, self.answers = True, []
            return sent

    found = answered(federation.ask(question(epsilon=0.5, name="mine"), Flaky("query.share")))
    assert found["devices"] == DEVICES
    assert all(federation.charges(home) == ["mine"] for home in federation.homes)
    name = federation.put(question(epsilon=0.5))
    says = failing(federation, name, Flaky("query.mask"))
    assert "6 devices were charged" in str(says)
    assert "ask a new one" in str(says)
    with federation.fleet.open_store() as store:
        assert [each.attempt for each in store.runs.rounds(name)] == [1]
        known = FleetLedger.of(store, federation.fleet.runs)
    for number, home in enumerate(federation.homes):
        with Ledger(home.ledger) as own:
            assert known.spent(DeviceId(f"dev-{number}"), 1e-5) >= own.spent(1e-5) * (1 - 1e-9)


def test_a_query_whose_server_was_killed_goes_on_where_nobody_was_charged(
    federation: TabularFederation,
) -> None:
    class Killed(BaseException):
        pass

    class Deadly(MemoryLink):
        at = ""

        def send(self, kind: str, group: str, payloads: Any, *, ttl_s: float) -> int:
            if kind == self.at:
                raise Killed
            return super().send(kind, group, payloads, ttl_s=ttl_s)

    clock = SimulatedClock()
    for at, ends in (("query.share", "finished"), ("query.mask", "failed")):
        name, link = federation.put(question(epsilon=0.5)), Deadly(federation.participants())
        link.at = at
        with pytest.raises(Killed):
            query_to_end(federation.fleet, name, link, clock=clock, pause=clock.pause)
        with federation.fleet.open_store() as store:
            assert name in store.runs.driven()
            assert name in store.queries.running()
        if ends == "finished":
            query_to_end(federation.fleet, name, federation.link(), clock=clock, pause=clock.pause)
            assert answered(federation.query(name))["devices"] == DEVICES
        else:
            assert "were charged" in str(failing(federation, name, federation.link()))


def test_a_query_is_no_run_that_trains_and_its_name_is_taken(federation: TabularFederation) -> None:
    federation.ask(question(epsilon=0.5, name="first"))
    with federation.fleet.open_store() as store:
        assert store.runs.all() == ()
        assert store.runs.get(RunId("first")) is None
        with pytest.raises(UsageError, match="already a run first"):
            store.runs.create(RunId("first"), store.queries.all()[0].model, "{}")
    with pytest.raises(UsageError, match="already a run or query first"):
        federation.put(question(epsilon=0.5, name="first"))


def test_a_question_about_what_a_model_has_not_says_what_it_has(shared: TabularFederation) -> None:
    for wrong, says in (
        (question(field="height"), "ask about label, prediction, confidence, age, group, f2"),
        (question(model="other"), "released no version"),
        (question("fairness", positive="z"), "has no label 'z'"),
        (question("fairness", cohort="age"), "say with --cohort-edges"),
        (question("mean", field="label"), "say --low and --high"),
        (question(min_cohort=2), "below the 3 of the fleet's policy"),
        (question(min_cohort=DEVICES + 1), "6 devices are to be asked"),
    ):
        with pytest.raises((UsageError, RefusedError), match=says):
            shared.check(wrong)


def test_a_cohort_of_a_few_is_not_shown(shared: TabularFederation, tmp_path: Path) -> None:
    own = shared.copy(tmp_path / "own")
    for path in own.data:
        rows = np.load(path)
        x = rows["x"].copy()
        x[:, GROUP] = 0
        if path == own.data[0]:
            x[:2, GROUP] = 2
        np.savez(path, x=x, y=rows["y"])
    found = answered(own.ask(question("fairness")))  # type: ignore[attr-defined]
    assert [cohort["suppressed"] for cohort in found["cohorts"]] == [False, True, True]
    assert found["cohorts"][2]["examples"] is None
    assert found["differences"]["selection_rate"] is None
