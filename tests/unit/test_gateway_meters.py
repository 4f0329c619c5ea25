"""Calls are counted after they are answered, and each of them once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import REGISTRY

from umbel_server.services.metrics import meters


def _counted(method: str, code: str) -> float:
    return REGISTRY.get_sample_value("umbel_gateway_calls_total", {"method": method, "code": code}) or 0.0


def _timed_s(method: str) -> float:
    return REGISTRY.get_sample_value("umbel_gateway_call_seconds_sum", {"method": method}) or 0.0


def test_calls_of_many_threads_are_each_counted_once_though_several_count() -> None:
    ours = meters()

    def call(number: int) -> None:
        ours.answered("Many", "OK" if number % 4 else "NOT_FOUND", 0.25)
        ours.count_now()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(4000)))
    ours.count_now()
    until_s = time.monotonic() + 20
    while _counted("Many", "OK") + _counted("Many", "NOT_FOUND") < 4000 and time.monotonic() < until_s:
        time.sleep(0.01)  # What another thread has taken, it counts.
    assert (_counted("Many", "OK"), _counted("Many", "NOT_FOUND")) == (3000, 1000)
    assert _timed_s("Many") == 1000.0


def test_calls_are_counted_by_themselves_the_second_time_as_well_as_the_first() -> None:
    ours = meters()
    for number in (1, 2):
        ours.answered("Alone", "OK", 0.5)
        until_s = time.monotonic() + 20
        while _counted("Alone", "OK") < number and time.monotonic() < until_s:
            time.sleep(0.01)
        assert _counted("Alone", "OK") == number
