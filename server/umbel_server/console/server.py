"""The console's process: HTTPS with the fleet's server certificate, as the API has it."""

from __future__ import annotations

from umbel_server.api.server import HttpsServer
from umbel_server.console.app import create_app
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store


class ConsoleServer(HttpsServer):
    """The console, listening while the ``with`` block runs.

    Args:
        fleet: The fleet.
        store: Its store.
        port: Where to listen; None: as the settings say; 0: anywhere.

    Raises:
        UnavailableError: The port is taken.
        StorageError: The server's certificate cannot be read.
    """

    def __init__(self, fleet: FleetDir, store: Store, *, port: int | None = None) -> None:
        settings = fleet.settings.console
        where = (settings.listen, settings.port if port is None else port)
        super().__init__(fleet, store, create_app(fleet, store), "console", *where)
