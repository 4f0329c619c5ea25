"""Runs as event files for TensorBoard; needs ``umbel[tensorboard]``, which is its own package without TensorFlow.

Each export writes one more file with what the files before it lack, as TensorBoard itself has it where a job goes on:
one that is open shows what is new.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from umbel_proto.errors import RefusedError, StorageError
from umbel_server.files import write_atomically
from umbel_server.learning.exported import Exported

_NAME = "events.out.tfevents.{begun:010d}.umbel.{number:06d}"
_FILES = "events.out.tfevents.*.umbel.*"
_VERSION = "brain.Event:2"
"""What every event file begins with."""
_ABOUT, _BEGUN = "umbel/about", "umbel/created_s"
_STATES = {
    "running": api_pb2.STATUS_RUNNING,
    "paused": api_pb2.STATUS_RUNNING,
    "finished": api_pb2.STATUS_SUCCESS,
    "stopped": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
}


def write(told: Exported, logdir: Path) -> tuple[Path, int]:
    """Write what is told of a run, of its figures those that are not there yet.

    Args:
        told: What is told.
        logdir: What TensorBoard is pointed at; the run's directory in it is made.

    Returns:
        The run's directory, and how many figures were new.

    Raises:
        RefusedError: There is another run of that name.
        StorageError: The directory cannot be read or written.
    """
    where = logdir / told.run
    try:
        where.mkdir(parents=True, exist_ok=True)
        files = sorted(where.glob(_FILES))
        there = [event for file in files for event in _read(file)]
    except OSError as exc:
        raise StorageError(f"{where} cannot be read or made: {exc.strerror}.") from exc
    if any(each.summary.value[0].tag == _BEGUN and _text(each) != _begun(told) for each in there):
        raise RefusedError(f"{where} holds another run of that name: choose another --logdir.")
    seen = {(value.tag, event.step) for event in there for value in event.summary.value}
    points = [each for each in told.points if (each.name, each.round) not in seen]
    events = [
        Event(
            wall_time=each.at_s,
            step=each.round,
            summary=Summary(value=[Summary.Value(tag=each.name, simple_value=each.value)]),
        )
        for each in points
    ]
    # The plan of a run never changes; what is said about it does, and the last word counts.
    last = {event.summary.value[0].tag: event for event in there}
    for fact in _facts(told):
        tag = fact.summary.value[0].tag
        if tag not in last or (tag == _ABOUT and _text(last[tag]) != _text(fact)):
            events.append(fact)
    if events:
        name = _NAME.format(begun=int(told.created_s), number=len(files) + 1)
        write_atomically(
            where / name, _records(told, events), mode=0o666
        )  # As others' files are: the umask decides.
    return where, len(points)


def _facts(told: Exported) -> Iterator[Event]:
    """Yield what is not of a round: the plan, and who the run is and how it stands."""
    rounds = max((each.round for each in told.points), default=0)
    told_s = told.finished_s or max((each.at_s for each in told.points), default=told.created_s)
    plan = hparams_pb(dict(told.plan), trial_id=told.run, start_time_secs=told.created_s)
    yield Event(wall_time=told.created_s, step=0, summary=plan)
    yield Event(wall_time=told.created_s, step=0, summary=text_pb(_BEGUN, _begun(told)))
    table = "\n".join(
        ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in told.about.items())]
    )
    yield Event(wall_time=told_s, step=rounds, summary=text_pb(_ABOUT, table))
    if told.finished_s is not None:
        end = HParamsPluginData(
            session_end_info=SessionEndInfo(status=_STATES[told.state], end_time_secs=told.finished_s)
        )
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(end),
            tensor=metadata.NULL_TENSOR,
        )
        yield Event(wall_time=told.finished_s, step=rounds, summary=Summary(value=[value]))


def _read(file: Path) -> Iterator[Event]:
    for record in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(record)
        if event.summary.value:
            yield event


def _records(told: Exported, events: list[Event]) -> bytes:
    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in (Event(wall_time=told.created_s, file_version=_VERSION), *events):
        writer.write(event.SerializeToString())
    return file.getvalue()


def _begun(told: Exported) -> str:
    return told.about["umbel.created_s"]


def _text(event: Event) -> str:
    return bytes(event.summary.value[0].tensor.string_val[0]).decode(errors="replace")


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
