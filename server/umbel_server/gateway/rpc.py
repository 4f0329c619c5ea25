"""From methods that raise umbel's errors to gRPC services that answer with a status and a sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
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
from umbel_server.store.database import DiskFullError

RETRY_AFTER = "umbel-retry-after-s"
"""Trailing metadata of a refusal that passes: in how many seconds to try again."""

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


def service(descriptor: ServiceDescriptor, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
    """Return a service that answers every method of its description.

    Args:
        descriptor: The service, as compiled from its .proto file.
        methods: Its methods by name; each may raise umbel's errors.

    Raises:
        ValueError: A method is missing or is one too many: a bug here.
    """
    if set(methods) != set(descriptor.methods_by_name):
        raise ValueError(f"{descriptor.full_name} has the methods {sorted(descriptor.methods_by_name)}.")
    handlers = {method.name: _handler(method, methods[method.name]) for method in descriptor.methods}
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def _handler(method: MethodDescriptor, behavior: Method) -> grpc.RpcMethodHandler[Any, Any]:
    parse = GetMessageClass(method.input_type).FromString
    serialize = GetMessageClass(method.output_type).SerializeToString

    def answer(request: Message, call: Call) -> Any:
        try:
            return behavior(request, call)
        except Exception as exc:
            _refuse(exc, call, method.name)

    def stream(request: Message, call: Call) -> Iterator[Any]:
        try:
            yield from behavior(request, call)
        except Exception as exc:
            _refuse(exc, call, method.name)

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(
            stream, request_deserializer=parse, response_serializer=serialize
        )
    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=parse, response_serializer=serialize
    )


def _refuse(exc: Exception, call: Call, method: str) -> NoReturn:
    for kind, code in _STATUS:
        if isinstance(exc, kind):
            log.info("refused %s from %s: %s", method, call.peer(), exc)
            call.abort(code, str(exc))
    for ours, code, retry_after_s, sentence in _OURS:
        if isinstance(exc, ours):
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
