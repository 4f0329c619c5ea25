"""How often somebody may be sent to the OpenID provider: nobody knows yet who they are."""

from __future__ import annotations

import math
from http import HTTPStatus

from umbel_server.api.failures import Failures
from umbel_server.api.problems import Problem
from umbel_server.clock import Clock

OF_ADDRESS, OF_ALL = 30, 600
"""So many a minute from one address, and from all together."""


class Starts:
    """Who was sent lately, by address and in all: buckets that fill again over a minute.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._addresses, self._all = Failures(OF_ADDRESS, clock), Failures(OF_ALL, clock)

    def begin(self, address: str) -> None:
        """Count somebody who begins.

        Raises:
            Problem: Too many began lately, from there or in all.
        """
        wait_s = max(self._addresses.wait_s(address), self._all.wait_s(""))
        if wait_s:
            seconds = math.ceil(wait_s)
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"Too many sign in elsewhere: wait {seconds} s.",
                {"Retry-After": str(seconds)},
            )
        self._addresses.count(address)
        self._all.count("")
