"""The operator's side of a fleet's SuperLink: its Control API.

Written against Flower 1.41; see `umbel_server.superlink`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from umbel_proto.errors import UnavailableError
from umbel_server.gate import CONTROL_HEADER
from umbel_server.learning.link import NodeId
from umbel_server.superexec import LOOPBACK

if TYPE_CHECKING:
    from umbel_server.fleet.layout import FleetDir

BUNDLE = """\
# The Flower app of an umbel fleet: it names code that is installed on both sides and holds none.
[project]
name = "umbel-federation"
version = "1.0.0"
description = "Names umbel's installed server and client app"
license = "Apache-2.0"
dependencies = ["umbel[learn]"]

[tool.flwr.app]
publisher = "umbel"

[tool.flwr.app.components]
serverapp = "umbel_server.flower:app"
clientapp = "umbel.flower:app"

[tool.flwr.app.config]
fleet = ""
run = ""
"""
"""The bundle that StartRun sends; deploy/federation/pyproject.toml holds the same text."""


class _ControlSecret:
    """Adds the Control API's secret to a request."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[CONTROL_HEADER] = self._secret.decode("ascii")
        return call_next(context)


class Control:
    """The operator's side of a fleet's SuperLink: register nodes, start runs.

    Args:
        fleet: The fleet whose SuperLink to speak to.
    """

    def __init__(self, fleet: FleetDir) -> None:
        self._client = ControlHttpClient.from_server_address(
            f"{LOOPBACK}:{fleet.settings.ports.control}",
            False,
            fleet.ca_pem.read_bytes(),
            interceptors=[_ControlSecret(fleet.control_secret.read_bytes().strip())],
        )

    def register(self, device: str, node_key: bytes) -> NodeId:
        """Tell the SuperLink of a device's node key and return its node id.

        Args:
            device: The device's id, for the SuperLink's lists.
            node_key: SubjectPublicKeyInfo, DER, P-384.

        Raises:
            UnavailableError: The SuperLink does not answer.
        """
        pem = load_der_public_key(node_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        try:
            reply = self._client.RegisterNode(RegisterNodeRequest(public_key=pem, name=device))
        except httpx.HTTPStatusError as exc:
            found = [node for node in self._nodes() if node.public_key == pem]
            if found:  # Registered before, and the answer was lost.
                return NodeId(found[0].node_id)
            raise UnavailableError(
                f"The SuperLink refuses to register {device} (HTTP {exc.response.status_code})."
            ) from exc
        except httpx.TransportError as exc:
            raise UnavailableError(f"The SuperLink does not answer: {exc}.") from exc
        return NodeId(reply.node_id)

    def unregister(self, node: NodeId) -> None:
        """Let the SuperLink forget a node; one that it does not know is no error.

        Raises:
            UnavailableError: The SuperLink does not answer.
        """
        try:
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))
        except httpx.HTTPStatusError as exc:
            if any(each.node_id == node and each.status != "unregistered" for each in self._nodes()):
                raise UnavailableError(
                    f"The SuperLink refuses to forget node {node} (HTTP {exc.response.status_code})."
                ) from exc
        except httpx.TransportError as exc:
            raise UnavailableError(f"The SuperLink does not answer: {exc}.") from exc

    def online(self) -> set[NodeId]:
        """Return the nodes that are connected now.

        Raises:
            UnavailableError: The SuperLink does not answer.
        """
        return {NodeId(node.node_id) for node in self._nodes() if node.status == "online"}

    def start(self, fleet: FleetDir, run: str) -> int:
        """Start a run that is in the fleet's store, and return Flower's number for it.

        Raises:
            UnavailableError: The SuperLink does not answer, or refuses.
        """
        bundle, _ = build_fab_from_files({"pyproject.toml": BUNDLE.encode()})
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto({"fleet": str(fleet.path), "run": run}),
            federation="",
        )
        try:
            return int(self._client.StartRun(request).run_id)
        except httpx.HTTPStatusError as exc:
            raise UnavailableError(
                f"The SuperLink refuses to start a run (HTTP {exc.response.status_code}): its log says why."
            ) from exc
        except httpx.TransportError as exc:
            raise UnavailableError(
                f"The SuperLink does not answer ({exc}): umbel serve superlink has to run."
            ) from exc

    def status(self, flower_run: int) -> tuple[str, str]:
        """Return Flower's status of a run and its details, such as ``("finished", "")``.

        Raises:
            UnavailableError: The SuperLink does not answer.
        """
        with _asking("to tell of a run"):
            reply = self._client.ListRuns(ListRunsRequest(run_id=flower_run))
        status = reply.run_dict[flower_run].status
        return str(status.status), ": ".join(part for part in (status.sub_status, status.details) if part)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _nodes(self) -> Sequence[Any]:
        with _asking("to list its nodes"):
            return list(self._client.ListNodes(ListNodesRequest()).nodes_info)


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """A block that asks the SuperLink: what fails is a sentence."""
    try:
        yield
    except httpx.HTTPStatusError as exc:
        raise UnavailableError(
            f"The SuperLink refuses {what} (HTTP {exc.response.status_code}): its log says why."
        ) from exc
    except httpx.TransportError as exc:
        raise UnavailableError(f"The SuperLink does not answer: {exc}.") from exc
