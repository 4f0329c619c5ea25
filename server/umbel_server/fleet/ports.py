"""Free ports on this machine."""

from __future__ import annotations

import contextlib
import secrets
import socket

from umbel_proto.errors import UnavailableError

# Below the range from which Linux takes the ports of outgoing connections (32768 on): a port found
# free here stays free until its service binds it. Tests that run at once take each a part of it.
LOWEST, HIGHEST = 20000, 32767
_ATTEMPTS = 1000


def free_ports(count: int, *, listen: str = "127.0.0.1", taken: frozenset[int] = frozenset()) -> list[int]:
    """Return ``count`` different ports that nothing listens on, none of them in ``taken``.

    Raises:
        UnavailableError: There are not as many.
    """
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(_ATTEMPTS):
            if len(found) == count:
                return found
            port = LOWEST + secrets.randbelow(HIGHEST - LOWEST + 1)
            if port in taken or port in found:
                continue
            family = socket.AF_INET6 if ":" in listen else socket.AF_INET
            held_socket = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            try:
                held_socket.bind((listen, port))
            except OSError:
                continue
            found.append(port)
    raise UnavailableError(f"No {count} free ports were found on {listen} between {LOWEST} and {HIGHEST}.")


def is_free(port: int, *, listen: str = "127.0.0.1") -> bool:
    """Return whether a service could listen on a port now; 0 stands for any."""
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: what an earlier one left in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError:
            return False
    return True
