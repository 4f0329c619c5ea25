"""Law: what training for a round spends is counted on the device, for its telemetry, and is in no message."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from simulation.federation import MemoryLink
from simulation.tiny import TinyFederation
from umbel._rounds.participant import Participant
from umbel._telemetry.gauges import Rapl
from umbel.train import Trainer
from umbel.train.onnx import OnnxTrainer
from umbel_proto.package import Package

LIMIT_UJ, TRAINING_UJ = 1_000_000, 300_000


class Processor:
    """Counters as Linux shows them, of a processor that spends only while its device trains."""

    def __init__(self, root: Path) -> None:
        self.root, self._spent_uj = root, 900_000
        (root / "intel-rapl:0").mkdir(parents=True)
        (root / "intel-rapl:0" / "max_energy_range_uj").write_text(f"{LIMIT_UJ}\n")
        self._show()

    def trainer(self, package: Package) -> Trainer:
        self._spent_uj = (self._spent_uj + TRAINING_UJ) % LIMIT_UJ
        self._show()
        return OnnxTrainer(package)

    def _show(self) -> None:
        (self.root / "intel-rapl:0" / "energy_uj").write_text(f"{self._spent_uj}\n")


def test_a_device_that_can_read_its_energy_counts_it_for_each_training(tmp_path: Path) -> None:
    tiny = TinyFederation(tmp_path)
    told: list[Counter[str]] = []
    devices = tiny.participants()
    for number in (0, 1):
        processor, counters = Processor(tmp_path / f"processor-{number}"), Counter[str]()
        root = processor.root if number == 0 else tmp_path / "no counters here"
        devices[tiny.node(number)] = Participant(
            tiny.homes[number],
            tiny.data[number],
            trainer=processor.trainer,
            tell=lambda name, by, counters=counters: counters.update({name: by}),  # type: ignore[misc]
            energy=lambda root=root: Rapl(root),  # type: ignore[misc]
        )
        told.append(counters)
    tiny.run(MemoryLink(devices), tiny.plan(rounds=2), "counted")
    assert told[0] == {"round.trainings": 2, "round.energy_rapl_uj": 2 * TRAINING_UJ}
    assert told[1] == {}
    with tiny.fleet.open_store() as store:
        assert "energy" not in str(store.runs.rounds("counted"))  # type: ignore[arg-type]
