"""Parts of an object that are made when they are first needed, once, whichever thread asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, overload


class Whole(Protocol):
    """What has parts, and a lock that one part may take while it makes another."""

    _making: threading.RLock


T = TypeVar("T")


class Part(Generic[T]):
    """As ``functools.cached_property``, of which two threads never have one each.

    Since Python 3.12 that one takes no lock: what a thread in the background made would take the place of what an
    application already holds.

    Args:
        make: Makes the part, given what it is one of.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, whole: None, _: object = None) -> Part[T]: ...
    @overload
    def __get__(self, whole: Whole, _: object = None) -> T: ...
    def __get__(self, whole: Whole | None, _: object = None) -> Part[T] | T:
        if whole is None:
            return self
        with whole._making:
            held: dict[str, T] = vars(whole)
            if self._name not in held:
                held[self._name] = self._make(whole)
            return held[self._name]
