"""Who signs a question: the key where the fleet's directory is, or the authority for an operator who is signed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from umbel_proto.analytics.query import Query, open_query, sign_query, write_query
from umbel_proto.errors import VerificationError
from umbel_proto.wire.authority_pb2 import QueryAsk
from umbel_server.ca.authority import open_authority

if TYPE_CHECKING:
    from umbel_server.fleet.layout import FleetDir
    from umbel_server.store.store import Store

Sign = Callable[[Query], bytes]
"""Returns a query as a serialized ``Signed`` message."""


def with_key(fleet: FleetDir) -> Sign:
    """Return what signs with the authority's own key, for whoever has the fleet's directory.

    Raises:
        StorageError: When it is to sign: the key is not here.
    """
    return lambda query: sign_query(fleet.authority_signer(), query)


def by_authority(fleet: FleetDir, store: Store, *, token: str = "", session: str = "") -> Sign:
    """Return what has the authority sign, which checks for itself who asks; it may be a process of its own.

    Args:
        fleet: The fleet.
        store: Its store.
        token: The API token that the operator showed; or
        session: what the cookie of their session in the console holds.
    """

    def sign(query: Query) -> bytes:
        ask = QueryAsk(token=token, session=session, query=write_query(query))
        signed = open_authority(fleet, store, clock=store.clock).sign_query(ask).SerializeToString()
        key, now_s = fleet.authority_public(), store.clock()
        if open_query(signed, authority=key, fleet=fleet.name, now_s=now_s) != query:
            raise VerificationError("The authority has signed another question than it was asked to.")
        return signed

    return sign
