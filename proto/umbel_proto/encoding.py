"""The one injective encoding that everything hashed or signed goes through.

Source: docs/spec/secure-aggregation.md, "Notation".
"""

from __future__ import annotations

import hashlib


def enc(*fields: bytes | str | int) -> bytes:
    """Encode fields so that no two different lists give the same bytes.

    Each field is its length as 8 bytes big-endian, then its bytes. Text is UTF-8; an
    integer is 8 bytes big-endian, unsigned.

    Raises:
        OverflowError: An integer is negative or needs more than 64 bits.
    """
    out: list[bytes] = []
    for field in fields:
        if isinstance(field, bytes):
            raw = field
        elif isinstance(field, str):
            raw = field.encode()
        else:
            raw = field.to_bytes(8, "big")
        out += (len(raw).to_bytes(8, "big"), raw)
    return b"".join(out)


def digest(label: str, *fields: bytes | str | int) -> bytes:
    """Hash fields under a label: SHA-256 of ``enc(label, ...)``, 32 bytes.

    Labels are ASCII and versioned (``umbel/1/...``), so that a hash made for one purpose
    can never stand for another.
    """
    return hashlib.sha256(enc(label, *fields)).digest()
