"""A store as 100,000 devices leave it after 30 days, in SQLite or PostgreSQL: written by statements, in some minutes.

Every device has two tags and a model that answers, reports once a day, and sent a batch within the last hour; cohorts
have every hour. Six of ten devices are online, and stay so for an hour, as none calls while somebody measures. Filling
is not what is measured: what a database does to keep rows through a power cut is left out of it.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    case,
    cast,
    create_engine,
    func,
    insert,
    literal,
    select,
)

from umbel_proto.histogram import CONFIDENCE, INPUT, LATENCY_US
from umbel_server.store.audit import FIRST_PREVIOUS, Entry, entry_hash
from umbel_server.store.batches import month_of
from umbel_server.store.database import insert as insert_or_leave
from umbel_server.store.tables import batches, cohort_rollups, devices, rollups, tokens
from umbel_server.store.tables_audit import audit
from umbel_server.store.tables_devices import deliveries, device_days
from umbel_server.store.tables_rollouts import device_models, device_tags

DEVICES, DAYS = 100_000, 30
PREFIX = "sensor-"
"""What the devices' names begin with: no other device's does."""
HOUR_S, DAY_S = 3600, 86400
SITES, CLASSES, BODIES = 20, 4, 64
MODELS = [(model, version) for model in ("digits", "activity", "faults") for version in (1, 2)]
VARIANTS = ("fp32", "int8")
SCALES = {"latency_us": (1, LATENCY_US), "confidence": (2, CONFIDENCE)}
WATCHED = {
    "input_mean": (3, INPUT),
    "feedback.right": (2, CONFIDENCE),
    "feedback.wrong": (2, CONFIDENCE),
}
"""What cohorts have beside these: what drift and performance are computed of."""
ROWS = 10_000

_made = MetaData()
_times = Table(
    "bench_times",
    _made,
    Column("number", Integer, primary_key=True),
    Column("span", String(4)),
    Column("start_s", BigInteger),
    Column("length_s", BigInteger),
)
_bodies = Table(
    "bench_bodies",
    _made,
    Column("number", Integer, primary_key=True),
    Column("counters", Text),
    Column("histograms", Text),
    Column("listed", Text),
    Column("cohort_counters", Text),
    Column("cohort_histograms", Text),
)
_cohorts = Table(
    "bench_cohorts", _made, Column("number", Integer, primary_key=True), Column("name", String(63))
)
_slots = Table(
    "bench_slots",
    _made,
    Column("number", Integer, primary_key=True),
    Column("model", String(63)),
    Column("version", BigInteger),
    Column("variant", String(63)),
)
_NUMBER = cast(func.substr(device_models.c.device_id, len(PREFIX) + 1), Integer)


def fill(place: Path | URL, count: int, now_s: int, *, days: int = DAYS) -> None:
    """Fill a store as if it had run for 30 days; what is in it stays.

    Args:
        place: The store: its tables are there, and nobody uses it.
        count: How many devices.
        now_s: When it is, Unix seconds.
        days: Devices reported on the first so many days only, for a brief look; cohorts on all.
    """
    engine = create_engine(place if isinstance(place, URL) else f"sqlite:///{place}")
    begin_s = now_s // DAY_S * DAY_S - (DAYS - 1) * DAY_S
    try:
        with engine.connect() as connection:
            _hurry(connection)
            _made.create_all(connection)
            _scaffold(connection, begin_s, now_s)
            _devices(connection, count, begin_s, now_s)
            _audited(connection, count, begin_s)
            connection.commit()
            for day in range(min(days, DAYS)):
                _reported(connection, count, day)
                connection.commit()
            _summed(connection)
            _made.drop_all(connection)
            connection.commit()
        _settle(engine)
    finally:
        engine.dispose()


def name(number: int) -> str:
    """Return a device's name."""
    return f"{PREFIX}{number:06}"


def tags_of(number: int) -> tuple[str, str]:
    """Return a device's tags."""
    return f"site-{number % SITES:02}", f"class-{number % CLASSES}"


def _hurry(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"):
            connection.exec_driver_sql(f"PRAGMA {pragma}")
    else:
        # No look at each row whether its device is there.
        connection.exec_driver_sql("SET session_replication_role = replica")
        connection.exec_driver_sql("SET synchronous_commit = off")


def _settle(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        else:
            connection.exec_driver_sql("VACUUM ANALYZE")


def _scaffold(connection: Connection, begin_s: int, now_s: int) -> None:
    chance = random.Random(1)
    times = [
        (span, start_s, length_s)
        for span, length_s in (("day", DAY_S), ("hour", HOUR_S))
        for start_s in range(begin_s, now_s, length_s)
    ]
    connection.execute(
        insert(_times),
        [
            {"number": number, "span": span, "start_s": start_s, "length_s": length_s}
            for number, (span, start_s, length_s) in enumerate(times)
        ],
    )
    connection.execute(insert(_bodies), [{"number": each, **_body(chance)} for each in range(BODIES)])
    cohorts = [
        "",
        *(f"site-{site:02}" for site in range(SITES)),
        *(f"class-{each}" for each in range(CLASSES)),
    ]
    connection.execute(
        insert(_cohorts), [{"number": each, "name": cohort} for each, cohort in enumerate(cohorts)]
    )
    slots = [(*model, variant) for model in MODELS for variant in VARIANTS]
    connection.execute(
        insert(_slots),
        [
            {"number": each, "model": model, "version": version, "variant": variant}
            for each, (model, version, variant) in enumerate(slots)
        ],
    )


def _devices(connection: Connection, count: int, begin_s: int, now_s: int) -> None:
    chance = random.Random(2)
    token = secrets.token_bytes(32)
    connection.execute(insert(tokens).values(hash=token, created_s=0.0, expires_s=1.0, uses_left=0))

    def device(number: int) -> dict[str, object]:
        quarantined = number % 1000 == 1
        facts = {
            "arch": ("x86_64", "aarch64")[number % 2],
            "memory_mib": 2000 << number % 3,
            "engine": "onnx",
        }
        return {
            "id": name(number),
            "status": "revoked" if number % 1000 == 0 else "active",
            "identity_key": secrets.token_bytes(32),
            "node_key": secrets.token_bytes(120),
            "token_hash": token,
            "enrolled_key": secrets.token_bytes(32),
            "enrolled_s": float(begin_s),
            "certificate_not_after_s": now_s + chance.uniform(0, DAY_S),
            "last_seen_s": now_s + _seen(chance),
            "revoked_s": float(now_s) if number % 1000 == 0 else None,
            "quarantined_s": float(now_s) if quarantined else None,
            "quarantine_reason": "it says what cannot be" if quarantined else None,
            "facts": json.dumps(facts),
        }

    every = range(count)
    _insert(connection, devices, map(device, every))
    _insert(
        connection,
        device_tags,
        ({"device_id": name(each), "tag": tag} for each in every for tag in tags_of(each)),
    )
    _insert(
        connection,
        device_models,
        (
            {
                "device_id": name(each),
                "model": MODELS[each % len(MODELS)][0],
                "version": MODELS[each % len(MODELS)][1],
                "since_s": float(begin_s),
            }
            for each in every
        ),
    )
    _insert(
        connection,
        deliveries,
        (
            {"device_id": name(each), "opened": 720, "rejected": 3, "received_s": float(now_s)}
            for each in every
        ),
    )

    def batch(number: int) -> dict[str, object]:
        rejected = number % 500 == 0
        return {
            "device_id": name(number),
            "batch_id": secrets.token_bytes(16),
            "key_id": "key",
            "header": bytes(90),
            "state": "rejected" if rejected else "opened",
            "reason": "its header is not that of a batch" if rejected else None,
            "received_s": now_s - chance.uniform(0, HOUR_S),
            "opened_s": float(now_s),
            "month": month_of(now_s),
        }

    _insert(connection, batches, map(batch, every))


def _seen(chance: random.Random) -> float:
    """Return when a device was heard of, from now: most are online, some called within a day, some not for weeks."""
    return chance.choice((HOUR_S, HOUR_S, HOUR_S, -5000.0, -1e6)) - chance.uniform(0, 60)


def _audited(connection: Connection, count: int, begin_s: int) -> None:
    """Log that every device was let in."""
    head = connection.execute(select(audit).order_by(audit.c.sequence.desc()).limit(1)).one_or_none()

    def entries() -> Iterator[dict[str, object]]:
        first, previous = (1, FIRST_PREVIOUS) if head is None else (head.sequence + 1, head.hash)
        for number in range(count):
            made_ms = (begin_s + number) * 1000
            of = (
                "service:authority",
                "device.enroll",
                f"device:{name(number)}",
                "",
                "null",
                '{"how":"token"}',
            )
            fields = (first + number, made_ms, *of, previous)
            previous = entry_hash(*fields)
            yield dict(zip(Entry.__slots__, (*fields, previous), strict=True))

    _insert(connection, audit, entries())


def _reported(connection: Connection, count: int, day: int) -> None:
    """Let every device report of a day: an hour of it, and the sum of the day."""
    of = device_models.c
    who = (of.device_id, of.model, of.version, case((_NUMBER % 2 == 0, VARIANTS[0]), else_=VARIANTS[1]))
    noon_s = _times.c.start_s + DAY_S // 2

    def told(start_s: object, end_s: object, *rest: object) -> Select[tuple[object, ...]]:
        return (
            select(*who, literal("onnx"), start_s, literal(60), end_s, _bodies.c.counters, *rest)  # type: ignore[call-overload]
            .select_from(device_models)
            .join(_times, _times.c.number == day)
            .join(_bodies, _bodies.c.number == (_NUMBER + day) % BODIES)
            .where(of.device_id >= name(0), of.device_id <= name(count - 1))
        )

    key = ["device_id", "model", "version", "variant", "engine"]
    hours = told(noon_s, noon_s + HOUR_S, _bodies.c.histograms)
    sums = ["windows", "until_s", "counters", "histograms"]
    connection.execute(insert(rollups).from_select([*key, "hour_s", *sums], hours))
    whole = told(_times.c.start_s, _times.c.start_s + DAY_S, _bodies.c.listed, literal(0))
    connection.execute(insert(device_days).from_select([*key, "day_s", *sums, "left_out"], whole))


def _summed(connection: Connection) -> None:
    """Sum what devices told by cohort, each hour and day."""
    number = (_cohorts.c.number * 7 + _slots.c.number * 13 + _times.c.number) % BODIES
    found = (
        select(
            _times.c.span,
            _cohorts.c.name,
            _slots.c.model,
            _times.c.start_s,
            _slots.c.version,
            _slots.c.variant,
            literal("onnx"),
            literal(900),
            _times.c.start_s + _times.c.length_s,
            _bodies.c.cohort_counters,
            _bodies.c.cohort_histograms,
            literal(0),
        )
        .select_from(_cohorts)
        .join(_slots, literal(1) == 1)
        .join(_times, literal(1) == 1)
        .join(_bodies, _bodies.c.number == number)
    )
    key = ["span", "cohort", "model", "start_s", "version", "variant", "engine"]
    sums = ["windows", "until_s", "counters", "histograms", "left_out"]
    connection.execute(
        insert_or_leave(connection, cohort_rollups).from_select([*key, *sums], found).on_conflict_do_nothing()
    )


def _insert(connection: Connection, table: Table, rows: Iterator[Mapping[str, object]]) -> None:
    while some := list(islice(rows, ROWS)):
        connection.execute(insert(table), some)


def _body(chance: random.Random) -> dict[str, str]:
    """Return counters and histograms as the store keeps them: of a device's hour and day, and of a cohort."""
    one, all_ = _cells(chance, SCALES, 50), _cells(chance, SCALES | WATCHED, 50_000)
    return {
        "counters": json.dumps(_counters(chance, 50)),
        "histograms": json.dumps(one),
        "listed": _listed(one),
        "cohort_counters": json.dumps(_counters(chance, 50_000) | _judged(chance)),
        "cohort_histograms": _listed(all_),
    }


def _counters(chance: random.Random, most: int) -> dict[str, int]:
    counters = {"predictions": chance.randrange(most // 2, most), "errors": chance.randrange(3)}
    return counters | {f"label.{label}": chance.randrange(most // 10) for label in range(10)}


def _judged(chance: random.Random) -> dict[str, int]:
    feedback = chance.randrange(2000, 3000)
    return {
        "feedback": feedback,
        "feedback.agreed": feedback * 9 // 10,
        "feedback.from.user": feedback,
        "feedback.compared": 60,
        "feedback.alike": 50,
        "contract.pixel.above": chance.randrange(9),
    }


def _cells(
    chance: random.Random, scales: Mapping[str, tuple[int, Sequence[float]]], most: int
) -> dict[str, dict[str, object]]:
    return {
        kind: {"scale": scale, "counts": _counts(chance, len(edges) + 1, most), "sum": 40.0}
        for kind, (scale, edges) in scales.items()
    }


def _counts(chance: random.Random, cells: int, most: int) -> list[int]:
    return [chance.randrange(most) if cells // 4 < cell < cells // 2 else 0 for cell in range(cells)]


def _listed(cells: Mapping[str, dict[str, object]]) -> str:
    """Return histograms as days and cohorts have them: in a list."""
    return json.dumps([{"name": kind, **body} for kind, body in cells.items()])
