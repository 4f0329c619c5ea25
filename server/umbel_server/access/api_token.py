"""The text of an API token: a prefix and a checksum, so that whoever scans for leaked secrets finds it.

``umbel_``, then 43 characters of 0-9A-Za-z that stand for 32 random bytes, then 6 that are the CRC-32 of what
stands before them. Source: docs/spec/api-tokens.md.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "umbel_"
SECRET_BYTES = 32
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_CHARS, _CHECK_CHARS = 43, 6  # 62**43 > 2**256, 62**6 > 2**32.
PATTERN = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_CHARS + _CHECK_CHARS}}}")


def new_token() -> str:
    """Return a new token; whoever keeps a hash of it needs no salt, for nobody can guess it."""
    body = PREFIX + _base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES)), _SECRET_CHARS)
    return body + _check(body)


def looks_like_token(text: str) -> bool:
    """Return whether a text is a token by its form and checksum, whether anybody made it or not."""
    return (
        PATTERN.fullmatch(text) is not None
        and text.isascii()
        and _check(text[:-_CHECK_CHARS]) == text[-_CHECK_CHARS:]
    )


def token_hash(token: str) -> bytes:
    """Return what the store knows a token by; 32 bytes."""
    return hashlib.sha256(token.encode()).digest()


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_CHARS)


def _base62(number: int, chars: int) -> str:
    out = []
    for _ in range(chars):
        number, digit = divmod(number, len(_DIGITS))
        out.append(_DIGITS[digit])
    return "".join(reversed(out))
