"""No change to the audit log goes unseen: any field of any entry, any entry taken out, put in or moved, its end cut off."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service_fleet import make_fleet
from umbel_proto.errors import VerificationError
from umbel_server.access import chain
from umbel_server.access.actor import Actor, local_actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.audit import Entry, entry_hash

ENTRIES = 12
COLUMNS = Entry.__slots__
NUMBERS = ("sequence", "time_ms")
HASHES = ("previous", "hash")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    """A fleet whose log has entries of all shapes, under a checkpoint."""
    fleet = make_fleet(tmp_path_factory.mktemp("whole") / "fleet")
    with fleet.open_store() as store:
        for number in range(ENTRIES):
            store.audit.record(
                local_actor() if number % 2 else Actor("ann", frozenset()),
                action="device.revoke",
                object=f"device:d{number}",
                reason="" if number % 3 else "verloren — wirklich",
                before={"status": "active"} if number % 4 else None,
                after={"status": "revoked", "b": [1, None], "a": True},
            )
        chain.keep_checkpoint(fleet, store)
        assert chain.verify(fleet, store)[0] == ENTRIES
    return fleet


@pytest.fixture
def copy(whole: FleetDir, tmp_path: Path) -> FleetDir:
    return copied(whole, tmp_path)


def copied(whole: FleetDir, where: Path) -> FleetDir:
    shutil.rmtree(where / "fleet", ignore_errors=True)
    shutil.copytree(whole.path, where / "fleet")
    return FleetDir.open(where / "fleet")


def altered(fleet: FleetDir, *statements: tuple[str, tuple[Any, ...]]) -> None:
    """Change the store as somebody who has its file: the triggers are in nobody's way."""
    with sqlite3.connect(fleet.store_db) as connection:
        for name in ("audit_no_update", "audit_no_delete"):
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(*statement)
    connection.close()


def verify(fleet: FleetDir) -> int:
    with fleet.open_store() as store:
        return chain.verify(fleet, store)[0]


def other_value(column: str) -> st.SearchStrategy[Any]:
    if column in NUMBERS:
        return st.integers(-(2**62), 2**62)
    if column in HASHES:
        return st.binary(min_size=32, max_size=32)
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=40)
@given(data=st.data())
def test_any_other_value_in_any_field_of_any_entry_is_found(
    whole: FleetDir, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    column = data.draw(st.sampled_from(COLUMNS))
    sequence = data.draw(st.integers(1, ENTRIES))
    value = data.draw(other_value(column))
    fleet = copied(whole, tmp_path_factory.getbasetemp())
    with fleet.open_store() as store:
        entry = store.audit.get(sequence)
    if getattr(entry, column) == value or (column == "sequence" and 1 <= value <= ENTRIES):
        return
    altered(fleet, (f"UPDATE audit SET {column} = ? WHERE sequence = ?", (value, sequence)))
    with pytest.raises(VerificationError, match=r"[Ee]ntry \d+|ends with entry"):
        verify(fleet)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("sequence", [1, 6, ENTRIES])
def test_every_field_of_the_first_a_middle_and_the_last_entry_is_bound(
    copy: FleetDir, column: str, sequence: int
) -> None:
    value: Any = 10**9 if column in NUMBERS else bytes(range(32)) if column in HASHES else "another"
    altered(copy, (f"UPDATE audit SET {column} = ? WHERE sequence = ?", (value, sequence)))
    with pytest.raises(VerificationError):
        verify(copy)


@pytest.mark.parametrize("sequence", range(1, ENTRIES + 1))
def test_an_entry_that_was_altered_and_hashed_anew_is_found_by_what_comes_behind_it(
    copy: FleetDir, sequence: int
) -> None:
    with copy.open_store() as store:
        entry = store.audit.get(sequence)
    assert entry is not None
    fields = [getattr(entry, name) for name in COLUMNS[:-1]]
    fields[COLUMNS.index("actor")] = "somebody else"
    altered(
        copy,
        (
            "UPDATE audit SET actor = 'somebody else', hash = ? WHERE sequence = ?",
            (entry_hash(*fields), sequence),
        ),
    )
    with pytest.raises(VerificationError, match=r"does not follow|not the one that was signed"):
        verify(copy)


@pytest.mark.parametrize("sequence", range(1, ENTRIES + 1))
def test_an_entry_that_is_taken_out_is_found_even_if_those_behind_it_move_up(
    copy: FleetDir, sequence: int
) -> None:
    altered(copy, ("DELETE FROM audit WHERE sequence = ?", (sequence,)))
    with pytest.raises(VerificationError):
        verify(copy)
    for behind in range(sequence + 1, ENTRIES + 1):
        with sqlite3.connect(copy.store_db) as connection:
            connection.execute("UPDATE audit SET sequence = ? WHERE sequence = ?", (behind - 1, behind))
        connection.close()
    with pytest.raises(VerificationError):
        verify(copy)


@given(places=st.permutations(range(1, ENTRIES + 1)))
@settings(max_examples=20)
def test_entries_in_another_order_are_found(
    whole: FleetDir, tmp_path_factory: pytest.TempPathFactory, places: list[int]
) -> None:
    fleet = copied(whole, tmp_path_factory.getbasetemp())
    altered(
        fleet,
        ("UPDATE audit SET sequence = sequence + 1000", ()),
        *(
            ("UPDATE audit SET sequence = ? WHERE sequence = ?", (place, 1001 + index))
            for index, place in enumerate(places)
        ),
    )
    if places == sorted(places):
        assert verify(fleet) == ENTRIES
    else:
        with pytest.raises(VerificationError):
            verify(fleet)


def test_an_entry_that_is_put_in_is_found(copy: FleetDir) -> None:
    for sequence in (0, -5, ENTRIES + 1, ENTRIES + 7):
        columns = ", ".join(COLUMNS[1:])
        row = f"INSERT INTO audit SELECT {sequence}, {columns} FROM audit WHERE sequence = 3"
        with sqlite3.connect(copy.store_db) as connection:
            connection.execute(row)
        connection.close()
        with pytest.raises(VerificationError):
            verify(copy)
        with sqlite3.connect(copy.store_db) as connection:
            connection.execute("DROP TRIGGER IF EXISTS audit_no_delete")
            connection.execute("DELETE FROM audit WHERE sequence = ?", (sequence,))
        connection.close()
    assert verify(copy) == ENTRIES


@pytest.mark.parametrize("kept", [0, 1, ENTRIES - 1])
def test_an_end_that_was_cut_off_is_found_and_so_is_what_was_written_in_its_place(
    copy: FleetDir, kept: int
) -> None:
    altered(copy, ("DELETE FROM audit WHERE sequence > ?", (kept,)))
    with pytest.raises(VerificationError, match="cut off"):
        verify(copy)
    with copy.open_store() as store:
        for number in range(2 * ENTRIES):
            store.audit.record(local_actor(), action="nothing.much", object=f"device:d{number}")
        with pytest.raises(VerificationError, match="not the one that was signed"):
            chain.verify(copy, store)
        # Nor does anybody get a signature for it by going on.
        with pytest.raises(VerificationError, match="has lost entry"):
            chain.keep_checkpoint(copy, store)


def test_what_was_altered_since_the_last_checkpoint_gets_no_new_one(copy: FleetDir) -> None:
    with copy.open_store() as store:
        store.audit.record(local_actor(), action="device.revoke", object="device:late")
    altered(copy, ("UPDATE audit SET object = 'device:other' WHERE sequence = ?", (ENTRIES + 1,)))
    with copy.open_store() as store, pytest.raises(VerificationError, match=f"Entry {ENTRIES + 1}"):
        chain.keep_checkpoint(copy, store)


def test_a_log_and_its_checkpoint_that_were_both_turned_back_are_found_with_a_copy_from_elsewhere(
    whole: FleetDir, copy: FleetDir
) -> None:
    with copy.open_store() as store:
        store.audit.record(local_actor(), action="device.revoke", object="device:late")
        elsewhere = chain.keep_checkpoint(copy, store)
        assert elsewhere is not None
        assert chain.verify(copy, store, [elsewhere])[0] == ENTRIES + 1
    altered(copy, ("DELETE FROM audit WHERE sequence > ?", (ENTRIES,)))
    shutil.copy(chain.checkpoint_file(whole), chain.checkpoint_file(copy))
    assert verify(copy) == ENTRIES
    with copy.open_store() as store, pytest.raises(VerificationError, match="cut off"):
        chain.verify(copy, store, chain.read_checkpoints(elsewhere.to_json()))


def test_a_checkpoint_that_is_not_the_fleets_own_or_was_taken_away_is_found(
    whole: FleetDir, copy: FleetDir, tmp_path: Path
) -> None:
    file = chain.checkpoint_file(copy)
    good = file.read_text()
    other = make_fleet(tmp_path / "other")
    with other.open_store() as store:
        for _ in range(ENTRIES):
            store.audit.record(local_actor(), action="a", object="b")
        chain.keep_checkpoint(other, store)
    for bad in (
        chain.checkpoint_file(other).read_text(),
        good.replace(f'"sequence": {ENTRIES}', f'"sequence": {ENTRIES - 1}'),
        good.replace('"sequence": ', '"sequence": -'),
        good.replace('"fleet": "garden"', '"fleet": "field"'),
        "{}",
        "",
        "null",
    ):
        file.write_text(bad)
        with pytest.raises(VerificationError):
            verify(copy)
    file.unlink()
    with pytest.raises(VerificationError, match="taken away"):
        verify(copy)


def test_the_hash_is_that_of_the_documents_example() -> None:
    """docs/spec/audit.md, section 1: computed by hand from its words."""
    import hashlib

    def field(raw: bytes) -> bytes:
        return len(raw).to_bytes(8, "big") + raw

    texts = ("ann", "device.revoke", "device:rose", "lost", '{"status":"active"}', '{"status":"revoked"}')
    expected = hashlib.sha256(
        field(b"umbel/1/audit")
        + field((1).to_bytes(8, "big"))
        + field((1_900_000_000_000).to_bytes(8, "big"))
        + b"".join(field(text.encode()) for text in texts)
        + field(bytes(32))
    ).digest()
    entry = Entry(1, 1_900_000_000_000, *texts, bytes(32), expected)
    assert list(chain.follow([entry])) == [(1, expected)]
