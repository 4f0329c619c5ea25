"""A model update as words to sum: clipped, rotated, rounded, noised, packed; and back.

Source: docs/spec/privacy.md, "Encoding".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream
from umbel_proto.privacy.rotate import rotate, smooth_length, unrotate
from umbel_proto.privacy.skellam import MAX_VARIANCE, SkellamSampler
from umbel_proto.privacy.slots import SLOTS, pack, unpack

MAX_DIM = 1 << 30
MAX_DENOMINATOR = 1 << 20
MAX_LENGTH = 1 << 30  # Keeps each value plus its noise in 32 bits and a sum of squares in 63.
SHRINK = 1 - 2**-20  # Absorbs what float32 may add to a length; decoding undoes it.
MAX_AUXILIARY = 64
ROUNDING_TRIES = 16
_TILE = 1 << 16  # Work buffers hold one tile, so an encoding never holds a float64 copy of the vector.


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a device turns an update into integers, the same for all devices of a session.

    Args:
        dim: Parameters of the model, in [1, 2**30].
        padded: ``smooth_length(dim)``, the coordinates after padding.
        bits: Bits of a slot: 16, 21 or 32, for 4, 3 or 2 slots a word.
        clip: C, the largest L2 norm of an update, in model units.
        scale: s, integer steps per model unit.
        bound_sq: B**2, the largest sum of squares of a device's integers before noise.
        noise: mu_local, the variance of the Skellam noise one device adds to one coordinate, in
            squared integer steps; at most 2**28, its denominator at most 2**20; 0 for none.
        auxiliary: Amplitudes, in integer steps, of the quantities summed beside the update, at most 64.

    Raises:
        UsageError: A value is out of its range, or does not fit the others.
    """

    dim: int
    padded: int
    bits: int
    clip: float
    scale: float
    bound_sq: int
    noise: Fraction
    auxiliary: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= MAX_DIM:
            raise UsageError(f"dim is {self.dim}: an update has 1 to {MAX_DIM} parameters.")
        if self.padded != smooth_length(self.dim):
            raise UsageError(f"padded is {self.padded}: for dim {self.dim} it is {smooth_length(self.dim)}.")
        if self.bits not in SLOTS:
            raise UsageError(f"bits is {self.bits}: a slot has {', '.join(map(str, SLOTS))} bits.")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise UsageError(f"clip is {self.clip}: choose a finite number > 0.")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(f"scale is {self.scale}: choose a finite number > 0.")
        length = self.scale * self.clip
        if not length + math.sqrt(self.padded) < MAX_LENGTH:
            raise UsageError(f"scale * clip is {length:g}: choose a scale that keeps it under {MAX_LENGTH}.")
        if len(self.auxiliary) > MAX_AUXILIARY:
            raise UsageError(f"{len(self.auxiliary)} auxiliary quantities: choose at most {MAX_AUXILIARY}.")
        if not all(0 < amplitude < MAX_LENGTH for amplitude in self.auxiliary):
            raise UsageError(f"An auxiliary amplitude is out of range: choose 1 to {MAX_LENGTH - 1} steps.")
        if not (length**2 <= self.vector_bound_sq and self.bound_sq < MAX_LENGTH**2):
            raise UsageError(
                f"bound_sq is {self.bound_sq}: choose one from (scale * clip)**2 plus the squares of the "
                f"auxiliary amplitudes = {length**2 + self._auxiliary_sq:g} to below {MAX_LENGTH**2}."
            )
        if not isinstance(self.noise, Fraction) or not 0 <= self.noise <= MAX_VARIANCE:
            raise UsageError(f"noise is {self.noise}: choose a fraction in [0, {MAX_VARIANCE}].")
        if self.noise.denominator > MAX_DENOMINATOR:
            raise UsageError(f"noise has denominator {self.noise.denominator}: at most {MAX_DENOMINATOR}.")

    @property
    def _auxiliary_sq(self) -> int:
        return sum(amplitude**2 for amplitude in self.auxiliary)

    @property
    def vector_bound_sq(self) -> int:
        """Bx**2, the part of ``bound_sq`` that the update may use."""
        return self.bound_sq - self._auxiliary_sq

    @property
    def coordinates(self) -> int:
        """All that noise is added to: the padded update and the auxiliary quantities."""
        return self.padded + len(self.auxiliary)

    @property
    def slots(self) -> int:
        """Values in a word."""
        return SLOTS[self.bits]

    @property
    def packed(self) -> int:
        """Length of a packed update, in 64-bit words."""
        return -(-self.padded // self.slots)

    @property
    def words(self) -> int:
        """Length of what a device sends, in 64-bit words: each auxiliary quantity has one of its own."""
        return self.packed + len(self.auxiliary)

    @property
    def bytes_per_parameter(self) -> float:
        """What a parameter costs on the wire, padding included."""
        return 8 * self.words / self.dim


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What a device hands to the masking, and what it must keep to itself.

    Args:
        words: The noised, packed update and what is summed beside it, shape (encoding.words,). Not
            for the wire before masking.
        norm: L2 norm of the update before clipping, model units. Never leaves the device.
        clipped: Whether the clip shortened it. Never leaves the device.
    """

    words: NDArray[np.uint64] = field(repr=False)
    norm: float = field(repr=False)
    clipped: bool = field(repr=False)


def encode(
    update: NDArray[np.float32],
    encoding: Encoding,
    *,
    rotation_seed: bytes,
    auxiliary: Sequence[float] = (),
    weight: float = 1.0,
    randomness: Keystream | None = None,
) -> Encoded:
    """Encode a model update as words that can be masked and summed.

    Args:
        update: Local minus global parameters, shape (dim,), in model units; left as it is.
        encoding: The session's.
        rotation_seed: 32 bytes, the same on all devices of the session.
        auxiliary: What to sum beside the update, each in [-1, 1], one for each amplitude.
        weight: How much of the clipped update goes into the sum, in [0, 1].
        randomness: Source of rounding coins and noise; by default fresh from the operating
            system. Give one only to reproduce a test vector: a known stream hides nothing.

    Raises:
        UsageError: The shape or type is wrong, a value is not finite and so has no place to be
            clipped to, or an auxiliary quantity or the weight is out of its range.

    Source:
        docs/spec/privacy.md, steps 1 to 6; Kairouz, Liu, Steinke, "The Distributed Discrete
        Gaussian Mechanism", ICML 2021 (arXiv 2102.06387), algorithm 1.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"The weight is {weight}: choose a number in [0, 1].")
    stream = randomness or Keystream()
    norm = norm_of(update, encoding)
    values = _integers(update, norm, weight, encoding, rotation_seed, stream)
    beside = _amplitudes(auxiliary, encoding, stream)
    if encoding.noise:
        sampler = SkellamSampler(encoding.noise)
        for tile in _tiles(values.size):
            values[tile] += sampler.sample(values[tile].size, stream)
        beside += sampler.sample(beside.size, stream)
    words = np.empty(encoding.words, np.uint64)
    words[: encoding.packed] = pack(values, encoding.bits)
    words[encoding.packed :] = beside.view(np.uint64)
    return Encoded(words, norm, norm > encoding.clip)


def decode(
    total: NDArray[np.uint64], encoding: Encoding, *, count: float, rotation_seed: bytes
) -> NDArray[np.float32]:
    """Return the mean update behind a sum of encoded ones, shape (dim,), in model units.

    Args:
        total: The unmasked sum mod 2**64, shape (encoding.words,).
        encoding: The session's.
        count: How many devices are in the sum, or the sum of their weights; > 0.
        rotation_seed: 32 bytes, the session's.

    Raises:
        UsageError: The shape or type is wrong, or ``count`` is not positive.
    """
    _check_total(total, encoding)
    if not count > 0:
        raise UsageError(f"count is {count}: a sum is over at least one device.")
    values = unpack(total[: encoding.packed], encoding.bits, encoding.padded)
    mean = np.empty(encoding.padded, np.float32)
    np.multiply(values, 1 / (encoding.scale * SHRINK * count), out=mean, casting="same_kind")
    return unrotate(mean, rotation_seed)[: encoding.dim]


def decode_auxiliary(total: NDArray[np.uint64], encoding: Encoding, *, count: int) -> NDArray[np.float64]:
    """Return the mean of each auxiliary quantity behind a sum, shape (auxiliary,).

    Each quantity is in [-1, 1] on its device; noise may take the mean outside.

    Args:
        total: The unmasked sum mod 2**64, shape (encoding.words,).
        encoding: The session's.
        count: How many devices are in the sum, >= 1.

    Raises:
        UsageError: The shape or type is wrong, or ``count`` is below 1.
    """
    _check_total(total, encoding)
    if count < 1:
        raise UsageError(f"count is {count}: a sum is over at least one device.")
    sums = total[encoding.packed :].view(np.int64).astype(np.float64)
    means: NDArray[np.float64] = sums / (np.array(encoding.auxiliary, np.float64) * count)
    return means


def auxiliary_error(encoding: Encoding, *, count: int) -> NDArray[np.float64]:
    """Return the standard deviation of each of ``decode_auxiliary``'s means, shape (auxiliary,).

    It counts all ``count`` devices' noise, and rounding at its largest.
    """
    deviation = math.sqrt(count * (float(encoding.noise) + 0.25))
    errors: NDArray[np.float64] = deviation / (np.array(encoding.auxiliary, np.float64) * count)
    return errors


def _check_total(total: NDArray[np.uint64], encoding: Encoding) -> None:
    if total.dtype != np.uint64 or total.shape != (encoding.words,):
        raise UsageError(
            f"The sum is {total.dtype} of shape {total.shape}: this encoding gives uint64 of shape "
            f"({encoding.words},)."
        )


def norm_of(update: NDArray[np.float32], encoding: Encoding) -> float:
    """Return the L2 norm of an update, computed in float64, model units.

    Raises:
        UsageError: The shape or type is wrong, or a value is not finite.
    """
    if update.dtype != np.float32 or update.shape != (encoding.dim,):
        raise UsageError(
            f"The update is {update.dtype} of shape {update.shape}: this encoding takes float32 of "
            f"shape ({encoding.dim},)."
        )
    squares = 0.0
    for tile in _tiles(update.size):
        wide = update[tile].astype(np.float64)
        squares += float(np.dot(wide, wide))
    if not math.isfinite(squares):
        raise UsageError("The update holds a value that is not finite: lower the learning rate.")
    return math.sqrt(squares)


def _integers(
    update: NDArray[np.float32],
    norm: float,
    weight: float,
    encoding: Encoding,
    rotation_seed: bytes,
    stream: Keystream,
) -> NDArray[np.int32]:
    """Clip, scale, rotate and round, shape (padded,): the values before noise.

    Their sum of squares, taken exactly, never exceeds ``encoding.vector_bound_sq``: the whole
    privacy guarantee stands on it, and no floating-point value does.
    """
    shrink = weight * (min(1.0, encoding.clip / norm) if norm > 0 else 1.0)
    scaled = np.zeros(encoding.padded, np.float32)
    np.multiply(
        update,
        np.float64(shrink * encoding.scale * SHRINK),
        out=scaled[: encoding.dim],
        dtype=np.float64,
        casting="same_kind",
    )
    rotated = rotate(scaled, rotation_seed, out=scaled)
    values = np.empty(encoding.padded, np.int32)
    for _ in range(ROUNDING_TRIES):
        _round(rotated, values, stream)
        if _sum_of_squares(values) <= encoding.vector_bound_sq:
            return values
    np.trunc(rotated, out=rotated)
    values[:] = rotated
    if _sum_of_squares(values) > encoding.vector_bound_sq:
        # Truncation shortens, and SHRINK covers the float errors before it: not reached, but if
        # it were, sending nothing keeps the promise and raising would tell that it happened.
        values[:] = 0
    return values


def _round(rotated: NDArray[np.float32], values: NDArray[np.int32], stream: Keystream) -> None:
    """Round each coordinate to a neighboring integer, up with the probability of its fraction."""
    for tile in _tiles(values.size):
        floors = np.floor(rotated[tile])
        coins = stream.read(4 * floors.size).view(np.dtype("<u4")) >> np.uint32(8)
        up = coins * np.float32(2**-24) < rotated[tile] - floors
        values[tile] = floors
        values[tile] += up


def _amplitudes(auxiliary: Sequence[float], encoding: Encoding, stream: Keystream) -> NDArray[np.int64]:
    """Round each auxiliary quantity times its amplitude, unbiased, shape (auxiliary,); never beyond it."""
    quantities = np.array(auxiliary, np.float64)
    if quantities.shape != (len(encoding.auxiliary),):
        raise UsageError(
            f"{quantities.size} auxiliary quantities: this encoding takes {len(encoding.auxiliary)}."
        )
    if not (np.abs(quantities) <= 1).all():
        raise UsageError("An auxiliary quantity is not in [-1, 1].")
    exact = quantities * np.array(encoding.auxiliary, np.float64)
    floors = np.floor(exact)
    coins = (stream.uint64(exact.size) >> np.uint64(11)) * 2.0**-53
    values: NDArray[np.int64] = floors.astype(np.int64) + (coins < exact - floors)
    return values


def _sum_of_squares(values: NDArray[np.int32]) -> int:
    """Return the exact sum of squares, below 2**60 as ``(scale * clip + sqrt(padded))**2`` is."""
    total = 0
    for tile in _tiles(values.size):
        wide = values[tile].astype(np.int64)
        total += int(np.dot(wide, wide))
    return total


def _tiles(size: int) -> Iterator[slice]:
    for low in range(0, size, _TILE):
        yield slice(low, min(low + _TILE, size))
