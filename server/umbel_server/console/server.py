"""The console's process: HTTPS with the fleet's server certificate, as the API has it."""

from __future__ import annotations

from types import TracebackType

from umbel_server.api.server import HttpsServer
from umbel_server.console.app import create_app
from umbel_server.console.pulse import Pulse
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
        app = create_app(fleet, store)
        self._pulse: Pulse = app.state.pulse
        super().__init__(fleet, store, app, "console", *where)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pulse.stop()  # Or every open screen would hold the service until its patience ends.
        super().__exit__(kind, exc, traceback)
