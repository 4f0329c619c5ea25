"""Law: what devices send in a run carries the noise of the run's plan, once, whoever is lost; and the ledger and
the audit agree on what that costs.

Enrolled devices, training, messages, masks and the server are real (``simulation/federation.py``), so this is
where noise that the device forgets to add, or adds twice, shows. A round of the digits model has 13,706
coordinates: its sample variance is off by 1.2 % as a standard deviation, and three rounds' by 0.7 %. Noise is
fresh in each run. 4 % are 5.7 standard deviations: a false alarm in 1e8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from simulation.federation import Federation, MemoryLink
from umbel._rounds.contribution import Contribution
from umbel._rounds.ledger import Ledger
from umbel_proto.privacy.plan import Plan
from umbel_proto.privacy.rotate import rotate
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.pairwise import MASK
from umbel_proto.secagg.session import rotation_seed
from umbel_server.learning.budget import plan_privacy
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.measure import quantities

CLIP = 0.5  # Below what the digits' updates are long, so that all are clipped.
RUNS = 3


class Watching(MemoryLink):
    """Keeps what each device is about to encode: an auditor with access to the devices' memory."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation.participants())
        self.contributions: dict[NodeId, Contribution] = {}

    def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
        answer = super().answer(node, kind, payload)
        saved = self.saved.get(node)
        if kind == TRAIN and saved is not None:
            self.contributions[node] = Contribution.from_bytes(saved.contribution)
        return answer


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("noise"), 5)


def one_round(federation: Federation, run: str, lost: frozenset[int]) -> tuple[NDArray[np.float32], Plan]:
    """Return a round's error in each coordinate that devices added noise to, and the plan."""
    run_plan = federation.plan(rounds=1, clip=CLIP, noise_multiplier=1.0)
    planned = plan_privacy(
        run_plan,
        federation.fleet.policy(),
        federation.package.manifest.dim,
        len(quantities(run_plan, len(federation.package.manifest.labels))),
    )
    link = Watching(federation)
    link.vanish |= {(federation.node(number), MASK) for number in lost}
    record, _ = federation.run(link, run_plan, run)
    assert record.state == "finished"
    mean = federation.trained(run).astype(np.float64) - federation.package.parameters()
    kept = [each for node, each in link.contributions.items() if node - federation.node(0) not in lost]
    assert len(kept) == 5 - len(lost)
    clipped = []
    for each in kept:
        update = each.update.astype(np.float64)
        norm = float(np.linalg.norm(update))
        assert norm > CLIP
        assert each.weight == 1
        clipped.append(update * CLIP / norm)
    padded = np.zeros(planned.encoding.padded, np.float32)
    padded[: mean.size] = mean - np.mean(clipped, axis=0)
    with Ledger(federation.homes[0].ledger) as ledger:
        sid = ledger.charges()[-1].sid
    return rotate(padded, rotation_seed(sid)), planned


@pytest.mark.parametrize("lost", [frozenset(), frozenset({2})], ids=["nobody lost", "one lost"])
def test_the_sum_of_a_run_carries_each_devices_noise_once(
    federation: Federation, lost: frozenset[int]
) -> None:
    errors, devices = [], 5 - len(lost)
    for number in range(RUNS):
        error, planned = one_round(federation, f"noised-{devices}-{number}", lost)
        errors.append(error)
    encoding = planned.encoding
    # What decoding cuts off with the padding is missing from the error.
    measured = float(np.mean(np.square(errors))) * encoding.padded / encoding.dim
    predicted = devices * (float(encoding.noise) + 0.25) / (encoding.scale * devices) ** 2
    assert 0.96 < measured / predicted < 1.04
    if not lost:
        assert 0.96 < measured / planned.error**2 < 1.04
    # Rounds with the same noise would agree in what is left when the updates are taken away.
    for one in range(RUNS):
        for other in range(one):
            assert abs(np.corrcoef(errors[one], errors[other])[0, 1]) < 6 / encoding.padded**0.5


def test_the_ledger_charges_what_the_plan_says(federation: Federation, tmp_path: Path) -> None:
    fresh = federation.copy(tmp_path / "fleet")
    run_plan = fresh.plan(rounds=1, clip=CLIP, noise_multiplier=1.0)
    with Ledger(fresh.homes[0].ledger) as ledger:
        before = len(ledger.charges())
    fresh.run(MemoryLink(fresh.participants()), run_plan, "charged")
    planned = plan_privacy(
        run_plan,
        fresh.fleet.policy(),
        fresh.package.manifest.dim,
        len(quantities(run_plan, len(fresh.package.manifest.labels))),
    )
    with Ledger(fresh.homes[0].ledger) as ledger:
        charges = ledger.charges()
    assert len(charges) == before + 1
    charge = charges[-1]
    assert charge.variance == planned.honest * planned.encoding.noise
    assert charge.bound_sq == planned.encoding.bound_sq
