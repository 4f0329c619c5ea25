"""How many batches each device delivered, counted as they are opened: of a batch a minute nobody counts a month."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from sqlalchemy import Connection, case, func, literal_column, select

from umbel_proto.ids import DeviceId
from umbel_server.store.batches import SEALED, Deliveries
from umbel_server.store.database import Database, among, insert
from umbel_server.store.tables import batches
from umbel_server.store.tables_devices import deliveries


class Delivered:
    """The counts by device of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, devices: Collection[DeviceId]) -> dict[DeviceId, Deliveries]:
        """Return what some devices delivered, ever; devices without a batch are left out.

        What waits for the opener is counted anew: that takes as long as there is much of it.
        """
        with self._database.read() as connection:
            done = connection.execute(
                select(deliveries).where(among(connection, deliveries.c.device_id, devices))
            ).all()
            # The few that wait have an index of their own; that of devices would lead through all their batches.
            waits = (
                select(batches.c.device_id, batches.c.received_s)
                .where(batches.c.state == literal_column(f"'{SEALED}'"))
                .cte("waits")
                .prefix_with("MATERIALIZED", dialect="postgresql")
            )
            query = select(waits.c.device_id, func.count(), func.max(waits.c.received_s)).where(
                among(connection, waits.c.device_id, devices)
            )
            sealed = connection.execute(query.group_by(waits.c.device_id)).all()
        found = {
            row.device_id: Deliveries(DeviceId(row.device_id), 0, row.opened, row.rejected, row.received_s)
            for row in done
        }
        for name, count, newest_s in sealed:
            before = found.get(name, Deliveries(DeviceId(name), 0, 0, 0, newest_s))
            found[name] = Deliveries(
                before.device, count, before.opened, before.rejected, max(before.last_received_s, newest_s)
            )
        return {each.device: each for each in found.values()}


def add_deliveries(connection: Connection, done: Iterable[tuple[str, float, bool]]) -> None:
    """Count batches that the opener is done with, in the transaction that marks them.

    Args:
        connection: Of ``Database.write``: nobody else counts meanwhile.
        done: Of each who sent it, when it was stored, Unix seconds, and whether it was opened, not rejected.
    """
    opened: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    newest_s: dict[str, float] = {}
    for device, received_s, was_opened in done:
        (opened if was_opened else rejected)[device] += 1
        newest_s[device] = max(received_s, newest_s.get(device, received_s))
    if not newest_s:
        return
    statement, there = insert(connection, deliveries), deliveries.c
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[there.device_id],
            set_={
                "opened": there.opened + new.opened,
                "rejected": there.rejected + new.rejected,
                "received_s": case(
                    (new.received_s > there.received_s, new.received_s), else_=there.received_s
                ),
            },
        ),
        [
            {
                "device_id": name,
                "opened": opened[name],
                "rejected": rejected[name],
                "received_s": newest_s[name],
            }
            for name in sorted(newest_s)
        ],
    )
