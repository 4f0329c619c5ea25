"""Law: a device's answer outlives a SuperLink that is away for a while, and is given up when nobody waits for it."""

from __future__ import annotations

import threading

import httpx
import pytest

from umbel.flower import _deliver


class Line:
    """A line that is down for the first few tries."""

    def __init__(self, down: int) -> None:
        self.down, self.tries = down, 0

    def send(self) -> None:
        self.tries += 1
        if self.tries <= self.down:
            raise httpx.ConnectError("down")


def test_an_answer_waits_for_a_superlink_that_was_restarted() -> None:
    line = Line(down=2)
    _deliver(line.send, threading.Event(), life_s=60)
    assert line.tries == 3


def test_an_answer_that_nobody_waits_for_any_more_is_given_up() -> None:
    line = Line(down=100)
    with pytest.raises(httpx.ConnectError):
        _deliver(line.send, threading.Event(), life_s=0)
    assert line.tries == 1


def test_a_device_that_is_stopped_does_not_wait() -> None:
    line, stop = Line(down=100), threading.Event()
    stop.set()
    with pytest.raises(httpx.ConnectError):
        _deliver(line.send, stop, life_s=60)
    assert line.tries == 1


def test_an_answer_that_is_not_wanted_is_not_repeated() -> None:
    class Refused(Line):
        def send(self) -> None:
            self.tries += 1
            request = httpx.Request("POST", "https://superlink")
            raise httpx.HTTPStatusError(
                "gone", request=request, response=httpx.Response(410, request=request)
            )

    line = Refused(down=0)
    with pytest.raises(httpx.HTTPStatusError):
        _deliver(line.send, threading.Event(), life_s=60)
    assert line.tries == 1
