"""The specification in Python, without a line of umbel's code: slow, plain, and easy to compare with the text.

What ours and this agree on, another implementation can reach from docs/spec/ alone.
"""

from __future__ import annotations

import cmath
import hashlib
import hmac
import itertools
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PRIME = 2**256 - 189


def enc(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(8, "big") + field for field in fields)


def h(label: str, *fields: bytes) -> bytes:
    return hashlib.sha256(enc(label.encode(), *fields)).digest()


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869, SHA-256, no salt, 32 bytes."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def kdf(private: bytes, public: bytes, info: bytes) -> bytes:
    ours = X25519PrivateKey.from_private_bytes(private)
    return hkdf(ours.exchange(X25519PublicKey.from_public_bytes(public)), info)


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def keystream(key: bytes, begin: int, size: int) -> bytes:
    """AES-256 of the counter blocks 2, 3, .., one at a time: no mode of operation but ECB."""
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    first, last = begin // 16, -(-(begin + size) // 16)
    blocks = b"".join(cipher.update((block + 2).to_bytes(16, "big")) for block in range(first, last))
    return blocks[begin - 16 * first :][:size]


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]


def polynomial(coefficients: Sequence[int], x: int) -> int:
    return sum(c * pow(x, power, PRIME) for power, c in enumerate(coefficients)) % PRIME


def interpolate(shares: Mapping[int, int], at: int = 0) -> int:
    total = 0
    for x, share in shares.items():
        weight = 1
        for y in shares.keys() - {x}:
            weight = weight * (at - y) * pow(x - y, -1, PRIME) % PRIME
        total += weight * share
    return total % PRIME


def circulant(ids: Sequence[str], degree: int, sid: bytes, roster: bytes) -> list[list[int]]:
    """The neighbors of each position, ascending; degree below n - 1."""
    n = len(ids)
    order = sorted(range(n), key=lambda i: h("umbel/1/graph", sid, roster, ids[i].encode()))
    around: list[list[int]] = [[] for _ in ids]
    for place, position in enumerate(order):
        steps = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
        around[position] = sorted(order[(place + step) % n] for step in steps)
    return around


def bitmap(positions: Iterable[int], n: int) -> bytes:
    return sum(1 << i for i in positions).to_bytes(-(-n // 8), "little")


def pack(values: Sequence[int], bits: int) -> list[int]:
    slots = 64 // bits
    count = -(-len(values) // slots)
    return [
        sum(v << bits * (j // count) for j, v in enumerate(values) if j % count == word) % 2**64
        for word in range(count)
    ]


def unpack(packed: Sequence[int], bits: int, count: int) -> list[int]:
    columns = []
    for word in packed:
        column = []
        for _ in range(64 // bits):
            low = word % 2**bits
            low -= 2**bits if low >= 2 ** (bits - 1) else 0
            column.append(low)
            word = (word - low) >> bits
        columns.append(column)
    return list(itertools.chain.from_iterable(zip(*columns, strict=True)))[:count]


def quarters(seed: bytes, count: int) -> list[int]:
    stream = keystream(seed, 0, -(-count // 4))
    return [stream[j // 4] >> 2 * (j % 4) & 3 for j in range(count)]


def rotate(vector: Sequence[float], seed: bytes) -> list[float]:
    half = len(vector) // 2
    turns = quarters(seed, half)
    turned = [complex(vector[j], vector[j + half]) * 1j ** turns[j] for j in range(half)]
    out = [
        sum(u * cmath.exp(-2j * math.pi * j * k / half) for j, u in enumerate(turned)) / math.sqrt(half)
        for k in range(half)
    ]
    return [w.real for w in out] + [w.imag for w in out]


def round_up_at_random(z: float, coin: Fraction) -> int:
    """floor(z), plus 1 if the coin falls below the fraction."""
    return math.floor(z) + (coin < Fraction(z) - math.floor(z))


def skellam_renyi(alpha: int, bound_sq: Fraction, coordinates: int, mu: Fraction) -> Fraction:
    """5.1 of privacy.md in fractions; the root of coordinates * B^2 is rounded up to 2^-40."""
    root = Fraction(math.isqrt(math.ceil(coordinates * bound_sq * 2**80)) + 1, 2**40)
    l1 = min(root, bound_sq)
    rest = min(((2 * alpha - 1) * bound_sq + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
    return alpha * bound_sq / (2 * mu) + rest


def varint(value: int, *, padded: bool = False) -> bytes:
    """A protobuf integer; padded, in one byte more than it needs."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value | 128 if padded else value)
    return bytes(out) + b"\x00" * padded


def field(number: int, value: int | float | bytes, *, padded: bool = False) -> bytes:
    """A protobuf field: an integer or bool, a double, or bytes with their length."""
    match value:
        case int():
            return varint(number << 3) + varint(value, padded=padded)
        case float():
            return varint(number << 3 | 1) + struct.pack("<d", value)
        case _:
            return varint(number << 3 | 2) + varint(len(value), padded=padded) + value
