"""The Fleet API of a SuperLink, as a device's node speaks it.

Written against Flower 1.41; see `umbel.flower`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from base64 import b64encode
from typing import cast

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, TIMESTAMP_HEADER
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from umbel._home.directory import DeviceHome
from umbel._rounds.pace import jitter

log: logging.Logger = logging.getLogger(__name__)

RECORD = "umbel"
"""The record of a message that holds its payload."""
FIRST_RETRY_S = 0.02
"""Flower's own first retry for an object waits a second; it is there a few milliseconds later."""
FETCH_S = 20.0
"""How long to wait for a message's objects: a server that was killed before it had sent them never will. Sending
them takes it about 10 ms a device."""
KEEP_BYTES = 16 << 10
"""Larger messages are deleted when the next one of their run comes, the others when the run ends."""
MOST_RUNS = 4
"""Runs whose rounds a device is in at once: between two messages it keeps an update of each in memory."""


class _Signer:
    """Signs the time of each request with the node key: what Flower's SuperLink authenticates nodes by.

    Not Flower's own interceptor: its package brings FastAPI, 20 MB and 0.2 s, into every device.
    """

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public = b64encode(public_key_to_bytes(key.public_key())).decode("ascii")

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        timestamp = now().isoformat()
        signature = b64encode(sign_message(self._key, timestamp.encode("ascii"))).decode("ascii")
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public
        context.request.headers[TIMESTAMP_HEADER] = timestamp
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = signature
        return call_next(context)


class SuperLink:
    """The Fleet API of a SuperLink, as one activated node sees it."""

    def __init__(self, home: DeviceHome) -> None:
        key = load_ssh_private_key(home.node_key.read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        self._public_key = public_key_to_bytes(key.public_key())
        self._client = FleetHttpClient.from_server_address(
            home.identity.superlink,
            False,
            home.ca_certificate.read_bytes(),
            interceptors=[_Signer(key)],
        )
        self.node = Node()
        self._closing = threading.Event()
        self._online = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="umbel-heartbeat", daemon=True)
        self._large: dict[int, ConfirmMessageReceivedRequest] = {}

    def activate(self) -> int:
        """Go online and return the node id."""
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        # No heartbeat meanwhile: it would keep alive what the SuperLink must forget before it lets the node in again.
        self._online.clear()
        self.node = Node(node_id=self._client.ActivateNode(request).node_id)
        self._online.set()
        if not self._heart.is_alive():
            self._heart.start()
        return self.node.node_id

    def leave(self) -> None:
        """Go offline, as a device does that is switched off; ``activate`` comes back."""
        self._online.clear()
        if self.node.node_id:
            try:
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))
            except (httpx.HTTPError, RuntimeError):
                log.info("could not say goodbye to the SuperLink")
            self.node = Node()

    def close(self) -> None:
        """Go offline and close the connection."""
        self._closing.set()
        if self._heart.is_alive():
            self._heart.join()
        self.leave()
        self._client.close()

    def _beat(self) -> None:
        """Tell the SuperLink that the node is there, also while it trains.

        Not Flower's own sender: that one brings FastAPI, 20 MB, into every device.
        """
        while not self._closing.wait(jitter(HEARTBEAT_DEFAULT_INTERVAL * 0.8)):
            if not self._online.is_set():
                continue
            request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
            try:
                self._client.SendNodeHeartbeat(request)
            except (httpx.HTTPError, RuntimeError) as exc:
                log.debug("a heartbeat was lost: %s", type(exc).__name__)

    def receive(self) -> tuple[Message, ObjectTree] | None:
        """Return the next message's head and the tree of its objects, or None."""
        reply = self._client.PullMessages(PullMessagesRequest(node=self.node))
        if not reply.messages_list:
            return None
        return message_from_proto(reply.messages_list[0]), reply.message_object_trees[0]

    def bundle(self, run_id: int) -> bytes:
        """Return the bundle of a run."""
        run = run_from_proto(self._client.GetRun(GetRunRequest(node=self.node, run_id=run_id)).run)
        request = GetFabRequest(node=self.node, hash_str=run.fab_hash, run_id=run_id)
        return fab_from_proto(self._client.GetFab(request).fab).content

    def fetch(self, head: Message, tree: ObjectTree) -> Message:
        """Return the whole message.

        A message whose payload is one record needs one object: the objects above it say only what
        contains what. Small messages are not confirmed one by one; Flower deletes them when the
        run ends.
        """
        run_id = head.metadata.run_id
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self.node, run_id)
        items = list(iterate_object_tree(tree))
        leaves = [item for item in items if not item.children]
        needed = leaves if len(leaves) == 1 else items
        contents = pull_objects(
            [item.object_id for item in needed],
            pull,
            max_time=FETCH_S,
            initial_backoff=FIRST_RETRY_S,
            backoff_cap=1.0,
        )
        for object_id, content in contents.items():
            if hashlib.sha256(content).hexdigest() != object_id:
                raise ObjectPullError(object_id, "it is not what its name says")
        if len(leaves) == 1:
            record = ConfigRecord.inflate(contents[leaves[0].object_id])
            message = make_message(metadata=head.metadata, content=RecordDict({RECORD: record}))
        else:
            message = cast(Message, inflate_object_from_contents(tree.object_id, contents))
            message.metadata.__dict__["_message_id"] = tree.object_id
        # Not sooner than a run's next message: its sender may still be sending objects of one whose payload is here.
        if (read := self._large.pop(run_id, None)) is not None:
            self._client.ConfirmMessageReceived(read)
        if sum(map(len, contents.values())) > KEEP_BYTES:
            while len(self._large) >= MOST_RUNS:
                del self._large[next(iter(self._large))]  # Flower deletes it when its run ends.
            self._large[run_id] = ConfirmMessageReceivedRequest(
                node=self.node, run_id=run_id, message_object_id=tree.object_id
            )
        return message

    def send(self, reply: Message, seconds: float) -> None:
        """Send an answer: its head, and the objects that hold its payload.

        Args:
            reply: The answer.
            seconds: How long the app took for it, for Flower's statistics.
        """
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree = get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            answer = self._client.PushMessages(
                PushMessagesRequest(
                    node=self.node,
                    messages_list=[message_to_proto(_without_content(reply))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                )
            )
            if reply.has_error():
                return
            leaves = {item.object_id for item in iterate_object_tree(tree) if not item.children}
            needed = leaves if len(leaves) == 1 else objects.keys()
            missing = set(answer.objects_to_push) & set(needed)
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self.node, reply.metadata.run_id, answer.session_id
            )
            push_object_contents_from_iterable(
                ((key, objects[key].deflate()) for key in missing), push_object_fn=push
            )


def _without_content(message: Message) -> Message:
    return remove_content_from_message(message) if message.has_content() else message
