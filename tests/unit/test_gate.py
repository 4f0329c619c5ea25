"""The gate in front of the SuperLink: what it lets in on each listener, and how many at a time."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from umbel_proto.errors import UnavailableError
from umbel_server.gate import CONTROL_HEADER, MAX_BODY_BYTES, Gate, Receive, Scope, Send
from umbel_server.shut_out import EVERY_S, NODE_KEY_HEADER, ShutOut

SECRET = b"0123456789abcdef"
GOOD = [(CONTROL_HEADER.encode(), SECRET)]
Answer = tuple[int, bytes]
Headers = list[tuple[bytes, bytes]]


class Echo:
    """An application that answers with the request's body and notes how many requests it holds at a time.

    Args:
        held: While it is clear, requests stay inside.
    """

    def __init__(self, held: asyncio.Event | None = None) -> None:
        self.held = held
        self.entered = asyncio.Event()
        self.paths: list[str] = []
        self.inside = self.most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.set()
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        if self.held is not None:
            await self.held.wait()
        self.inside -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def gate(app: Echo, secret: bytes | None = None, turn: asyncio.Lock | None = None) -> Gate:
    return Gate(app, turn or asyncio.Lock(), secret)


def pieces(*parts: bytes) -> Receive:
    """A sender that has all of a body's parts ready."""
    left = list(parts)

    async def receive() -> Any:
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return receive


async def ask(
    door: Gate, path: str, *, headers: Headers | None = None, body: Receive | None = None
) -> Answer:
    status, content = 0, b""

    async def send(message: Any) -> None:
        nonlocal status, content
        status = message.get("status", status)
        content += message.get("body", b"")

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers or []}
    await door(scope, body or pieces(b"hello"), send)
    return status, content


def played(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scene()

    asyncio.run(bounded())


@pytest.mark.parametrize(
    ("path", "devices", "operators"),
    [
        ("/v1/fleet/pull-messages", 200, 200),
        ("/health", 200, 200),
        ("/v1/runtime/pull-task", 404, 200),
        ("/v1/control/start-run", 404, 401),
        ("/v1/fleet", 404, 404),
        ("/v1/fleetish/x", 404, 404),
        ("/health/x", 404, 404),
        ("/docs", 404, 404),
        ("/openapi.json", 404, 404),
        ("/", 404, 404),
        ("//v1/fleet/x", 404, 404),
    ],
)
def test_each_listener_lets_in_its_own_paths_only(path: str, devices: int, operators: int) -> None:
    async def scene() -> None:
        for secret, expected in ((None, devices), (SECRET, operators)):
            app = Echo()
            status, body = await ask(gate(app, secret), path)
            assert (status, body) == (expected, b"hello" if expected == 200 else b"")
            assert app.paths == ([path] if expected == 200 else [])

    played(scene)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (GOOD, 200),
        ([], 401),
        ([(CONTROL_HEADER.encode(), b"")], 401),
        ([(CONTROL_HEADER.encode(), SECRET[:-1])], 401),
        ([(CONTROL_HEADER.encode(), SECRET + b"0")], 401),
        ([(CONTROL_HEADER.encode(), b"\xff" * 16)], 401),
        ([(b"authorization", SECRET)], 401),
    ],
)
def test_the_control_api_asks_for_the_secret(headers: Headers, status: int) -> None:
    async def scene() -> None:
        app = Echo()
        assert (await ask(gate(app, SECRET), "/v1/control/start-run", headers=headers))[0] == status
        assert len(app.paths) == (status == 200)

    played(scene)


def test_the_devices_listener_has_no_control_api_even_with_the_secret() -> None:
    async def scene() -> None:
        assert (await ask(gate(Echo()), "/v1/control/start-run", headers=GOOD))[0] == 404

    played(scene)


def test_a_body_arrives_whole_however_it_is_cut() -> None:
    async def scene() -> None:
        assert await ask(gate(Echo()), "/v1/fleet/x", body=pieces(b"he", b"", b"ll", b"o")) == (200, b"hello")

    played(scene)


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
def test_a_body_larger_than_any_of_flowers_is_refused_before_it_is_passed_on(extra: int, status: int) -> None:
    async def scene() -> None:
        app = Echo()
        half = bytes(MAX_BODY_BYTES // 2)
        assert (await ask(gate(app), "/v1/fleet/x", body=pieces(half, half, bytes(extra))))[0] == status
        assert len(app.paths) == (status == 200)

    played(scene)


def test_one_request_is_inside_at_a_time_over_both_listeners() -> None:
    async def scene() -> None:
        held, turn = asyncio.Event(), asyncio.Lock()
        app = Echo(held)
        doors = (gate(app, None, turn), gate(app, SECRET, turn))
        asked = [asyncio.create_task(ask(door, "/v1/fleet/x")) for door in doors * 3]
        await app.entered.wait()
        await turns_of_the_loop()
        assert (app.inside, len(app.paths)) == (1, 1)
        held.set()
        assert await asyncio.gather(*asked) == [(200, b"hello")] * 6
        assert app.most == 1

    played(scene)


def test_a_control_call_does_not_wait_for_its_turn() -> None:
    """Some of them stream for as long as a run takes."""

    async def scene() -> None:
        turn = asyncio.Lock()
        async with turn:
            door = gate(Echo(), SECRET, turn)
            assert (await ask(door, "/v1/control/stream-logs", headers=GOOD))[0] == 200

    played(scene)


def test_a_slow_sender_keeps_nobody_waiting() -> None:
    async def scene() -> None:
        app = Echo()
        door = gate(app)
        begun, rest = asyncio.Event(), asyncio.Event()

        async def slowly() -> Any:
            if not begun.is_set():
                begun.set()
                return {"type": "http.request", "body": b"he", "more_body": True}
            await rest.wait()
            return {"type": "http.request", "body": b"llo", "more_body": False}

        slow = asyncio.create_task(ask(door, "/v1/fleet/slow", body=slowly))
        await begun.wait()
        assert await ask(door, "/v1/fleet/quick") == (200, b"hello")
        assert app.paths == ["/v1/fleet/quick"]
        rest.set()
        assert await slow == (200, b"hello")

    played(scene)


def test_a_slow_reader_keeps_nobody_waiting() -> None:
    async def scene() -> None:
        door = gate(Echo())
        begun, rest = asyncio.Event(), asyncio.Event()

        async def slowly(message: Any) -> None:
            begun.set()
            await rest.wait()

        scope = {"type": "http", "method": "POST", "path": "/v1/fleet/slow", "headers": []}
        slow = asyncio.create_task(door(scope, pieces(b"hello"), slowly))
        await begun.wait()
        assert await ask(door, "/v1/fleet/quick") == (200, b"hello")
        rest.set()
        await slow

    played(scene)


def test_an_application_that_fails_gives_its_turn_back() -> None:
    class Failing(Echo):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/v1/fleet/bad":
                raise RuntimeError("a bug of Flower's")
            await super().__call__(scope, receive, send)

    async def scene() -> None:
        door = gate(Failing())
        with pytest.raises(RuntimeError):
            await ask(door, "/v1/fleet/bad")
        assert (await ask(door, "/v1/fleet/good"))[0] == 200

    played(scene)


async def turns_of_the_loop() -> None:
    """Let everything that can run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


def header_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """What Flower's node sends: base64 of its public key, PEM."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_node_that_is_shut_out_is_refused_within_seconds_and_others_are_not() -> None:
    lost, kept = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    refused: set[bytes] = set()
    now = [0.0]
    shut_out = ShutOut(lambda: refused, clock=lambda: now[0])
    devices = Gate(Echo(), asyncio.Lock(), None, shut_out)

    async def status(key: ec.EllipticCurvePrivateKey) -> int:
        answer = await ask(devices, "/v1/fleet/pull-messages", headers=[(NODE_KEY_HEADER, header_of(key))])
        return answer[0]

    async def scene() -> None:
        assert (await status(lost), await status(kept)) == (200, 200)
        refused.add(spki(lost))
        now[0] += EVERY_S
        assert (await status(lost), await status(kept)) == (403, 200)
        refused.clear()
        now[0] += EVERY_S
        assert await status(lost) == 200

    played(scene)


def test_a_store_that_does_not_answer_lets_nobody_back_in() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    answers: list[set[bytes] | None] = [{spki(key)}, None]
    now = [0.0]

    def keys() -> set[bytes]:
        answer = answers.pop(0)
        if answer is None:
            raise UnavailableError("The store is busy.")
        return answer

    shut_out = ShutOut(keys, clock=lambda: now[0])
    assert shut_out(header_of(key))
    now[0] += EVERY_S
    assert shut_out(header_of(key))
    assert answers == []


@pytest.mark.parametrize("header", [b"", b"nonsense", b"\xff\xfe", base64.b64encode(b"nonsense")])
def test_what_is_no_key_is_left_to_flower(header: bytes) -> None:
    assert not ShutOut(lambda: [spki(ec.generate_private_key(ec.SECP384R1()))])(header)
