"""gRPC's health service, on both of the gateway's listeners.

It says whether this process takes calls, and nothing else, to whoever gets through the listener's TLS: devices of the
fleet on one, a load balancer on the other. ``Watch`` is not served: each watcher would hold one of the few calls that
may be under way at a time, for as long as it likes.

Source: the GRPC Health Checking Protocol, github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2 as pb  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2_grpc

from umbel_server.gateway.rpc import Call


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says whether this process takes calls."""

    def __init__(self) -> None:
        self.serving = False

    def Check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:  # noqa: N802
        """Answer for the whole process, which is the empty name."""
        if request.service:
            call.abort(grpc.StatusCode.NOT_FOUND, "Ask for the whole gateway, with an empty name.")
        kind = pb.HealthCheckResponse
        return kind(status=kind.SERVING if self.serving else kind.NOT_SERVING)

    def serve_on(self, server: grpc.Server) -> None:
        """Answer on a listener."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
