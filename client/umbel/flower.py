"""The device as a Flower node, and the only place on the device that imports Flower.

One process is the whole node: it speaks Flower's Fleet API to an unmodified SuperLink and calls
the client app itself. No process is started for a message and no code is taken from the server:
a run's bundle is looked at, and refused unless it only names the app below.

The same app runs under Flower's own ``flower-supernode``, more slowly; give it the device's home
with ``--node-config 'home="..." data="..."'``.

Written against Flower 1.41: the imports below that are not public are checked by
tests/conformance/test_flower_seams.py, which says so when a new Flower moves them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
import threading
import time
import tomllib
import traceback
import zipfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import cast

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.clientapp import ClientApp
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

from umbel._contribution import TrainerFactory
from umbel._home import DeviceHome
from umbel._participant import KINDS, Participant, Saved, for_the_server
from umbel.train.onnx import OnnxTrainer
from umbel_proto.errors import RefusedError, UmbelError, UsageError

log: logging.Logger = logging.getLogger(__name__)

SERVER_APP = "umbel_server.flower:app"
CLIENT_APP = "umbel.flower:app"
MAX_BUNDLE_BYTES = 64 * 1024

BUSY_POLL_S = (0.05, 1.0)
"""How often to ask for messages while a round is open, within these bounds: not in the first half of the time
between the last two messages, and then every eighth of it. A busy SuperLink answers slowly, and is asked less."""
BUSY_FOR_S = 10.0
"""How long after the last message a round counts as open."""
IDLE_POLL_S = 2.0
"""How often to ask otherwise, give or take half. An empty answer costs the SuperLink 5 ms of CPU."""
RETRY_S = (0.5, 10.0)
"""First and longest pause after a failure; each is doubled and then shortened at random."""

INLINE_BYTES = 1 << 20
"""Vectors up to this length ride in the record: umbel_server.flower has the same number."""
FIRST_RETRY_S = 0.02
"""Flower's own first retry for an object waits a second; it is there a few milliseconds later."""
FETCH_S = 20.0
"""How long to wait for a message's objects: a server that was killed before it had sent them never will. Sending
them takes it about 10 ms a device."""
KEEP_BYTES = 16 << 10
"""Larger messages are deleted when the next one comes, the others when the run ends."""
_RECORD = "umbel"
_VECTOR = "vector"
_RAW = "umbel.raw"  # Array.stype: the bytes as they are, no .npy header to parse.
_STATE = "umbel.session"
_ERROR_CODE = 2  # Flower's CLIENT_APP_RAISED_EXCEPTION.
_ACTIVATION_FAILED = 2004


def check_bundle(content: bytes) -> None:
    """Refuse a run's bundle unless it names the installed app and carries nothing else.

    Args:
        content: The bundle (Flower's FAB), a ZIP file.

    Raises:
        RefusedError: It carries files, names other code, or is no bundle.
    """
    if len(content) > MAX_BUNDLE_BYTES:
        raise RefusedError(f"The run's bundle has {len(content)} bytes: it must only name the installed app.")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            names = {name for name in bundle.namelist() if not name.startswith(".info/")}
            extra = names - {"pyproject.toml", "LICENSE"}
            if extra:
                raise RefusedError(
                    f"The run's bundle brings {sorted(extra)[0]!r}: no code is taken from a server."
                )
            if bundle.getinfo("pyproject.toml").file_size > MAX_BUNDLE_BYTES:
                raise RefusedError("The run's bundle unpacks to more than a name.")
            project = tomllib.loads(bundle.read("pyproject.toml").decode())
        components = project["tool"]["flwr"]["app"]["components"]
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise RefusedError("The run's bundle is malformed.") from exc
    if components.get("clientapp") != CLIENT_APP:
        raise RefusedError(
            f"The run's bundle names the client app {components.get('clientapp')!r}, not {CLIENT_APP}."
        )


def client_app(trainer: TrainerFactory = OnnxTrainer) -> ClientApp:
    """Return the app of a device.

    Args:
        trainer: Makes the trainer of a package that the device has verified.
    """
    made = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        return _handle(message, context, trainer)

    made.train()(handle)
    for kind in KINDS:
        made.query(kind.removeprefix("query."))(handle)
    return made


app: ClientApp = client_app()


def _handle(message: Message, context: Context, trainer: TrainerFactory) -> Message:
    """Answer one message of a round."""
    kind = message.metadata.message_type
    try:
        home = DeviceHome(Path(str(context.node_config["home"])))
        participant = Participant(home, Path(str(context.node_config["data"])), trainer=trainer)
    except KeyError as exc:
        raise UsageError(f"The node's configuration lacks {exc}: give home and data.") from exc
    content = message.content
    try:
        record = content.config_records[_RECORD]
        body = record["body"]
        vector = content.array_records[_VECTOR]["0"].data if _VECTOR in content else record["vector"]
    except KeyError as exc:
        raise RefusedError("The message is not one of umbel's.") from exc
    if not (isinstance(body, bytes) and isinstance(vector, bytes)):
        raise RefusedError("The message is not one of umbel's.")
    saved = _load(context)
    try:
        answer, out, saved = participant.answer(kind, body, vector, saved)
    except UmbelError as exc:
        # The reason is for the run's record.
        return Message(Error(code=_ERROR_CODE, reason=str(exc)), reply_to=message)
    _save(context, saved)
    return Message(_pack(answer, out), reply_to=message)


def _pack(body: bytes, vector: bytes) -> RecordDict:
    """Return an answer as the fewest objects that Flower carries it in; each is a request of its own."""
    if len(vector) <= INLINE_BYTES:
        return RecordDict({_RECORD: ConfigRecord({"body": body, "vector": vector})})
    array = Array(dtype="uint8", shape=(len(vector),), stype=_RAW, data=vector)
    return RecordDict({_RECORD: ConfigRecord({"body": body}), _VECTOR: ArrayRecord({"0": array})})


def _load(context: Context) -> Saved | None:
    """Return what this device kept since the round's last message; it lives in the node's memory only."""
    record = context.state.config_records.get(_STATE)
    if record is None:
        return None
    state, contribution = record["state"], record["contribution"]
    assert isinstance(state, bytes)
    assert isinstance(contribution, bytes)
    return Saved(state, contribution)


def _save(context: Context, saved: Saved | None) -> None:
    if saved is None:
        context.state.pop(_STATE, None)
    else:
        context.state[_STATE] = ConfigRecord({"state": saved.state, "contribution": saved.contribution})


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


class _SuperLink:
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
        self._large: ConfirmMessageReceivedRequest | None = None

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

    def close(self) -> None:
        """Go offline and close the connection."""
        self._closing.set()
        if self._heart.is_alive():
            self._heart.join()
        if self.node.node_id:
            try:
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))
            except (httpx.HTTPError, RuntimeError):
                log.info("could not say goodbye to the SuperLink")
        self._client.close()

    def _beat(self) -> None:
        """Tell the SuperLink that the node is there, also while it trains.

        Not Flower's own sender: that one brings FastAPI, 20 MB, into every device.
        """
        while not self._closing.wait(_jitter(HEARTBEAT_DEFAULT_INTERVAL * 0.8)):
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
            message = make_message(metadata=head.metadata, content=RecordDict({_RECORD: record}))
        else:
            message = cast(Message, inflate_object_from_contents(tree.object_id, contents))
            message.metadata.__dict__["_message_id"] = tree.object_id
        # Not sooner: the sender may still be sending objects of a message whose payload is here already.
        if self._large is not None:
            self._client.ConfirmMessageReceived(self._large)
            self._large = None
        if sum(map(len, contents.values())) > KEEP_BYTES:
            self._large = ConfirmMessageReceivedRequest(
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


def run_node(
    home: DeviceHome, data: Path | None, *, stop: threading.Event, trainer: TrainerFactory = OnnxTrainer
) -> None:
    """Take part in the fleet's rounds until told to stop.

    Losing the SuperLink is not an error: the node waits, and comes back.

    Args:
        home: The enrolled device.
        data: Its training data, an ``.npz`` file with ``x`` and ``y``; without it the device
            declines to train.
        stop: Set it to leave.
        trainer: Makes the trainer of a package that the device has verified.
    """
    link = _SuperLink(home)
    try:
        while not stop.is_set() and not _activate(link, stop):
            pass
        if not stop.is_set():
            log.info("node %d is online at %s", link.node.node_id, home.identity.superlink)
            _serve(link, client_app(trainer), home, data, stop)
    finally:
        link.close()


def _activate(link: _SuperLink, stop: threading.Event) -> bool:
    """Go online, retrying; False when told to stop first."""
    pause, longest = RETRY_S
    said = ""
    while not stop.is_set():
        try:
            link.activate()
        except httpx.HTTPStatusError as exc:
            # Not registered yet, or a predecessor that was killed still counts as online.
            waiting = f'"code":{_ACTIVATION_FAILED}' in exc.response.text.replace(" ", "")
            reason = (
                "the SuperLink does not know this node yet" if waiting else f"HTTP {exc.response.status_code}"
            )
        except httpx.TransportError as exc:
            reason = f"the SuperLink does not answer ({type(exc).__name__})"
        else:
            return True
        if reason != said:
            log.info("not online yet: %s", reason)
            said = reason
        stop.wait(_jitter(pause))
        pause = min(2 * pause, longest)
    return False


def _serve(
    link: _SuperLink, client: ClientApp, home: DeviceHome, data: Path | None, stop: threading.Event
) -> None:
    contexts: dict[int, Context] = {}
    last = time.monotonic()
    gap_s = 0.0
    pause, longest = RETRY_S
    while not stop.is_set():
        try:
            got = link.receive()
            if got is not None:
                _answer_if_wanted(link, *got, client, contexts, home, data, stop)
                now_s = time.monotonic()
                gap_s, last = now_s - last, now_s
                stop.wait(min(gap_s / 2, BUSY_POLL_S[1]))
            pause = RETRY_S[0]
        except httpx.HTTPStatusError as exc:
            log.info("the SuperLink answers HTTP %d: going online again", exc.response.status_code)
            stop.wait(_jitter(pause))
            pause = min(2 * pause, longest)
            _activate(link, stop)
            continue
        except httpx.TransportError as exc:
            log.info("the SuperLink is gone (%s): waiting for it", type(exc).__name__)
            stop.wait(_jitter(pause))
            pause = min(2 * pause, longest)
            continue
        if got is None:
            busy = time.monotonic() < last + BUSY_FOR_S
            often_s = min(max(BUSY_POLL_S[0], gap_s / 8), BUSY_POLL_S[1])
            stop.wait(often_s if busy else _jitter(1.5 * IDLE_POLL_S))


def _answer_if_wanted(
    link: _SuperLink,
    head: Message,
    tree: ObjectTree,
    client: ClientApp,
    contexts: dict[int, Context],
    home: DeviceHome,
    data: Path | None,
    stop: threading.Event,
) -> None:
    """Answer a message, unless it goes away meanwhile, as when its run ends; the node stays online."""
    try:
        _answer(link, head, tree, client, contexts, home, data, stop)
    except ObjectPullError:
        log.info("a message was withdrawn before it could be read")
    except httpx.HTTPStatusError as exc:
        log.info("the SuperLink wants no answer any more (HTTP %d)", exc.response.status_code)


def _answer(
    link: _SuperLink,
    head: Message,
    tree: ObjectTree,
    client: ClientApp,
    contexts: dict[int, Context],
    home: DeviceHome,
    data: Path | None,
    stop: threading.Event,
) -> None:
    run_id = head.metadata.run_id
    message = link.fetch(head, tree)
    begin = time.monotonic()
    try:
        if data is None:
            raise RefusedError("This device has no training data: start it with --data.")
        if run_id not in contexts:
            check_bundle(link.bundle(run_id))
            contexts.clear()  # One run at a time: the state of an older one is of no use any more.
            contexts[run_id] = Context(
                run_id=run_id,
                node_id=link.node.node_id,
                node_config={"home": str(home.path), "data": str(data)},
                state=RecordDict(),
                run_config={},
            )
        reply = client(message, contexts[run_id])
    except UmbelError as exc:
        log.warning("refused %s: %s", message.metadata.message_type, exc)
        reply = Message(Error(code=_ERROR_CODE, reason=str(for_the_server(exc))), reply_to=message)
    except Exception as exc:
        # A bug of ours must not end the node. Where it is goes to the log and its name to the run's record;
        # its message, which may quote a value, to neither.
        where = "".join(traceback.format_tb(exc.__traceback__))
        log.error("could not answer %s: %s\n%s", message.metadata.message_type, type(exc).__name__, where)
        reply = Message(Error(code=_ERROR_CODE, reason=type(exc).__name__), reply_to=message)
    seconds = time.monotonic() - begin
    life_s = message.metadata.created_at + message.metadata.ttl - time.time()
    _deliver(lambda: link.send(reply, seconds), stop, life_s=life_s)


def _deliver(send: Callable[[], None], stop: threading.Event, *, life_s: float) -> None:
    """Send an answer, again and again while the SuperLink does not answer: it was asked for once only.

    The SuperLink refuses what it has already, so a repeated answer counts once.

    Args:
        send: Sends it.
        stop: Ends the waiting.
        life_s: How long anyone waits for the answer, seconds.

    Raises:
        httpx.TransportError: There was none in all that time.
    """
    pause, longest = RETRY_S
    until = time.monotonic() + life_s
    while True:
        try:
            send()
            return
        except httpx.TransportError as exc:
            if stop.is_set() or time.monotonic() + pause > until:
                raise
            log.info("the SuperLink is gone (%s): the answer waits for it", type(exc).__name__)
        stop.wait(_jitter(pause))
        pause = min(2 * pause, longest)


def _jitter(pause_s: float) -> float:
    """Return a random time between a third of ``pause_s`` and all of it, so that a fleet spreads out."""
    return pause_s * (1 + 2 * secrets.randbelow(1 << 16) / (1 << 16)) / 3
