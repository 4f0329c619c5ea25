"""Answers of the API that are kept for a day, so that a request sent twice is done once."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import delete, insert, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.tables_access import replies

KEPT_S = 86400.0
ABANDONED_S = 300.0
"""A request that has no answer by then was cut short with its process: it may be sent again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it was given.

    Args:
        status: The HTTP status.
        sealed: The rest, encrypted to what its caller signed in with.
    """

    status: int
    sealed: bytes = field(repr=False)


class OtherRequestError(UsageError):
    """An idempotency key came before, with another request."""


class InProgressError(RefusedError):
    """The same request is being worked on."""


class Replies:
    """The kept answers of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def begin(self, caller: str, key: str, request: bytes) -> Reply | None:
        """Take a request in hand, or return the answer it had.

        Args:
            caller: Whose it is.
            key: Its idempotency key.
            request: SHA-256 of what it asks for, 32 bytes.

        Raises:
            OtherRequestError: The key came with another request.
            InProgressError: It is being worked on.
        """
        now_s = self._clock()
        with self._database.write() as connection:
            connection.execute(delete(replies).where(replies.c.created_s <= now_s - KEPT_S))
            connection.execute(
                delete(replies).where(
                    replies.c.caller == caller,
                    replies.c.key == key,
                    replies.c.status.is_(None),
                    replies.c.created_s <= now_s - ABANDONED_S,
                )
            )
            mine = (replies.c.caller == caller, replies.c.key == key)
            row = connection.execute(select(replies).where(*mine)).one_or_none()
            if row is None:
                values = {"caller": caller, "key": key, "request": request, "created_s": now_s}
                connection.execute(insert(replies).values(values))
                return None
        if row.request != request:
            raise OtherRequestError("This idempotency key came with another request: take a new one.")
        if row.status is None:
            raise InProgressError("The same request is being worked on: ask again in a moment.")
        return Reply(row.status, row.sealed)

    def finish(self, caller: str, key: str, reply: Reply) -> None:
        """Keep the answer to a request."""
        with self._database.write() as connection:
            connection.execute(
                update(replies)
                .where(replies.c.caller == caller, replies.c.key == key)
                .values(status=reply.status, sealed=reply.sealed)
            )

    def forget(self, caller: str, key: str) -> None:
        """Forget a request that changed nothing: it may be sent again, or better."""
        with self._database.write() as connection:
            connection.execute(delete(replies).where(replies.c.caller == caller, replies.c.key == key))
