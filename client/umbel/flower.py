"""The device as a Flower node: its app, and the loop that answers messages. `umbel._rounds.superlink` speaks to the server.

One process is the whole node: it speaks Flower's Fleet API to an unmodified SuperLink and calls
the client app itself. No process is started for a message and no code is taken from the server:
a run's bundle is looked at, and refused unless it only names the app below.

The same app runs under Flower's own ``flower-supernode``, more slowly; give it the device's home
with ``--node-config 'home="..."'``, and ``data="..."`` if it shall train on a file.

Written against Flower 1.41: the imports below that are not public are checked by
tests/conformance/test_flower_seams.py, which says so when a new Flower moves them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import threading
import time
import tomllib
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
)

from umbel._home.directory import DeviceHome
from umbel._rounds.conditions import Conditions, NotNowError
from umbel._rounds.contribution import TrainerFactory
from umbel._rounds.load import OthersLoad
from umbel._rounds.pace import Pace, jitter
from umbel._rounds.participant import KINDS, Participant, Saved, Tell, for_the_server
from umbel._rounds.probes import linux_probes
from umbel._rounds.superlink import MOST_RUNS, RECORD, SuperLink
from umbel.train.apart import ApartTrainer, Worker
from umbel.train.onnx import OnnxTrainer
from umbel_proto.errors import RefusedError, UmbelError, UsageError

log: logging.Logger = logging.getLogger(__name__)

SERVER_APP = "umbel_server.flower:app"
CLIENT_APP = "umbel.flower:app"
MAX_BUNDLE_BYTES = 64 * 1024

RETRY_S = (0.5, 10.0)
"""First and longest pause after a failure; each is doubled and then shortened at random."""

LOOK_S = 5.0
"""How often to look whether the device may still train."""
AWAY_S = 30.0
"""How often while it may not."""
ROUND_S = 600.0
"""A round that has asked nothing for so long is over: the device owes it no answer any more."""

INLINE_BYTES = 1 << 20
"""Vectors up to this length ride in the record: umbel_server.flower has the same number."""
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


def client_app(
    trainer: TrainerFactory = OnnxTrainer, conditions: Conditions | None = None, tell: Tell | None = None
) -> ClientApp:
    """Return the app of a device.

    Args:
        trainer: Makes the trainer of a package that the device has verified.
        conditions: When the device trains; by default what its home and this machine say.
        tell: Counts in the device's telemetry what its trainings take; None: nothing is told.
    """
    made = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        return _handle(message, context, trainer, conditions, tell)

    made.train()(handle)
    for kind in KINDS:
        made.query(kind.removeprefix("query."))(handle)
    return made


app: ClientApp = client_app()


def _handle(
    message: Message,
    context: Context,
    trainer: TrainerFactory,
    conditions: Conditions | None,
    tell: Tell | None,
) -> Message:
    """Answer one message of a round."""
    kind = message.metadata.message_type
    try:
        home = DeviceHome(Path(str(context.node_config["home"])))
    except KeyError as exc:
        raise UsageError(f"The node's configuration lacks {exc}: give the device's home.") from exc
    data = context.node_config.get("data")
    participant = Participant(
        home,
        None if data is None else Path(str(data)),
        trainer=trainer,
        conditions=conditions,
        tell=tell,
    )
    content = message.content
    try:
        record = content.config_records[RECORD]
        body = record["body"]
        vector = content.array_records[_VECTOR]["0"].data if _VECTOR in content else record["vector"]
    except KeyError as exc:
        raise RefusedError("The message is not one of umbel's.") from exc
    if not (isinstance(body, bytes) and isinstance(vector, bytes)):
        raise RefusedError("The message is not one of umbel's.")
    saved = _load(context)
    try:
        answer, out, saved = participant.answer(kind, body, vector, saved)
    except NotNowError:
        raise
    except UmbelError as exc:
        # The reason is for the run's record.
        return Message(Error(code=_ERROR_CODE, reason=str(exc)), reply_to=message)
    _save(context, saved)
    return Message(_pack(answer, out), reply_to=message)


def _pack(body: bytes, vector: bytes) -> RecordDict:
    """Return an answer as the fewest objects that Flower carries it in; each is a request of its own."""
    if len(vector) <= INLINE_BYTES:
        return RecordDict({RECORD: ConfigRecord({"body": body, "vector": vector})})
    array = Array(dtype="uint8", shape=(len(vector),), stype=_RAW, data=vector)
    return RecordDict({RECORD: ConfigRecord({"body": body}), _VECTOR: ArrayRecord({"0": array})})


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


def run_node(
    home: DeviceHome,
    data: Path | None,
    *,
    stop: threading.Event,
    trainer: TrainerFactory | None = None,
    conditions: Conditions | None = None,
    tell: Tell | None = None,
) -> None:
    """Take part in the fleet's rounds until told to stop.

    Losing the SuperLink is not an error: the node waits, and comes back. While the device's conditions do not
    hold it is offline, but for the end of a round that it has trained for already. A training under way ends
    when they hold no longer.

    Args:
        home: The enrolled device.
        data: An ``.npz`` file with ``x`` and ``y`` to train on; None to train on the local data set.
        stop: Set it to leave.
        trainer: Makes the trainer of a package that the device has verified; by default one that trains in a
            process of its own. Another one is not ended when the conditions hold no longer.
        conditions: When the device trains; by default what its home and this machine say.
        tell: Counts in the device's telemetry what its trainings take; None: nothing is told.
    """
    with contextlib.closing(SuperLink(home)) as link, contextlib.closing(Worker()) as worker:
        if conditions is None:
            probes = [OthersLoad(probe, lambda: worker.load) for probe in linux_probes()]
            conditions = Conditions(home, probes=probes)
        if trainer is None:
            look = functools.partial(_go_on, conditions, stop)
            trainer = functools.partial(ApartTrainer, look=look, worker=worker)
        _wait_until_allowed(conditions, stop)
        while not stop.is_set() and not _activate(link, stop):
            pass
        if not stop.is_set():
            log.info("node %d is online at %s", link.node.node_id, home.identity.superlink)
            _serve(link, client_app(trainer, conditions, tell), home, data, conditions, stop)


def _go_on(conditions: Conditions, stop: threading.Event, taken_s: float) -> None:
    """Let a training go on that has taken so long, if the device still trains.

    Raises:
        NotNowError: It does not, or is told to stop.
    """
    why_not = "the device stops" if stop.is_set() else _why_not(conditions)
    if why_not:
        log.info("ended a training after %.3g s: %s", taken_s, why_not)
        raise NotNowError


def _wait_until_allowed(conditions: Conditions, stop: threading.Event) -> None:
    """Wait until the device may train, or is told to stop; say why it waits whenever that changes."""
    said = ""
    while not stop.is_set() and (reason := _why_not(conditions)):
        if reason != said:
            log.info("%s", reason)
            said = reason
        stop.wait(jitter(AWAY_S))


def _why_not(conditions: Conditions) -> str:
    """Return why the device does not train now, or nothing if it does."""
    try:
        verdict = conditions.now()
    except UmbelError as exc:
        return str(exc)
    return "" if verdict.trains else str(verdict)


def _is_in_a_round(contexts: dict[int, Context], since_s: float) -> bool:
    """Whether others wait for the end of what this device has trained for."""
    return since_s < ROUND_S and any(_load(context) is not None for context in contexts.values())


def _activate(link: SuperLink, stop: threading.Event) -> bool:
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
        stop.wait(jitter(pause))
        pause = min(2 * pause, longest)
    return False


def _serve(
    link: SuperLink,
    client: ClientApp,
    home: DeviceHome,
    data: Path | None,
    conditions: Conditions,
    stop: threading.Event,
) -> None:
    contexts: dict[int, Context] = {}
    pace = Pace(time.monotonic())
    pause, longest = RETRY_S
    looked_s = answered_s = time.monotonic()
    while not stop.is_set():
        if time.monotonic() - looked_s > LOOK_S:
            looked_s = time.monotonic()
            if _why_not(conditions) and not _is_in_a_round(contexts, looked_s - answered_s):
                link.leave()
                _wait_until_allowed(conditions, stop)
                _activate(link, stop)
        try:
            got = link.receive()
            asked_s = time.monotonic()
            if got is not None:
                _answer_if_wanted(link, *got, client, contexts, home, data, stop)
                answered_s = time.monotonic()
                stop.wait(pace.after_answer(asked_s, time.monotonic()))
            pause = RETRY_S[0]
        except httpx.HTTPStatusError as exc:
            log.info("the SuperLink answers HTTP %d: going online again", exc.response.status_code)
            stop.wait(jitter(pause))
            pause = min(2 * pause, longest)
            _activate(link, stop)
            continue
        except httpx.TransportError as exc:
            log.info("the SuperLink is gone (%s): waiting for it", type(exc).__name__)
            stop.wait(jitter(pause))
            pause = min(2 * pause, longest)
            continue
        if got is None:
            stop.wait(pace.after_nothing(time.monotonic()))


def _answer_if_wanted(
    link: SuperLink,
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
    link: SuperLink,
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
        if run_id not in contexts:
            check_bundle(link.bundle(run_id))
            while len(contexts) >= MOST_RUNS:
                del contexts[
                    next(iter(contexts))
                ]  # Whose last message is the longest ago: it has ended, or goes without us.
            config: UserConfig = {"home": str(home.path)}
            if data is not None:
                config["data"] = str(data)
            contexts[run_id] = Context(
                run_id=run_id,
                node_id=link.node.node_id,
                node_config=config,
                state=RecordDict(),
                run_config={},
            )
        contexts[run_id] = contexts.pop(run_id)
        reply = client(message, contexts[run_id])
    except NotNowError:
        # No answer: to the server this device is one of those that went away.
        log.info("does not answer %s: it does not train now", message.metadata.message_type)
        return
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
        stop.wait(jitter(pause))
        pause = min(2 * pause, longest)
