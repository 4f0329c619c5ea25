"""A ZIP archive with exactly one legal form, so that no byte of it can change unnoticed.

Entries are stored, without extra fields, comments or gaps, dated 1980-01-01, in the order given.
Any ``unzip`` reads it. ``zipfile`` would write it too, but promises no two Python versions the same
bytes, and forgives what must not be forgiven here.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central), 4.3.16 (end).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

from umbel_proto.errors import PackageError

MAX_ENTRIES = 64
MAX_ARCHIVE_BYTES = 1 << 30
MAX_NAME_BYTES = 100

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
HEADER_BYTES = _LOCAL.size
"""What stands before a file, beside its name."""
_LOCAL_MAGIC = b"PK\x03\x04"
_UNIX = 3 << 8  # "made by" Unix, so that the mode below is read as one
_VERSION = 20
_DATE = 1 << 5 | 1  # 1980-01-01
_MODE = 0o100644 << 16

Buffer = bytes | memoryview


def write_archive(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of ``files``, in their order.

    Raises:
        PackageError: There are too many, they are too large together, or a name is too long or not ASCII.
    """
    if len(files) > MAX_ENTRIES:
        raise PackageError(f"A package holds at most {MAX_ENTRIES} files, not {len(files)}.")
    for name in files:
        if not (name.isascii() and 0 < len(name) <= MAX_NAME_BYTES):
            raise PackageError(
                f"The file name {name[:MAX_NAME_BYTES]!r} cannot go into a package: use short ASCII."
            )
    if sum(map(len, files.values())) > MAX_ARCHIVE_BYTES - (1 << 20):
        raise PackageError(f"A package has at most {MAX_ARCHIVE_BYTES >> 20} MiB.")
    return b"".join(_pieces(files))


def read_archive(data: bytes) -> dict[str, memoryview]:
    """Return the files of an archive, as views into ``data``.

    Raises:
        PackageError: ``data`` is not, byte for byte, what ``write_archive`` makes of these files.
    """
    if len(data) > MAX_ARCHIVE_BYTES:
        raise PackageError(f"The package has more than {MAX_ARCHIVE_BYTES >> 20} MiB.")
    view = memoryview(data)
    files: dict[str, memoryview] = {}
    offset = 0
    while data[offset : offset + 4] == _LOCAL_MAGIC:
        try:
            size, name_size = struct.unpack_from("<L", data, offset + 22)[0], data[offset + 26]
            begin = offset + _LOCAL.size + name_size
            name = str(view[offset + _LOCAL.size : begin], "ascii")
        except (struct.error, IndexError, UnicodeDecodeError) as exc:
            raise PackageError(
                "The package is damaged, or is no package: a file's header is unreadable."
            ) from exc
        offset = begin + size
        named = 0 < name_size <= MAX_NAME_BYTES and name not in files
        if not named or offset > len(data) or len(files) == MAX_ENTRIES:
            raise PackageError("The package is damaged, or is no package: its list of files does not add up.")
        files[name] = view[begin:offset]
    position = 0
    for piece in _pieces(files):
        # A file's content is a view of this very place, if all before it was as it must be; Python compares views
        # number by number, 60 ms of a 26 MB file in which no other thread runs.
        if isinstance(piece, bytes) and view[position : position + len(piece)] != piece:
            raise PackageError("The package is damaged, or is no package: fetch it again.")
        position += len(piece)
    if position != len(data):
        raise PackageError(f"The package has {len(data) - position} bytes after its end: fetch it again.")
    return files


def _pieces(files: Mapping[str, Buffer]) -> Iterator[Buffer]:
    central = []
    offset = 0
    for name, content in files.items():
        raw = name.encode("ascii")
        common = (_VERSION, 0, 0, 0, _DATE, zlib.crc32(content), len(content), len(content), len(raw), 0)
        local = _LOCAL.pack(_LOCAL_MAGIC, *common) + raw
        yield local
        yield content
        central.append(_CENTRAL.pack(b"PK\x01\x02", _UNIX | _VERSION, *common, 0, 0, 0, _MODE, offset) + raw)
        offset += len(local) + len(content)
    directory = b"".join(central)
    yield directory
    yield _END.pack(b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), offset, 0)
