"""The spool keeps what is sealed until it is acknowledged, within its bounds."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashing import crashed
from umbel._telemetry.spool import Depth, Sealed, Spool
from umbel_proto.errors import StorageError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def batch(number: int, size: int = 100) -> Sealed:
    return Sealed(number.to_bytes(16, "big"), b"header", bytes(size - 6))


def ids(spool: Spool) -> list[int]:
    return [int.from_bytes(b.batch_id, "big") for b in spool.oldest(max_batches=1000, max_bytes=10**9)]


def test_batches_come_back_as_they_were_oldest_first(path: Path) -> None:
    with Spool(path) as spool:
        for number in (3, 1, 2):
            assert spool.append(batch(number)) == 0
    with Spool(path) as spool:
        assert spool.oldest(max_batches=9, max_bytes=10**6) == [batch(3), batch(1), batch(2)]
        assert spool.depth() == Depth(batches=3, bytes=300, dropped=0)


def test_only_what_is_acknowledged_is_forgotten(path: Path) -> None:
    with Spool(path) as spool:
        for number in range(4):
            spool.append(batch(number))
        assert spool.acknowledge([batch(0).batch_id, batch(2).batch_id, bytes(15) + b"\x63"], now_s=5.0) == 2
        assert ids(spool) == [1, 3]
        assert spool.acknowledge([batch(0).batch_id], now_s=6.0) == 0
        assert spool.depth() == Depth(batches=2, bytes=200, dropped=0)
        assert spool.last_contact_s() == 6.0


def test_a_full_spool_drops_the_oldest_and_counts_them(path: Path) -> None:
    with Spool(path, max_bytes=350) as spool:
        dropped = [spool.append(batch(number)) for number in range(5)]
        assert (dropped, ids(spool)) == ([0, 0, 0, 1, 1], [2, 3, 4])
        assert spool.append(batch(9, size=250)) == 2
        assert ids(spool) == [4, 9]
        assert spool.depth() == Depth(batches=2, bytes=350, dropped=4)


def test_a_batch_larger_than_the_spool_drops_itself_only(path: Path) -> None:
    with Spool(path, max_bytes=350) as spool:
        spool.append(batch(1))
        assert spool.append(batch(2, size=351)) == 1
        assert (ids(spool), spool.depth().dropped) == ([1], 1)


@given(sizes=st.lists(st.integers(10, 500), max_size=30), bound=st.integers(50, 1000))
def test_the_spool_never_holds_more_than_its_bound_nor_loses_count(
    sizes: list[int], bound: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Spool(tmp_path_factory.mktemp("spool") / "spool.db", max_bytes=bound) as spool:
        for number, size in enumerate(sizes):
            spool.append(batch(number, size))
            held = spool.oldest(max_batches=1000, max_bytes=10**9)
            depth = spool.depth()
            assert depth.bytes == sum(b.size for b in held) <= bound
            assert depth.batches + depth.dropped == number + 1
            kept = [int.from_bytes(b.batch_id, "big") for b in held]
            assert kept == sorted(kept)


def test_an_upload_takes_what_fits_and_at_least_one(path: Path) -> None:
    with Spool(path) as spool:
        for number in range(5):
            spool.append(batch(number))
        assert len(spool.oldest(max_batches=2, max_bytes=10**6)) == 2
        assert len(spool.oldest(max_batches=9, max_bytes=399)) == 3
        assert len(spool.oldest(max_batches=9, max_bytes=1)) == 1
        assert spool.oldest(max_batches=2, max_bytes=10**6, skip=3) == [batch(3), batch(4)]


def test_sequence_numbers_grow_and_are_given_once_across_processes(path: Path) -> None:
    with Spool(path) as one, Spool(path) as other:
        assert [one.next_sequence(), other.next_sequence(), one.next_sequence()] == [1, 2, 3]
    with Spool(path) as again:
        assert again.next_sequence() == 4


def test_a_batch_that_is_given_up_is_counted_once(path: Path) -> None:
    with Spool(path) as spool:
        spool.append(batch(1))
        spool.give_up(batch(1).batch_id)
        spool.give_up(batch(1).batch_id)
        assert spool.depth() == Depth(batches=0, bytes=0, dropped=1)


def test_batches_of_somebody_else_are_given_up_and_counted(path: Path) -> None:
    with Spool(path) as spool:
        for number, header in enumerate((b"mine", b"other", b"mine", b"")):
            spool.append(Sealed(number.to_bytes(16, "big"), header, bytes(10)))
        assert spool.keep(lambda header: header == b"mine") == 2
        assert ids(spool) == [0, 2]
        assert spool.depth() == Depth(batches=2, bytes=28, dropped=2)


def test_a_commit_waits_until_it_survives_a_power_cut(path: Path) -> None:
    with Spool(path) as spool:
        settings = [
            spool._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
    # https://sqlite.org/pragma.html#pragma_synchronous: 2 is FULL, "the WAL file is synced after each transaction".
    assert settings == ["wal", 2]


def test_batches_survive_a_kill_right_after_they_were_appended(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from umbel._telemetry.spool import Sealed, Spool\n"
        "Spool(Path(sys.argv[1])).append(Sealed(sys.argv[2].encode() * 16, b'h', b'c'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    for number in range(3):
        assert subprocess.run([sys.executable, "-c", code, path, str(number)], check=False).returncode == -9
    with Spool(path) as spool:
        held = [b.batch_id for b in spool.oldest(max_batches=9, max_bytes=10**6)]
    assert held == [b"0" * 16, b"1" * 16, b"2" * 16]


def test_killed_at_any_instant_every_batch_waits_is_delivered_or_is_counted(tmp_path: Path) -> None:
    """Sending, with batches that the gateway refuses; sealing into a full spool; giving up what is of another."""
    lines = [line.split(" ", 1) for line in crashed("crashing_spool.py", tmp_path)]
    found = {change: {left for each, left in lines if each == change} for change, _ in lines}
    assert found["flush"] == {"6 0 0", "6 0 1"}
    assert found["keep"] == {"6 0 0", "4 0 2"}
    assert {"6 0 0", "6 1 0", "5 1 0", "3 4 0", "2 4 0", "1 4 1", "0 4 2"} <= found["send"]
    assert len(lines) > 80


def test_a_fresh_spool_never_had_contact(path: Path) -> None:
    with Spool(path) as spool:
        assert spool.last_contact_s() is None
        spool.contacted(1234.9)
        assert spool.last_contact_s() == 1234.0


def test_the_first_refusal_is_kept_until_the_gateway_answers(path: Path) -> None:
    with Spool(path) as spool:
        assert spool.refused_s() is None
        spool.refused(100.0)
        spool.refused(200.0)
        assert spool.refused_s() == 100.0
    with Spool(path) as spool:
        assert spool.refused_s() == 100.0
        spool.contacted(300.0)
        assert spool.refused_s() is None


def test_a_damaged_spool_says_what_to_do(path: Path) -> None:
    path.write_bytes(b"this is no database, however long it may be" * 200)
    with pytest.raises(StorageError, match=r"spool\.db is damaged: delete it"):
        Spool(path)


def test_on_a_full_disk_the_sentence_says_so_and_nothing_is_half_done(path: Path) -> None:
    with Spool(path) as spool:
        pages = spool._connection.execute("PRAGMA page_count").fetchone()[0]
        spool._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError, match="No space is left on the disk of"):
            spool.append(batch(1, size=100_000))
        assert spool.depth() == Depth(batches=0, bytes=0, dropped=0)


def test_a_closed_spool_refuses_with_an_error_of_ours(path: Path) -> None:
    spool = Spool(path)
    spool.close()
    with pytest.raises(UsageError, match="was closed"):
        spool.append(batch(1))


def test_the_file_does_not_grow_past_its_bound_while_batches_come_and_go(path: Path) -> None:
    with Spool(path, max_bytes=200_000) as spool:
        for number in range(300):
            spool.append(batch(number, size=10_000))
    assert path.stat().st_size < 2 * 200_000


def test_the_spool_is_its_owners_only(path: Path) -> None:
    Spool(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_name_of_a_batch_is_taken_twice(path: Path) -> None:
    with Spool(path) as spool:
        spool.append(batch(1))
        with pytest.raises(StorageError):
            spool.append(batch(1))
    assert sqlite3.connect(path).execute("SELECT count(*) FROM batches").fetchone() == (1,)
