"""Operators who keep a screen open: each has a stream that says when something changed, and then looks again.

They do what the console's own script does: one connection for the stream, another for the screen without what is
around it, and for the numbers of its charts. A fleet is never quiet, so a batch comes every second: a screen is told as often as the console tells it.
"""

from __future__ import annotations

import asyncio
import html
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ssl import SSLContext

import httpx

from console_world import PASSWORD
from umbel_proto.ids import DeviceId
from umbel_server.console.pulse import MAX_OF_ONE
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.batches import Arrival

SCREEN = re.compile(r'data-live="([^"]*)"[^>]*data-sign="([^"]*)"')
CHART = re.compile(r'data-chart="([^"]*)"')
AGAIN = {"HX-Request": "true", "X-Umbel-Refresh": "1"}
TIMEOUT_S = 60.0


@dataclass(slots=True)
class Seen:
    """What operators waited for.

    Args:
        refreshed_s: How long each look of an open screen took, seconds.
        opened_s: How long each page took that somebody opened meanwhile.
    """

    refreshed_s: list[float] = field(default_factory=list)
    opened_s: list[float] = field(default_factory=list)


def watch(
    url: str, trust: SSLContext, live: Sequence[str], pages: Sequence[str], *, operators: int, lasts_s: float, begun: threading.Event
) -> Seen:  # fmt: skip
    """Let operators watch for a while, and one more open a page every half second.

    Args:
        url: The console's.
        trust: Whom it is known by.
        live: The screens that operators keep open, in turn.
        pages: What the other one opens, in turn.
        operators: How many they are; each signs in.
        lasts_s: For how long they watch once all do.
        begun: Set when all do.
    """
    return asyncio.run(_watch(url, trust, live, pages, operators, lasts_s, begun))


async def _watch(
    url: str, trust: SSLContext, live: Sequence[str], pages: Sequence[str], operators: int, lasts_s: float, begun: threading.Event
) -> Seen:  # fmt: skip
    seen, there = Seen(), asyncio.Semaphore(0)

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=url, verify=trust, timeout=TIMEOUT_S)

    async def operator(number: int) -> None:
        async with client() as browser:
            await _sign_in(browser, f"ann-{number // MAX_OF_ONE}")
            path = live[number % len(live)]
            about, sign = _screen((await browser.get(path)).text, path)
            where = f"/live?about={about}&seen={sign}"
            async with browser.stream("GET", where, headers={"accept": "text/event-stream"}) as stream:
                there.release()
                async for line in stream.aiter_lines():
                    if line == "event: changed":
                        took_s, text = await _timed(browser, path, AGAIN)
                        seen.refreshed_s.append(took_s)
                        for chart in CHART.findall(text):
                            await _timed(browser, html.unescape(chart), {})

    async def visitor() -> None:
        async with client() as browser:
            await _sign_in(browser)
            number = 0
            while True:
                took_s, _ = await _timed(browser, pages[number % len(pages)], {})
                seen.opened_s.append(took_s)
                number += 1
                await asyncio.sleep(0.5)

    async with asyncio.TaskGroup() as group:
        people = [group.create_task(operator(each)) for each in range(operators)]
        for _ in people:
            await there.acquire()
        people.append(group.create_task(visitor()))
        await asyncio.sleep(lasts_s / 4)  # All were told of the same change; they come apart.
        seen.refreshed_s.clear()
        seen.opened_s.clear()
        begun.set()
        await asyncio.sleep(lasts_s)
        found = Seen(list(seen.refreshed_s), list(seen.opened_s))
        for each in people:
            each.cancel()
    return found


async def _sign_in(browser: httpx.AsyncClient, name: str = "ann") -> None:
    answer = await browser.post("/sign-in", data={"name": name, "password": PASSWORD, "next": "/"})
    if answer.status_code != httpx.codes.SEE_OTHER:
        raise RuntimeError(f"{name} could not sign in")


async def _timed(browser: httpx.AsyncClient, path: str, headers: dict[str, str]) -> tuple[float, str]:
    begin = time.perf_counter()
    answer = await browser.get(path, headers=headers)
    if answer.status_code != httpx.codes.OK:
        raise RuntimeError(f"{path} is not shown: {answer.status_code}")
    return time.perf_counter() - begin, answer.text


def _screen(text: str, path: str) -> tuple[str, str]:
    found = SCREEN.search(text)
    if found is None:
        raise RuntimeError(f"{path} does not look again by itself")
    return found[1], found[2]


def arrive(fleet: FleetDir, device: DeviceId, stop: threading.Event) -> None:
    """Let a batch come every second."""
    with fleet.open_store() as store:
        while not stop.wait(1.0):
            sealed = Arrival(secrets.token_bytes(16), "key", bytes(90), bytes(600), int(time.time()))
            store.batches.append(device, [sealed])
