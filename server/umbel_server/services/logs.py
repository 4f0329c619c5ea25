"""Logs of the services: lines for people or JSON for programs, on standard error.

The libraries log through `logging`, as ever; only the programs decide how that looks. A line that is written while a
call is answered carries the call's id and the device that made it; nothing of what the call brought is ever logged.
"""

from __future__ import annotations

import logging
import secrets
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from umbel_server.fleet.table import Table, setting

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

_TEXT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s%(call)s"
_CHATTY = ("alembic", "sqlalchemy", "uvicorn")


@dataclass(frozen=True, slots=True)
class Log(Table):
    """How the services log.

    Args:
        format: Lines for people, or a JSON object a line.
        level: The least important level that is written.
    """

    TABLE: ClassVar[str] = "log"
    NOTE: ClassVar[str] = "to standard error; ids and counts, never what devices send"

    format: str = setting("text: lines for people; json: an object a line", "text", of=("text", "json"))
    level: str = setting("debug, info, warning or error", "info", of=("debug", "info", "warning", "error"))


@dataclass(slots=True)
class CallFacts:
    """What the lines of one call have in common.

    Args:
        method: Its gRPC method.
        device: Who calls, once that is known.
        request: The call's random id, drawn for the first line that says it: most calls have none.
    """

    method: str
    device: str = ""
    request: str = ""

    def items(self) -> list[tuple[str, str]]:
        """Return what is known, by name."""
        self.request = self.request or secrets.token_hex(6)
        pairs = (("request", self.request), ("method", self.method), ("device", self.device))
        return [(name, value) for name, value in pairs if value]


current_call: ContextVar[CallFacts | None] = ContextVar("umbel_call", default=None)
"""The call that this thread answers."""


def configure_logs(settings: Log) -> None:
    """Let everything that this process logs go to standard error as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if settings.format == "json" else _text_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _Text(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return time.strftime(datefmt or "%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))

    def format(self, record: logging.LogRecord) -> str:
        call = current_call.get()
        record.call = "".join(f" {name}={value}" for name, value in call.items()) if call else ""
        return super().format(record)


def _text_formatter() -> logging.Formatter:
    return _Text(_TEXT)


def _json_formatter() -> logging.Formatter:
    import structlog

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _add_call,
            structlog.processors.format_exc_info,  # Without local variables: keys may be among them.
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
    )


def _add_call(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    call = current_call.get()
    if call is not None:
        event.update(call.items())
    return event
