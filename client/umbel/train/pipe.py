"""What a device and the process that trains for it say to each other: frames over a socket, arrays as they are.

A frame is the length of its head, the head, and the bytes of each array that the head names. Both sides are one
version of umbel on one machine: nothing here is for strangers, and yet nothing that comes is believed unseen.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_HEAD_BYTES = 1 << 20
FORM = 1
"""Version of what the two processes say to each other. An update of umbel may come between their starts."""

FROZEN = "frozen."
"""What the names of frozen parameters begin with in a frame."""

EVERY_S = 1.0
"""How often whoever waits looks around."""

_LENGTH = struct.Struct("<I")

Arrays = dict[str, NDArray[Any]]


class PipeError(Exception):
    """The other side is gone, or says what nobody understands."""


class Pipe:
    """One end of a connected stream.

    Args:
        fd: Its file descriptor; whoever opened it closes it.
        watch: Called before each waiting and every second of it; what it raises ends the waiting.
    """

    def __init__(self, fd: int, watch: Callable[[], object] | None = None) -> None:
        os.set_blocking(fd, False)
        self._fd, self._watch = fd, watch
        self._poll = select.poll()

    def send(self, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Send a frame.

        Args:
            head: What JSON can say.
            arrays: Numbers, by name.

        Raises:
            PipeError: The other side is gone.
        """
        given = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
        forms = {name: [array.dtype.str, list(array.shape)] for name, array in given.items()}
        text = json.dumps([head, forms]).encode()
        self._write(memoryview(_LENGTH.pack(len(text)) + text))
        for array in given.values():
            self._write(array.reshape(-1).view(np.uint8).data)

    def receive(self, most: int) -> tuple[dict[str, Any], Arrays]:
        """Return the next frame's head and arrays.

        Args:
            most: Bytes that its arrays may have together.

        Raises:
            PipeError: The other side is gone, or this is no frame, or too large a one.
        """
        start = bytearray(_LENGTH.size)
        self._read(memoryview(start))
        (length,) = _LENGTH.unpack(start)
        if length > MAX_HEAD_BYTES:
            raise PipeError("The head of a frame is too long.")
        text = bytearray(length)
        self._read(memoryview(text))
        try:
            head, forms = json.loads(text)
            planned = {name: _form(*form) for name, form in dict(forms).items()}
            head = dict(head)
        except (ValueError, TypeError) as exc:
            raise PipeError("This is no frame.") from exc
        if sum(dtype.itemsize * math.prod(shape) for dtype, shape in planned.values()) > most:
            raise PipeError("A frame is larger than what was asked for.")
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in planned.items()}
        for array in arrays.values():
            self._read(array.reshape(-1).view(np.uint8).data)
        return head, arrays

    def arrives(self, within_s: float) -> bool:
        """Return whether something is there to receive, be it the news that the other side is gone."""
        self._poll.register(self._fd, select.POLLIN)
        return bool(self._poll.poll(1e3 * within_s))

    def _write(self, view: memoryview) -> None:
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except (BrokenPipeError, ConnectionResetError) as exc:
                raise PipeError("The other side is gone.") from exc

    def _read(self, view: memoryview) -> None:
        while view:
            try:
                got = os.readv(self._fd, [view])
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except ConnectionResetError:
                got = 0
            if not got:
                raise PipeError("The other side is gone.")
            view = view[got:]

    def _wait(self, event: int) -> None:
        self._poll.register(self._fd, event)
        while True:
            if self._watch is not None:
                self._watch()
            if self._poll.poll(1e3 * EVERY_S):
                return


def _form(dtype: str, shape: list[int]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    kind = np.dtype(dtype)
    if kind.kind not in "biuf" or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("not an array of numbers")
    return kind, tuple(shape)
