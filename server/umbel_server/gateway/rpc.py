"""From methods that raise umbel's errors to gRPC services that answer with a status and a sentence."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    StorageError,
    TokenError,
    UmbelError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from umbel_server.ca.messages import AuthorityDownError
from umbel_server.gateway.allowance import TooOftenError
from umbel_server.services.logs import CallFacts, current_call
from umbel_server.services.metrics import meters
from umbel_server.store.admission import QuotaError, WaitingError
from umbel_server.store.database import DiskFullError

RETRY_AFTER = "umbel-retry-after-s"
"""Trailing metadata of a refusal that passes: in how many seconds to try again."""
PENDING = "umbel-pending"
"""Trailing metadata of a refusal because an operator is to approve first: what they call what waits."""

_Message = TypeVar("_Message", bound=Message)

log = logging.getLogger(__name__)


class NotFoundError(RefusedError):
    """There is nothing of that name here."""


class BusyError(UnavailableError):
    """There is no room for this call now."""


# The first that fits.
_STATUS: tuple[tuple[type[UmbelError], grpc.StatusCode], ...] = (
    (TokenError, grpc.StatusCode.UNAUTHENTICATED),
    (CertificateError, grpc.StatusCode.UNAUTHENTICATED),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (VerificationError, grpc.StatusCode.INVALID_ARGUMENT),
)
# What passes, in words that are meant for the device.
_LATER: tuple[tuple[type[UmbelError], grpc.StatusCode, int], ...] = (
    (WaitingError, grpc.StatusCode.UNAVAILABLE, 5),
    (QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED, 60),
    (TooOftenError, grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
)
# What happens on our side: the sentence names our files, so devices get another.
_OURS: tuple[tuple[type[Exception], grpc.StatusCode, int, str], ...] = (
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED, 5, "The gateway is busy: try again in a few seconds."),
    (
        DiskFullError,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        60,
        "The gateway's disk is full, nothing of this call was kept: send it again later.",
    ),
    (
        AuthorityDownError,
        grpc.StatusCode.UNAVAILABLE,
        30,
        "The fleet's authority does not answer, and nobody is let in or renewed meanwhile: try again later.",
    ),
    (
        UnavailableError,
        grpc.StatusCode.UNAVAILABLE,
        5,
        "The gateway's store is busy, nothing of this call was kept: send it again.",
    ),
    (
        StorageError,
        grpc.StatusCode.UNAVAILABLE,
        60,
        "The gateway's store fails, nothing of this call was kept: send it again later.",
    ),
    (
        Exception,
        grpc.StatusCode.INTERNAL,
        60,
        "The gateway failed, and its log says how: tell the fleet's operator.",
    ),
)

Call = grpc.ServicerContext
Method = Callable[[Any, Call], Any]
"""Takes a request message; returns a reply message or, if the method streams, an iterator of them."""


def serve_on(server: grpc.Server, descriptor: ServiceDescriptor, methods: Mapping[str, Method]) -> None:
    """Let a server answer every method of a service's description; before it starts.

    Args:
        server: The server.
        descriptor: The service, as compiled from its .proto file.
        methods: Its methods by name; each may raise umbel's errors.

    Raises:
        ValueError: A method is missing or is one too many: a bug here.
    """
    if set(methods) != set(descriptor.methods_by_name):
        raise ValueError(f"{descriptor.full_name} has the methods {sorted(descriptor.methods_by_name)}.")
    handlers = {method.name: _handler(method, methods[method.name]) for method in descriptor.methods}
    # Of a generic handler gRPC asks for each call whether it knows the method; these it finds by themselves.
    server.add_registered_method_handlers(descriptor.full_name, handlers)


def _handler(method: MethodDescriptor, behavior: Method) -> grpc.RpcMethodHandler[Any, Any]:
    # Messages are parsed here: gRPC would write a traceback into the log for whatever bytes a stranger sends.
    kind = GetMessageClass(method.input_type)
    serialize = GetMessageClass(method.output_type).SerializeToString

    def answer(data: bytes, call: Call) -> Any:
        with _Answering(method.name, call):
            return behavior(parsed(kind, data), call)

    def stream(data: bytes, call: Call) -> Iterator[Any]:
        with _Answering(method.name, call):
            yield from behavior(parsed(kind, data), call)

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, response_serializer=serialize)
    return grpc.unary_unary_rpc_method_handler(answer, response_serializer=serialize)


def parsed(kind: type[_Message], data: bytes) -> _Message:
    """Return a call's message.

    Raises:
        UsageError: The bytes are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise UsageError("The call's message is malformed.") from exc


class _Answering:
    """One call while it is answered: it has an id in the log, it is counted and timed, and what fails gets a status."""

    __slots__ = ("_begin_s", "_call", "_method")

    def __init__(self, method: str, call: Call) -> None:
        self._method = method
        self._call = call

    def __enter__(self) -> None:
        self._begin_s = time.perf_counter()
        current_call.set(CallFacts(self._method))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        code = "OK"
        try:
            if isinstance(exc, Exception):
                code = "UNKNOWN"  # What stays where a bug keeps this from saying more.
                _refuse(exc, self._call, self._method)
            elif exc is not None:
                code = "CANCELLED"  # The caller left a stream.
        finally:
            if code == "UNKNOWN":
                status = self._call.code()  # type: ignore[attr-defined]  # Missing in the stubs.
                code = status.name if status is not None else code
            meters().answered(self._method, code, time.perf_counter() - self._begin_s)
            current_call.set(None)


def _refuse(exc: Exception, call: Call, method: str) -> NoReturn:
    for kind, code in _STATUS:
        if isinstance(exc, kind):
            log.info("refused %s from %s: %s", method, call.peer(), exc)
            call.abort(code, str(exc))
    for later, code, retry_after_s in _LATER:
        if isinstance(exc, later):
            log.info("put off %s from %s: %s", method, call.peer(), exc)
            waits = ((PENDING, exc.application),) if isinstance(exc, WaitingError) else ()
            wait_s = math.ceil(exc.retry_after_s) if isinstance(exc, TooOftenError) else retry_after_s
            call.set_trailing_metadata(((RETRY_AFTER, str(wait_s)), *waits))
            call.abort(code, str(exc))
    for ours, code, retry_after_s, sentence in _OURS:
        if isinstance(exc, ours):
            if isinstance(exc, StorageError | UnavailableError) and not isinstance(exc, BusyError):
                meters().failed(ours.__name__)
            expected = isinstance(exc, UmbelError)
            log.log(
                logging.WARNING if expected else logging.ERROR,
                "%s failed: %s",
                method,
                exc,
                exc_info=None if expected else exc,
            )
            call.set_trailing_metadata(((RETRY_AFTER, str(retry_after_s)),))
            call.abort(code, sentence)
    raise exc
