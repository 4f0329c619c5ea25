"""A round's messages over Flower: the run's ServerApp, and the link that it gives to a round.

Written against Flower 1.41; see `umbel_server.superlink`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    UnexpectedObjectContentError,
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
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from umbel_proto.errors import UsageError
from umbel_proto.ids import RunId
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.signals import end_with_parent

log = logging.getLogger(__name__)

INLINE_BYTES = 1 << 20
"""Vectors up to this length ride in the record: umbel.flower has the same number."""
_RECORD = "umbel"
_VECTOR = "vector"
REST_AFTER_S = 2.0
FIRST_RETRY_S = 0.02
"""Flower's own first retry for an object waits a second; it is there a few milliseconds later."""
FIRST_TRIES = 5
"""How often to ask for an answer's object at first, 0.3 s in all; after that, once whenever answers are asked for."""
KEEP_BYTES = 16 << 10
"""Larger messages are deleted a phase after they were read, the others when the run ends."""
_RAW = "umbel.raw"  # Array.stype: the bytes as they are, no .npy header to parse.


def pack(payload: Payload) -> RecordDict:
    """Return a payload as the fewest objects that Flower carries it in.

    Flower moves every object of a message by a request of its own: three for one record, six for
    a record and an array. Long vectors go into an array all the same, as only those are cut into
    chunks.
    """
    vector = payload.vector
    if len(vector) <= INLINE_BYTES:
        return RecordDict({_RECORD: ConfigRecord({"body": payload.body, "vector": vector})})
    array = Array(dtype="uint8", shape=(len(vector),), stype=_RAW, data=vector)
    return RecordDict({_RECORD: ConfigRecord({"body": payload.body}), _VECTOR: ArrayRecord({"0": array})})


def unpack(content: RecordDict) -> Payload:
    """Return the payload inside a message's content.

    Raises:
        UsageError: It is not one of ours.
    """
    try:
        record = content.config_records[_RECORD]
        body = record["body"]
        vector = content.array_records[_VECTOR]["0"].data if _VECTOR in content else record["vector"]
    except (KeyError, AttributeError) as exc:
        raise UsageError("The message is not one of umbel's.") from exc
    if not (isinstance(body, bytes) and isinstance(vector, bytes)):
        raise UsageError("The message is not one of umbel's.")
    return Payload(body, vector)


def wire_size(content: RecordDict) -> int:
    """Return the bytes of a message's content as Flower serializes it for the wire."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(content).values())


def plain_fedavg_size(arrays: Iterable[Any]) -> int:
    """Return what one device sends up in a round of Flower's own FedAvg, in bytes.

    Args:
        arrays: The model's arrays, float32.
    """
    metrics = MetricRecord({"train_loss": 0.0, "num-examples": 1})
    return wire_size(RecordDict({"arrays": ArrayRecord(list(arrays)), "metrics": metrics}))


def wanted(tree: ObjectTree) -> list[ObjectTree]:
    """Return the objects to fetch of a message: its one record, or all if it has an array too.

    The record alone is the payload. The objects above it say only what contains what, which for
    a message of ours is known.
    """
    items = list(iterate_object_tree(tree))
    leaves = [item for item in items if not item.children]
    return leaves if len(leaves) == 1 else items


def payload_of(tree: ObjectTree, contents: Mapping[str, bytes]) -> Payload:
    """Return the payload inside the fetched objects of a message.

    Raises:
        UsageError: An object is not the one that the tree names, or the message is not one of ours.
        UnexpectedObjectContentError: An object is of another kind.
    """
    for object_id, content in contents.items():
        if hashlib.sha256(content).hexdigest() != object_id:
            raise UsageError("An object of the message is not what its name says.")
    if len(contents) == 1:
        ((_, content),) = contents.items()
        return unpack(RecordDict({_RECORD: ConfigRecord.inflate(content)}))
    message = inflate_object_from_contents(tree.object_id, dict(contents))
    assert isinstance(message, Message)
    return unpack(message.content)


class GridLink:
    """A round's `Link` over Flower's Grid.

    Args:
        grid: The Grid that Flower gave to the ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        # Flower's own send and receive ask four times for what can be asked once: see below.
        assert isinstance(grid, HttpGrid)
        self._grid = grid
        self._client: RuntimeHttpClient = grid._runtime_client
        self._own: Node = grid.node
        self._run_id = grid.run.run_id
        self._pending: dict[str, NodeId] = {}
        self._incomplete: list[tuple[NodeId, Message, ObjectTree]] = []
        self._large: list[ConfirmMessageReceivedRequest] = []
        self._rest: tuple[float, Mapping[str, InflatableObject], set[str], str] | None = None

    def nodes(self) -> Sequence[NodeId]:
        """Return the nodes that are connected now."""
        return sorted(NodeId(node) for node in self._grid.get_node_ids())

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        """Send one message to each node; earlier answers still missing are given up.

        First the heads and the records with the payloads, which is all that our nodes read. What a
        stock SuperNode reads besides follows if somebody has not answered by then.
        """
        self._delete_read()
        self._incomplete = []
        contents = {node: pack(payload) for node, payload in payloads.items()}
        messages = [
            Message(content, dst_node_id=node, message_type=kind, group_id=group, ttl=ttl_s)
            for node, content in contents.items()
        ]
        objects: dict[str, InflatableObject] = {}
        trees = []
        with no_object_id_recompute():
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                objects |= get_all_nested_objects(message)
                trees.append(get_object_tree(message))
        heads = [message_to_proto(remove_content_from_message(message)) for message in messages]
        request = PushAppMessagesRequest(messages_list=heads, message_object_trees=trees)
        reply = self._client.PushMessages(request)
        missing = set(reply.objects_to_push)
        first = {item.object_id for tree in trees for item in wanted(tree)} & missing
        self._push(objects, first, reply.session_id)
        self._rest = (time.monotonic() + REST_AFTER_S, objects, missing - first, reply.session_id)
        self._pending = {str(id_): node for id_, node in zip(reply.message_ids, contents, strict=True) if id_}
        return sum(map(wire_size, contents.values()))

    def _push(self, objects: Mapping[str, InflatableObject], ids: set[str], session: str) -> None:
        push = make_push_object_fn_protobuf(self._client.PushObject, self._own, self._run_id, session)
        gone = 0

        def push_or_leave(object_id: str, content: bytes) -> None:
            # A node that says it has read its message lets Flower forget it, whether it has or not: its own loss.
            nonlocal gone
            try:
                push(object_id, content)
            except ObjectPushError:
                gone += 1

        with no_object_id_recompute():
            push_objects(dict(objects), push_or_leave, object_ids_to_push=ids)
        if gone:
            log.info("%d objects are not wanted any more", gone)

    def _push_rest(self) -> None:
        if self._rest is None or time.monotonic() < self._rest[0]:
            return
        _, objects, ids, session = self._rest
        self._rest = None
        self._push(objects, ids, session)

    def receive(self) -> Sequence[Answer]:
        """Return the answers that came since the last call.

        Flower's own ``pull_messages`` asks four times for a small answer; this asks once, for the
        record that holds it, as everything else about the answer is in the list already.
        """
        if self._pending or self._incomplete:
            self._push_rest()
        before, self._incomplete = self._incomplete, []
        answers = [self._answer(*each, tries=1) for each in before]
        if self._pending:
            listed = self._client.PullMessages(PullAppMessagesRequest(message_ids=list(self._pending)))
            for head, tree in zip(listed.messages_list, listed.message_object_trees, strict=True):
                node = self._pending.pop(head.metadata.reply_to_message_id, None)
                if node is not None:
                    answers.append(self._answer(node, message_from_proto(head), tree, tries=FIRST_TRIES))
        return [answer for answer in answers if answer is not None]

    def _answer(self, node: NodeId, head: Message, tree: ObjectTree, *, tries: int) -> Answer | None:
        """Return what a node answered; None if parts of it are not there yet."""
        if head.has_error():
            return Answer(node, None, head.error.reason or f"Flower error {head.error.code}")
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._own, self._run_id)
        try:
            contents = pull_objects(
                [item.object_id for item in wanted(tree)],
                pull,
                max_tries_per_object=tries,
                initial_backoff=FIRST_RETRY_S,
            )
            payload = payload_of(tree, contents)
        except ObjectPullError:
            # A device that was killed while it sent them never will: nobody else waits for it.
            self._incomplete.append((node, head, tree))
            return None
        except (UnexpectedObjectContentError, UsageError) as exc:
            return Answer(node, None, f"its answer cannot be read: {exc}")
        size = sum(map(len, contents.values()))
        if size > KEEP_BYTES:
            self._large.append(
                ConfirmMessageReceivedRequest(
                    node=self._own, run_id=self._run_id, message_object_id=tree.object_id
                )
            )
        return Answer(node, payload, size_up=size)

    def _delete_read(self) -> None:
        """Let Flower delete the large answers of the phase before.

        Not sooner: a node may still be sending objects of an answer whose payload is here already.
        """
        while self._large:
            self._client.ConfirmMessageReceived(self._large.pop())


app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    """Run the plan that the run's configuration names."""
    from pathlib import Path

    from umbel_server.fleet.layout import FleetDir
    from umbel_server.queries.drive import to_end

    # SuperExec means to take its processes along; a killed one cannot.
    end_with_parent(signal.SIGKILL)
    config = context.run_config
    to_end(FleetDir.open(Path(str(config["fleet"]))), RunId(str(config["run"])), GridLink(grid))
