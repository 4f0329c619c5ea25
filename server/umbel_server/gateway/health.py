"""gRPC's health service, on both of the gateway's listeners.

It says whether this process takes calls, and nothing else, to whoever gets through the listener's TLS: devices of the
fleet on one, a load balancer on the other. ``Watch`` is not served: each watcher would hold one of the few calls that
may be under way at a time, for as long as it likes.

Source: the GRPC Health Checking Protocol, github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2 as pb  # type: ignore[import-untyped]

from umbel_proto.errors import UsageError
from umbel_server.gateway.rpc import Call, parsed


class Health:
    """Says whether this process takes calls."""

    def __init__(self) -> None:
        self.serving = False

    def check(self, data: bytes, call: Call) -> pb.HealthCheckResponse:
        """Answer for the whole process, which is the empty name."""
        try:
            request = parsed(pb.HealthCheckRequest, data)
        except UsageError as exc:
            call.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        if request.service:
            call.abort(grpc.StatusCode.NOT_FOUND, "Ask for the whole gateway, with an empty name.")
        kind = pb.HealthCheckResponse
        return kind(status=kind.SERVING if self.serving else kind.NOT_SERVING)

    def serve_on(self, server: grpc.Server) -> None:
        """Answer on a listener."""
        handler: grpc.RpcMethodHandler[bytes, pb.HealthCheckResponse] = grpc.unary_unary_rpc_method_handler(
            self.check, response_serializer=pb.HealthCheckResponse.SerializeToString
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})]
        )
