"""Scripts and styles: read and compressed once, under a name that changes with what is in them."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import LocalProtocolError
from umbel_server.api.guard import OpenRoute
from umbel_server.api.problems import missing

HERE = Path(__file__).parent / "static"
FILES = ("console.css", "console.js", "charts.js", "icon.svg", "vendor/htmx.min.js", "vendor/echarts.min.js")
KEPT = "public, max-age=31536000, immutable"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

router = APIRouter(route_class=OpenRoute)


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file that browsers keep.

    Args:
        name: Its path under ``static``.
        hash: The beginning of its SHA-256, hexadecimal.
        media_type: What it is.
        plain: Its bytes.
        packed: They by gzip.
    """

    name: str
    hash: str
    media_type: str
    plain: bytes
    packed: bytes


@cache
def static_files() -> dict[str, StaticFile]:
    """Return the files by name."""
    return {name: _read(name) for name in FILES}


def static(name: str) -> str:
    """Return the path that a file is served under."""
    found = static_files().get(name)
    if found is None:
        raise LocalProtocolError(f"The console has no file {name}.")
    return f"/static/{found.hash}/{name}"


@router.get("/static/{digest}/{name:path}")
def get_static(request: Request, digest: str, name: str) -> Response:
    """Serve a file, for good: another one has another path."""
    found = static_files().get(name)
    if found is None or digest != found.hash:
        raise missing("such file: reload the page, the console was updated")
    headers = {"Cache-Control": KEPT, "Vary": "Accept-Encoding", "ETag": f'"{found.hash}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(found.packed, media_type=found.media_type, headers=headers)
    return Response(found.plain, media_type=found.media_type, headers=headers)


def _read(name: str) -> StaticFile:
    path = HERE / name
    plain = path.read_bytes()
    digest = hashlib.sha256(plain).hexdigest()[:16]
    return StaticFile(name, digest, _TYPES[path.suffix], plain, gzip.compress(plain, mtime=0))
