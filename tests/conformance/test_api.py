"""What the API promises: pages, answers given once, changes that do not collide, problems, and a record of it all."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api_world import ApiWorld, api_world
from service_fleet import make_fleet
from umbel_server.access import chain
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.passwords import hash_password
from umbel_server.access.permissions import HELD, Permission
from umbel_server.api.describe import description

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"  # Nobody's.


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiWorld]:
    with api_world(tmp_path_factory.mktemp("api")) as made:
        made.user("root", Role.ADMIN, password=hash_password(PASSWORD))
        yield made


@pytest.fixture(scope="module")
def root(world: ApiWorld) -> str:
    return world.token("root", HELD[Role.ADMIN])


def test_the_committed_description_is_that_of_the_api(world: ApiWorld, root: str) -> None:
    """If not: python -m umbel_server.api.describe > docs/reference/openapi.json."""
    described = description()
    assert (ROOT / "docs" / "reference" / "openapi.json").read_text() == described
    served = world.call(root, "GET", "/openapi.json").json()
    assert served == json.loads(described)
    assert served["openapi"].startswith("3.1")


def test_pages_show_everything_once_while_devices_come_in(world: ApiWorld, root: str) -> None:
    for number in range(0, 20, 2):
        world.device(f"page-{number:02d}")
    seen: list[str] = []
    cursor, more = None, 1
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = world.call(root, "GET", "/devices", params=params).json()
        seen += [each["id"] for each in page["items"]]
        # Some before the cursor, some behind it.
        world.device(f"page-{more:02d}")
        more += 2
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == sorted(set(seen))
    assert {f"page-{number:02d}" for number in range(0, 20, 2)} <= set(seen)


@pytest.mark.parametrize("cursor", ["x", "/w==", "AA==", "w6k", "é", "=" * 10, "zzzz" * 99])
@pytest.mark.parametrize("path", ["/devices", "/audit", "/users", "/runs"])
def test_what_is_no_cursor_is_refused(world: ApiWorld, root: str, path: str, cursor: str) -> None:
    answer = world.call(root, "GET", path, params={"cursor": cursor})
    # A cursor of another list may be one here: it then only names a place.
    assert answer.status_code in ((200, 422) if cursor == "zzzz" * 99 else (422,))


def test_a_request_sent_twice_is_done_once_and_answered_the_same(world: ApiWorld, root: str) -> None:
    asked = {"device": None, "uses": 3}
    headers = {"Idempotency-Key": "first"}
    before = _count(world, "enrollment.invite")
    answers = [world.call(root, "POST", "/enrollment/tokens", json=asked, headers=headers) for _ in range(3)]
    assert {(each.status_code, each.text) for each in answers} == {(201, answers[0].text)}
    assert _count(world, "enrollment.invite") == before + 1
    assert world.call(root, "POST", "/enrollment/tokens", json=asked).json() != answers[0].json()


def test_an_idempotency_key_with_another_request_is_refused(world: ApiWorld, root: str) -> None:
    headers = {"Idempotency-Key": "second"}
    world.call(root, "POST", "/enrollment/tokens", json={"uses": 1}, headers=headers)
    for path, asked in (("/enrollment/tokens", {"uses": 2}), ("/tokens", {"uses": 1})):
        answer = world.call(root, "POST", path, json=asked, headers=headers)
        assert answer.status_code == 422
        assert "another request" in answer.json()["detail"]


def test_a_request_that_failed_may_be_sent_again_under_its_key(world: ApiWorld, root: str) -> None:
    headers = {"Idempotency-Key": "third"}
    assert (
        world.call(
            root, "POST", "/devices/later/revoke", json={"reason": "lost"}, headers=headers
        ).status_code
        == 404
    )
    world.device("later")
    assert (
        world.call(
            root, "POST", "/devices/later/revoke", json={"reason": "lost"}, headers=headers
        ).status_code
        == 200
    )


def test_of_a_kept_answer_the_store_holds_no_secret(world: ApiWorld, root: str) -> None:
    headers = {"Idempotency-Key": "secret"}
    made = world.call(root, "POST", "/tokens", json={"scopes": ["devices:read"]}, headers=headers).json()
    with world.store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM replies").all()
        tokens = connection.exec_driver_sql("SELECT * FROM api_tokens").all()
    assert rows
    kept = repr(rows) + repr(tokens)
    assert made["token"] not in kept
    assert made["token"][6:40] not in kept
    again = world.call(root, "POST", "/tokens", json={"scopes": ["devices:read"]}, headers=headers).json()
    assert again == made
    # Another token of the same account has keys of its own.
    other = world.token("root", HELD[Role.ADMIN])
    assert (
        world.call(other, "POST", "/tokens", json={"scopes": ["devices:read"]}, headers=headers).json()
        != made
    )


def test_two_at_once_under_one_key_are_done_once(world: ApiWorld, root: str) -> None:
    before, start = _count(world, "enrollment.invite"), threading.Barrier(8)

    def send(_: int) -> int:
        start.wait()
        headers = {"Idempotency-Key": "race"}
        return world.call(root, "POST", "/enrollment/tokens", json={"uses": 9}, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(send, range(8)))
    assert set(codes) <= {201, 409}
    assert 201 in codes
    assert _count(world, "enrollment.invite") == before + 1


def test_answers_are_kept_for_a_day(world: ApiWorld) -> None:
    token = world.token("root", HELD[Role.ADMIN], valid_s=30 * 86400)
    headers = {"Idempotency-Key": "old"}
    first = world.call(token, "POST", "/enrollment/tokens", json={"uses": 4}, headers=headers).json()
    world.clock.advance(86399)
    assert world.call(token, "POST", "/enrollment/tokens", json={"uses": 4}, headers=headers).json() == first
    world.clock.advance(1)
    assert world.call(token, "POST", "/enrollment/tokens", json={"uses": 4}, headers=headers).json() != first


def test_of_two_operators_who_saw_the_same_only_the_first_changes_it(world: ApiWorld) -> None:
    root = world.token("root", HELD[Role.ADMIN])
    world.user("shared", Role.VIEWER)
    seen = world.call(root, "GET", "/users/shared").headers["etag"]
    change = {"roles": ["operator"], "reason": "promoted"}
    assert world.call(root, "PUT", "/users/shared/roles", json=change).status_code == 428
    first = world.call(root, "PUT", "/users/shared/roles", json=change, headers={"If-Match": seen})
    assert first.status_code == 200
    other = {"roles": ["ci"], "reason": "also promoted"}
    second = world.call(root, "PUT", "/users/shared/roles", json=other, headers={"If-Match": seen})
    assert second.status_code == 412
    again = world.call(
        root, "PUT", "/users/shared/roles", json=other, headers={"If-Match": first.headers["etag"]}
    )
    assert again.json()["roles"] == ["ci"]


def test_the_policy_changes_only_for_who_saw_it_and_the_reason_is_on_record(world: ApiWorld) -> None:
    root = world.token("root", HELD[Role.ADMIN])
    seen = world.call(root, "GET", "/policy")
    change = {"charging": True, "reason": "batteries wear out"}
    assert world.call(root, "PATCH", "/policy/training", json=change).status_code == 428
    done = world.call(
        root, "PATCH", "/policy/training", json=change, headers={"If-Match": seen.headers["etag"]}
    )
    assert done.json()["training"]["charging"] is True
    assert done.json()["version"] == seen.json()["version"] + 1
    assert world.fleet.policy().training.charging
    entry = world.call(root, "GET", "/audit", params={"action": "policy"}).json()["items"][0]
    assert (entry["actor"], entry["reason"]) == ("root", "batteries wear out")
    assert (entry["before"]["charging"], entry["after"]["charging"]) == (False, True)


def test_a_change_through_the_api_is_on_record_under_the_accounts_name(world: ApiWorld) -> None:
    world.user("olga", Role.OPERATOR)
    token = world.token("olga", HELD[Role.OPERATOR])
    world.device("lost")
    answer = world.call(token, "POST", "/devices/lost/revoke", json={"reason": "left on a train"})
    assert answer.json()["status"] == "revoked"
    found = world.call(token, "GET", "/audit", params={"object": "device:lost", "action": "device.revoke"})
    (entry,) = found.json()["items"]
    assert (entry["actor"], entry["reason"]) == ("olga", "left on a train")
    assert world.call(token, "GET", "/audit/verify").json()["whole"] is True


def test_a_request_that_is_too_large_is_refused_whether_it_says_so_or_not(world: ApiWorld) -> None:
    root = world.token("root", HELD[Role.ADMIN])
    for content in (b" " * 70_000, (b" " * 1000 for _ in range(70))):
        answer = world.call(root, "POST", "/enrollment/tokens", content=content)
        assert answer.status_code == 413
    assert world.call(root, "GET", "/me").status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"uses": 0}',
        b'{"uses": 1e400}',
        b'{"more": 1}',
        b'{"device": "../x"}',
    ],
)
def test_what_cannot_be_used_is_refused_with_where_and_never_repeated(
    world: ApiWorld, content: bytes
) -> None:
    root = world.token("root", HELD[Role.ADMIN])
    headers = {"Content-Type": "application/json"}
    answer = world.call(root, "POST", "/enrollment/tokens", content=content, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("body")


def test_bytes_that_are_no_text_are_refused(world: ApiWorld) -> None:
    root = world.token("root", HELD[Role.ADMIN])
    headers = {"Content-Type": "application/json"}
    answer = world.call(root, "POST", "/enrollment/tokens", content=b"\xff", headers=headers)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


def test_no_problem_repeats_a_password(world: ApiWorld) -> None:
    root = world.token("root", HELD[Role.ADMIN])
    secret = "zyxwvutsrqponm"  # Nobody's.
    for body in (
        {"name": "A B", "roles": ["viewer"], "password": secret},
        {"name": secret, "password": [secret]},
    ):
        for path in ("/users", "/sign-in"):
            assert secret not in world.call(root, "POST", path, json=body).text


def test_an_upload_that_is_no_package_is_refused(world: ApiWorld) -> None:
    root = world.token("root", HELD[Role.ADMIN])
    answer = world.call(root, "POST", "/releases", content=b"no package" * 100_000)
    assert answer.status_code == 422
    assert world.call(root, "GET", "/releases").json() == {"items": [], "next": None}


def test_every_answer_may_not_be_stored_and_has_an_id(world: ApiWorld, root: str) -> None:
    for path in ("/me", "/nowhere", "/devices"):
        headers = world.call(root, "GET", path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert len(headers["x-request-id"]) == 16
        assert "server" not in headers


def test_a_failure_of_ours_is_a_sentence_with_the_id_that_the_log_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with api_world(tmp_path) as broken:
        broken.user("root", Role.ADMIN)
        token = broken.token("root", HELD[Role.ADMIN])
        with broken.store.database.write() as connection:
            # A bug by another name: what no code of ours wrote.
            connection.exec_driver_sql("UPDATE accounts SET roles = 'not json' WHERE name = 'root'")
        answer = broken.call(token, "GET", "/me")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert "Traceback" not in answer.text
    assert any(answer.headers["x-request-id"] in record.getMessage() for record in caplog.records)


def test_its_process_answers_when_it_says_ready_and_stops_when_it_is_told_to(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    with fleet.open_store() as store:
        store.accounts.add(local_actor(), "root", roles=frozenset({Role.ADMIN}))
        token, _ = store.api_tokens.create(local_actor(), "root", scopes=HELD[Role.ADMIN], valid_s=600)
    command = [sys.executable, "-m", "umbel", "serve", "api", "--fleet", str(fleet.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        assert line[:2] == ["ready", "api"]
        trust = ssl.create_default_context(cafile=fleet.ca_pem)
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        assert (
            httpx.get(f"https://{line[2]}/api/v1/health", verify=trust, headers=headers).json()["status"]
            == "ok"
        )
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 5
        assert "cannot listen" in second.stderr
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert chain.checkpoint_file(fleet).exists()


class TestSigningIn:
    def test_a_name_and_its_password_give_a_token_for_half_a_day(self, world: ApiWorld) -> None:
        answer = world.client.post("/api/v1/sign-in", json={"name": "root", "password": PASSWORD})
        assert answer.status_code == 201
        token = answer.json()["token"]
        assert world.call(token, "GET", "/me").json()["roles"] == ["admin"]
        world.clock.advance(12 * 3600)
        assert world.call(token, "GET", "/me").status_code == 401

    def test_a_token_that_is_signed_in_for_may_what_was_asked_and_the_account_may(
        self, world: ApiWorld
    ) -> None:
        asked = {"name": "root", "password": PASSWORD, "scopes": ["devices:read"]}
        token = world.client.post("/api/v1/sign-in", json=asked).json()["token"]
        assert world.call(token, "GET", "/me").json()["permissions"] == ["devices:read"]
        world.user("looker", Role.VIEWER, password=hash_password(PASSWORD))
        more = {"name": "looker", "password": PASSWORD, "scopes": ["users:write"]}
        assert world.client.post("/api/v1/sign-in", json=more).status_code == 409

    def test_a_refusal_says_the_same_whatever_is_wrong(self, world: ApiWorld) -> None:
        world.user("program", Role.CI)
        world.user("left", Role.VIEWER, password=hash_password(PASSWORD))
        world.store.accounts.set_active(local_actor(), "left", False)
        tries = [
            ("root", "wrong"),
            ("nobody", PASSWORD),
            ("program", PASSWORD),
            ("program", ""),
            ("left", PASSWORD),
        ]
        answers = [
            world.client.post("/api/v1/sign-in", json={"name": name, "password": password})
            for name, password in tries
        ]
        assert {(each.status_code, each.text) for each in answers} == {(401, answers[0].text)}

    def test_who_guesses_waits_longer_and_longer_and_then_even_the_right_password_does(
        self, world: ApiWorld
    ) -> None:
        world.user("target", Role.VIEWER, password=hash_password(PASSWORD))

        def sign_in(password: str) -> int:
            return world.client.post(
                "/api/v1/sign-in", json={"name": "target", "password": password}
            ).status_code

        for _ in range(5):
            assert sign_in("wrong") == 401
        assert sign_in(PASSWORD) == 401
        world.clock.advance(1.0)
        assert sign_in("wrong") == 401
        world.clock.advance(1.9)
        assert sign_in(PASSWORD) == 401
        world.clock.advance(0.1)
        assert sign_in(PASSWORD) == 201
        assert sign_in("wrong") == 401
        assert sign_in(PASSWORD) == 201

    def test_an_address_that_fails_often_waits_and_tokens_that_are_in_force_do_not(
        self, tmp_path: Path
    ) -> None:
        with api_world(tmp_path, failures_per_minute=3) as busy:
            busy.user("root", Role.ADMIN)
            token = busy.token("root", {Permission.DEVICES_READ})
            codes = [busy.call("umbel_wrong", "GET", "/me").status_code for _ in range(5)]
            assert codes == [401, 401, 401, 429, 429]
            sign_in = busy.client.post("/api/v1/sign-in", json={"name": "root", "password": "wrong"})
            assert sign_in.status_code == 429
            assert int(sign_in.headers["retry-after"]) == 20
            assert busy.call(token, "GET", "/me").status_code == 200
            busy.clock.advance(20)
            assert busy.call("umbel_wrong", "GET", "/me").status_code == 401


def _count(world: ApiWorld, action: str) -> int:
    return sum(entry.action == action for entry in world.store.audit.all())
