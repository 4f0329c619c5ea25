"""gRPC methods of a server, called from any thread; each call has a connection to itself, made or kept from before."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from umbel._fleet.answer import MAX_MESSAGE_BYTES
from umbel._fleet.connection import Connection
from umbel._fleet.secured import Deadline
from umbel._fleet.status import CallError, Status, UntouchedError
from umbel._fork import Lock, renew_in_child
from umbel_proto.enrollment import check_address

CALL_TIMEOUT_S = 20.0


class Channel:
    """The way to a server: connects when first called, and keeps what it has.

    A forked process has no connection of its parent's.

    Args:
        address: ``host:port``.
        context: Whom to trust and what to show.

    Raises:
        UsageError: The address is none.
    """

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self._address = check_address(address, "gateway")
        self._context = context
        self._lock = Lock()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False
        renew_in_child(self._let_go)

    def _let_go(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()  # Of this process; its parent's goes on.
        self._idle, self._busy = [], set()

    def close(self) -> None:
        """End every connection, and every call on it."""
        with self._lock:
            self._closed = True
            idle, busy = self._idle, list(self._busy)
            self._idle = []
        for connection in idle:
            connection.close()
        for connection in busy:
            connection.cut()

    def call(self, path: str, request: bytes, timeout_s: float) -> Generator[bytes, None, None]:
        """Call a method; yield the messages that it answers.

        A call is made again, once, only if the server says that it has not touched it; whoever waits too long or loses
        the connection cannot know that.

        Raises:
            CallError: It failed.
        """
        deadline = Deadline(timeout_s)
        try:
            yield from self._call(path, request, deadline)
        except UntouchedError:
            yield from self._call(path, request, deadline)

    def _call(self, path: str, request: bytes, deadline: Deadline) -> Generator[bytes, None, None]:
        connection, is_new = self._take()
        try:
            if is_new:
                connection.open(deadline)
            yield from connection.call(path, request, deadline)
        except CallError as exc:
            if not exc.trailers:  # Else the server has ended the call itself, and the connection goes on.
                connection.close()
            raise
        except BaseException:
            connection.close()
            raise
        finally:
            with self._lock:
                self._busy.discard(connection)
                keep = connection.can_call and not self._closed
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _take(self) -> tuple[Connection, bool]:
        while True:
            with self._lock:
                if self._closed:
                    raise CallError(Status.CANCELLED)
                connection = self._idle.pop() if self._idle else None
                if connection is None:
                    connection = Connection(self._address, self._context)
                    self._busy.add(connection)
                    return connection, True
                self._busy.add(connection)
            if connection.wake():
                return connection, False
            with self._lock:
                self._busy.discard(connection)
            connection.close()


def stub(channel: Channel, service: ServiceDescriptor) -> Any:
    """Return a service's methods, by their names in the .proto file.

    Each takes a message and ``timeout``, seconds; it returns a message or, where the server streams, an iterator of
    them, and raises `CallError`.
    """
    return SimpleNamespace(**{method.name: _method(channel, method) for method in service.methods})


def _method(channel: Channel, method: MethodDescriptor) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse = GetMessageClass(method.output_type).FromString

    def stream(request: Message, timeout: float = CALL_TIMEOUT_S) -> Generator[Message, None, None]:
        raw = request.SerializeToString()
        if len(raw) > MAX_MESSAGE_BYTES:
            raise CallError(
                Status.RESOURCE_EXHAUSTED, f"the message has {len(raw)} bytes, more than {MAX_MESSAGE_BYTES}"
            )
        with contextlib.closing(channel.call(path, raw, timeout)) as answers:
            for answer in answers:
                yield _parsed(parse, answer)

    def unary(request: Message, timeout: float = CALL_TIMEOUT_S) -> Message:
        with contextlib.closing(stream(request, timeout)) as answers:
            answer = next(answers, None)
            if answer is None or next(answers, None) is not None:
                raise CallError(Status.INTERNAL, "it does not give one answer to one question")
            return answer

    return stream if method.server_streaming else unary


def _parsed(parse: Callable[[bytes], Message], answer: bytes) -> Message:
    try:
        return parse(answer)
    except DecodeError as exc:
        raise CallError(Status.INTERNAL, "its answer is no message of the kind asked for") from exc
