"""Rounds on the local data set: the same result as on a file, and no word from a device that does not train now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from simulation.federation import MemoryLink
from simulation.tiny import TinyFederation
from umbel._data.consent import Consent
from umbel._data.dataset import DataSet
from umbel._data.examples import read_examples
from umbel._rounds.conditions import Conditions, NotNowError
from umbel._rounds.participant import Participant, Saved
from umbel._rounds.probes import Reading
from umbel_server.learning.link import Answer, NodeId, Payload


@pytest.fixture
def federation(tmp_path: Path) -> TinyFederation:
    return TinyFederation(tmp_path / "files")


def keep(federation: TinyFederation, numbers: Sequence[int]) -> None:
    for number in numbers:
        examples = read_examples(federation.data[number])
        with DataSet(federation.homes[number], federation.package.manifest) as data:
            data.add(examples.x, examples.y, source="import")


@dataclass
class QuietLink(MemoryLink):
    """Carries no answer of a device that has none, as the node does."""

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        self.answers = []
        for node, payload in payloads.items():
            try:
                body, vector, self.saved[node] = self.participants[node].answer(
                    kind, payload.body, payload.vector, self.saved.get(node)
                )
            except NotNowError:
                self.gone.add(node)
                self.sent.append((f"silent {kind}", node))
            else:
                self.answers.append(Answer(node, Payload(body, vector), size_up=len(body) + len(vector)))
        return 0


def test_a_run_on_the_local_data_sets_learns_what_it_learns_from_the_same_files(
    federation: TinyFederation, tmp_path: Path
) -> None:
    other = federation.copy(tmp_path / "sets")
    assert isinstance(other, TinyFederation)
    plan = federation.plan(rounds=2)
    federation.run(federation.link(), plan)
    keep(other, range(len(other.homes)))
    record, _ = other.run(
        MemoryLink({other.node(n): Participant(home) for n, home in enumerate(other.homes)}), plan
    )
    assert record.state == "finished"
    np.testing.assert_allclose(other.trained(), federation.trained(), atol=1e-3)


def test_a_device_that_runs_on_its_battery_is_silent_and_pays_nothing(federation: TinyFederation) -> None:
    participants = federation.participants()
    conditions = Conditions(federation.homes[2], probes=[lambda: Reading(charging=False)])
    conditions.require(charging=True)
    participants[federation.node(2)] = Participant(
        federation.homes[2], federation.data[2], conditions=conditions
    )
    link = QuietLink(participants)
    record, _ = federation.run(link, federation.plan(rounds=1))
    assert record.state == "finished"
    assert [sent for sent in link.sent if sent[0].startswith("silent")] == [
        ("silent train", federation.node(2))
    ]
    assert federation.charged(2, "r1") == []
    assert federation.charged(1, "r1") == [(1, 1)]


class Regretting(Participant):
    """A device whose user takes back consent after it trained."""

    def answer(
        self, kind: str, body: bytes, vector: bytes, saved: Saved | None
    ) -> tuple[bytes, bytes, Saved | None]:
        said = super().answer(kind, body, vector, saved)
        if kind == "train":
            Consent(self._home).revoke()
        return said


def test_consent_taken_back_in_the_middle_of_a_round_keeps_the_update_on_the_device(
    federation: TinyFederation,
) -> None:
    keep(federation, [3])
    participants = federation.participants()
    participants[federation.node(3)] = Regretting(federation.homes[3])
    link = QuietLink(participants)
    record, (first,) = federation.run(link, federation.plan(rounds=1))
    assert record.state == "finished"
    assert [node for kind, node in link.sent if kind.startswith("silent")] == [federation.node(3)]
    assert federation.charged(3, "r1") == []
    outcomes = {part.device: part.outcome for part in first.participations}
    assert outcomes.pop("dev-3") == "charged"  # The service counts the worst: it cannot know what was sent.
    assert set(outcomes.values()) == {"summed"}
