"""A fleet whose devices keep rows of a table, for queries about them: a model of three columns and two labels.

Everything but the size is real: a signed package, enrolled devices, ledgers, sessions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulation.federation import Federation, MemoryLink, lenient_policy
from simulation.tiny import CLASSES, FEATURES, SimulatedClock, package_parts
from umbel._home.directory import DeviceHome
from umbel._rounds.ledger import Ledger
from umbel_proto.contract import Column, DataContract, Field
from umbel_proto.credentials import FleetPolicy
from umbel_proto.ids import RunId
from umbel_proto.package import Package, read_package, write_package
from umbel_server.access.actor import local_actor
from umbel_server.fleet.publish import publish
from umbel_server.queries.ask import Checked, check, record
from umbel_server.queries.drive import query_to_end
from umbel_server.queries.plan import Question
from umbel_server.queries.sign import with_key
from umbel_server.store.queries import QueryRecord

AGE, GROUP = 0, 1
COLUMNS = (
    Column("age", 0.0, 4.0, unit="scores of years"),
    Column("group", 0.0, 2.0, (0.0, 1.0, 2.0)),
    *(Column(f"f{number}", -10.0, 10.0) for number in range(2, FEATURES)),
)
LABELS = ("a", "b", "c")
assert len(LABELS) == CLASSES


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """All devices' rows together: what no server ever sees.

    Args:
        x: Shape (n, columns).
        y: Right labels, shape (n,).
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]


class TabularFederation(Federation):
    """A fleet with enrolled devices that hold different numbers of rows.

    Args:
        root: A directory of its own.
        devices: How many.
        policy: What they insist on.
    """

    def __init__(self, root: Path, devices: int = 8, *, policy: FleetPolicy | None = None) -> None:
        super().__init__(root, devices, policy=policy or lenient_policy())
        chance = np.random.default_rng(11)
        for number, path in enumerate(self.data):
            rows = 5 + 3 * number
            x = chance.normal(0, 1, (rows, FEATURES)).astype(np.float32)
            x[:, AGE] = np.clip(chance.normal(2 + number / 20, 0.6, rows), 0, 4)
            x[:, GROUP] = chance.integers(0, 3, rows)
            np.savez(path, x=x, y=chance.integers(0, CLASSES, rows))

    def pooled(self) -> Pooled:
        """Return all rows."""
        files = [np.load(path) for path in self.data]
        return Pooled(np.concatenate([f["x"] for f in files]), np.concatenate([f["y"] for f in files]))

    def predictions(self, x: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the number of the label that the model gives to each row, computed here."""
        weight, bias = np.split(self.package.parameters(), [FEATURES * CLASSES])
        logits = x.astype(np.float64) @ weight.reshape(FEATURES, CLASSES) + bias
        return logits.argmax(axis=1)

    def link(self) -> MemoryLink:
        """A link to all devices, freshly started."""
        return MemoryLink(self.participants())

    def check(self, question: Question) -> Checked:
        """Return what a question would cost."""
        with self.fleet.open_store() as store:
            return check(self.fleet, store, question, asked_by="anna")

    def put(self, question: Question) -> RunId:
        """Sign a question and put it on record."""
        with self.fleet.open_store() as store:
            checked = check(self.fleet, store, question, asked_by="anna")
            record(self.fleet, store, checked, actor=local_actor(), sign=with_key(self.fleet))
        return checked.query.id

    def ask(self, question: Question, link: MemoryLink | None = None) -> QueryRecord:
        """Ask a question, and return how it ended."""
        name, clock = self.put(question), SimulatedClock()
        query_to_end(self.fleet, name, link or self.link(), clock=clock, pause=clock.pause)
        return self.query(name)

    def query(self, name: str) -> QueryRecord:
        """Return a query."""
        with self.fleet.open_store() as store:
            found = store.queries.get(RunId(name))
        assert found is not None
        return found

    @staticmethod
    def charges(home: DeviceHome) -> list[str]:
        """Return under which names a device was charged."""
        with Ledger(home.ledger) as ledger:
            return [str(charge.run) for charge in ledger.charges()]

    def _publish(self) -> Package:
        key = self.fleet.release_signer()
        chance = np.random.default_rng(3).uniform(0, 1, (32, FEATURES)).astype(np.float32)
        chance[:, GROUP] = 1
        manifest, files = package_parts(chance)
        contract = DataContract((Field.of_columns("x", "float32", COLUMNS),))
        manifest = replace(manifest, labels=LABELS, contract=contract)
        data = write_package(manifest, files, key)
        with self.fleet.open_store() as store:
            publish(self.fleet, store, data)
        return read_package(data, release_key=key.public)
