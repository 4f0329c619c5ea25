"""Accounts, tokens, sessions, kept answers and the audit log, in a SQLite file and in PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from service_fleet import ManualClock
from umbel_proto.errors import RefusedError, StorageError, UsageError
from umbel_server.access.actor import Actor, Role, local_actor
from umbel_server.access.api_token import PATTERN, looks_like_token, new_token
from umbel_server.access.chain import follow
from umbel_server.access.passwords import hash_password, outdated, password_matches
from umbel_server.access.permissions import HELD, Permission, parse_roles, parse_scopes
from umbel_server.access.sign_in import sign_in
from umbel_server.store.api_tokens import SignInError
from umbel_server.store.audit import Sought
from umbel_server.store.replies import ABANDONED_S, InProgressError, OtherRequestError, Reply
from umbel_server.store.sessions import IDLE_S, LIFE_S
from umbel_server.store.store import Store, open_store

ANN = Actor("ann", frozenset({Role.ADMIN}))
PASSWORD = "correct horse battery"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        yield opened


class TestTheAuditLog:
    def test_writers_at_once_make_one_chain(self, place: Path | URL) -> None:
        writers, each = 4, 15
        start = threading.Barrier(writers)

        def write(number: int) -> None:
            # A store of its own, as another process has: no lock of this process is between them.
            with open_store(place) as own:
                start.wait()
                for turn in range(each):
                    own.audit.record(ANN, action="device.revoke", object=f"device:{number}-{turn}")

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))
        with open_store(place) as store:
            entries = list(store.audit.all())
        assert [sequence for sequence, _ in follow(entries)] == list(range(1, writers * each + 1))
        assert len({entry.object for entry in entries}) == writers * each

    def test_an_entry_is_kept_with_its_change_or_not_at_all(self, store: Store) -> None:
        def fail() -> None:
            with store.database.write() as connection:
                store.audit.append(connection, ANN, action="device.revoke", object="device:rose")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert store.audit.newest() is None

    @pytest.mark.parametrize("statement", ["UPDATE audit SET reason = 'other'", "DELETE FROM audit"])
    def test_the_database_itself_refuses_to_change_an_entry(self, store: Store, statement: str) -> None:
        entry = store.audit.record(ANN, action="device.revoke", object="device:rose")
        with pytest.raises((DBAPIError, StorageError)), store.database.write() as connection:
            connection.exec_driver_sql(statement)
        assert store.audit.newest() == entry

    def test_entries_are_found_by_who_what_whereto_and_when(self, store: Store, clock: ManualClock) -> None:
        bob = Actor("bob", frozenset())
        for actor, action, what in (
            (ANN, "device.revoke", "device:rose"),
            (bob, "device.quarantine", "device:rose"),
            (bob, "devices.count", "fleet:garden"),
        ):
            store.audit.record(actor, action=action, object=what)
            clock.advance(10)

        def found(**sought: object) -> list[int]:
            return [entry.sequence for entry in store.audit.latest(Sought(**sought), limit=9)]  # type: ignore[arg-type]

        assert found() == [3, 2, 1]
        assert found(actor="bob") == [3, 2]
        assert found(action="device") == [2, 1]
        assert found(action="device.revoke") == [1]
        assert found(action="dev%") == []
        assert found(object="device:rose") == [2, 1]
        assert found(since_s=clock() - 25) == [3, 2]
        assert found(until_s=clock() - 10) == [2, 1]
        assert found(since_s=clock() - 20, until_s=clock() - 10) == [2]
        assert [entry.sequence for entry in store.audit.latest(Sought(), limit=1, before=3)] == [2]

    @pytest.mark.parametrize("reason", ["x" * 2001, "a\0b", "\ud800"])
    def test_what_no_database_keeps_is_refused_in_a_sentence(self, store: Store, reason: str) -> None:
        with pytest.raises(UsageError, match="The reason"):
            store.audit.record(ANN, action="device.revoke", object="device:rose", reason=reason)

    def test_what_was_signed_comes_back_as_it_was(self, store: Store) -> None:
        written = store.audit.record(
            ANN,
            action="a.b",
            object="ü:'\"",
            reason="日本\n\t",
            before={"b": 1.5, "a": [None, True]},
            after="é",
        )
        assert store.audit.newest() == written
        assert written.before == '{"a":[null,true],"b":1.5}'


class TestAccounts:
    def test_a_change_is_on_record_without_the_password(self, store: Store) -> None:
        kept = hash_password(PASSWORD)
        store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}), password=kept, reason="new here")
        store.accounts.set_roles(ANN, "bob", frozenset({Role.OPERATOR}))
        store.accounts.set_password(ANN, "bob", hash_password(PASSWORD))
        store.accounts.set_active(ANN, "bob", False)
        entries = list(store.audit.all())
        assert [entry.action for entry in entries] == [
            "user.add",
            "user.role",
            "user.password",
            "user.disable",
        ]
        assert entries[1].before != entries[1].after
        assert "argon2" not in repr(entries)

    def test_a_name_is_given_out_once(self, store: Store) -> None:
        store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}))
        with pytest.raises(UsageError, match="already a user bob"):
            store.accounts.add(ANN, "bob", roles=frozenset({Role.ADMIN}))
        with pytest.raises(UsageError, match="not a name"):
            store.accounts.add(ANN, "local:bob", roles=frozenset({Role.ADMIN}))

    def test_who_is_somebody_elsewhere_has_one_account_here(self, store: Store) -> None:
        made = store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}), subject="https://id.example 7")
        assert store.accounts.of_subject("https://id.example 7") == made
        assert store.accounts.of_subject("https://id.example 8") is None
        with pytest.raises(UsageError):
            store.accounts.add(ANN, "bob2", roles=frozenset({Role.VIEWER}), subject="https://id.example 7")

    def test_a_password_that_was_kept_with_old_parameters_is_kept_anew_at_the_next_sign_in(
        self, store: Store
    ) -> None:
        from argon2 import PasswordHasher

        old = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
        store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}), password=old)
        with pytest.raises(SignInError):
            sign_in(store.accounts, "bob", "wrong")
        assert store.accounts.attempt("bob").password == old
        sign_in(store.accounts, "bob", PASSWORD)
        kept = store.accounts.attempt("bob").password
        assert kept is not None
        assert kept != old
        assert not outdated(kept)
        assert password_matches(kept, PASSWORD)

    def test_waiting_doubles_up_to_a_quarter_of_an_hour(self, store: Store, clock: ManualClock) -> None:
        store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}), password=hash_password(PASSWORD))
        for _ in range(4):
            store.accounts.failed("bob")
            assert not store.accounts.attempt("bob").waits
        for wait_s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900):
            store.accounts.failed("bob")
            clock.advance(wait_s - 0.5)
            assert store.accounts.attempt("bob").waits
            clock.advance(0.5)
            assert not store.accounts.attempt("bob").waits


class TestTokens:
    def test_a_token_is_known_by_its_form(self) -> None:
        token = new_token()
        assert PATTERN.fullmatch(token)
        assert looks_like_token(token)
        for place in range(len(token)):
            other = "0" if token[place] != "0" else "1"
            assert not looks_like_token(token[:place] + other + token[place + 1 :])
        assert len({new_token() for _ in range(100)}) == 100

    def test_the_store_finds_it_only_while_it_is_in_force(self, store: Store, clock: ManualClock) -> None:
        store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}))
        text, made = store.api_tokens.create(ANN, "bob", scopes=HELD[Role.VIEWER], valid_s=100)
        bearer = store.api_tokens.bearer(text)
        assert (bearer.account.name, bearer.token.id) == ("bob", made.id)
        clock.advance(99)
        assert store.api_tokens.bearer(text).token.used_s is not None
        clock.advance(1)
        with pytest.raises(SignInError):
            store.api_tokens.bearer(text)
        with pytest.raises(SignInError):
            store.api_tokens.bearer(new_token())

    def test_nobody_gets_a_token_for_more_than_the_account_may(self, store: Store) -> None:
        store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}))
        with pytest.raises(RefusedError, match="users:write"):
            store.api_tokens.create(ANN, "bob", scopes=frozenset({Permission.USERS_WRITE}), valid_s=100)
        store.accounts.set_active(ANN, "bob", False)
        with pytest.raises(RefusedError, match="disabled"):
            store.api_tokens.create(ANN, "bob", scopes=frozenset({Permission.DEVICES_READ}), valid_s=100)

    @pytest.mark.parametrize("end", ["disable", "password", "revoke"])
    def test_what_ends_a_token_ends_it_for_good(self, store: Store, end: str) -> None:
        store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}))
        text, made = store.api_tokens.create(ANN, "bob", scopes=HELD[Role.VIEWER], valid_s=100)
        if end == "disable":
            store.accounts.set_active(ANN, "bob", False)
            store.accounts.set_active(ANN, "bob", True)
        elif end == "password":
            store.accounts.set_password(ANN, "bob", hash_password(PASSWORD))
        else:
            store.api_tokens.revoke(ANN, made.id, reason="leaked")
        with pytest.raises(SignInError):
            store.api_tokens.bearer(text)
        after = store.api_tokens.get(made.id)
        assert after is not None
        assert after.revoked_s is not None

    def test_scopes_and_roles_are_read_by_their_names(self) -> None:
        assert parse_scopes(["devices"]) == {Permission.DEVICES_READ, Permission.DEVICES_WRITE}
        assert all(scope.endswith(":read") for scope in parse_scopes(["read"]))
        assert parse_roles(["ci", "viewer"]) == {Role.CI, Role.VIEWER}
        for wrong in (["root"], [], ["devices:reed"]):
            with pytest.raises(UsageError):
                parse_scopes(wrong)
            with pytest.raises(UsageError):
                parse_roles(wrong)

    def test_only_admins_change_accounts_and_pipelines_neither_approve_nor_release(self) -> None:
        for role, permissions in HELD.items():
            assert (Permission.USERS_WRITE in permissions) == (role is Role.ADMIN)
        assert not HELD[Role.CI] & {Permission.REGISTRY_APPROVE, Permission.RELEASES_WRITE}


class TestSessions:
    def test_a_session_ends_after_a_day_or_an_idle_hour_or_when_it_is_closed(
        self, store: Store, clock: ManualClock
    ) -> None:
        bob = store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}))
        idle, busy, closed = (store.sessions.open(bob) for _ in range(3))
        assert store.sessions.find(closed) == bob
        store.sessions.close(closed)
        assert store.sessions.find(closed) is None
        for _ in range(int(LIFE_S // (IDLE_S / 2)) - 1):
            clock.advance(IDLE_S / 2)
            assert store.sessions.find(busy) == bob
        assert store.sessions.find(idle) is None
        clock.advance(IDLE_S / 2)
        assert store.sessions.find(busy) is None
        assert store.sessions.find("") is None
        assert store.sessions.find("\ud800") is None

    def test_a_disabled_account_is_signed_in_nowhere(self, store: Store) -> None:
        bob = store.accounts.add(ANN, "bob", roles=frozenset({Role.VIEWER}))
        secret = store.sessions.open(bob)
        store.accounts.set_active(ANN, "bob", False)
        assert store.sessions.find(secret) is None
        store.accounts.set_active(ANN, "bob", True)
        assert store.sessions.find(secret) is None


class TestKeptAnswers:
    def test_a_request_is_in_hand_once_and_may_be_taken_up_when_it_was_abandoned(
        self, store: Store, clock: ManualClock
    ) -> None:
        assert store.replies.begin("token:1", "k", b"a" * 32) is None
        with pytest.raises(InProgressError):
            store.replies.begin("token:1", "k", b"a" * 32)
        with pytest.raises(OtherRequestError):
            store.replies.begin("token:1", "k", b"b" * 32)
        assert store.replies.begin("token:2", "k", b"b" * 32) is None
        clock.advance(ABANDONED_S)
        assert store.replies.begin("token:1", "k", b"a" * 32) is None
        store.replies.finish("token:1", "k", Reply(201, b"sealed"))
        assert store.replies.begin("token:1", "k", b"a" * 32) == Reply(201, b"sealed")


def test_who_runs_a_command_is_named_by_the_system_and_holds_every_role() -> None:
    actor = local_actor()
    assert actor.local
    assert actor.roles == frozenset(Role)
    assert not ANN.local
