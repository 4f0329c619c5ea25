"""A model update as words to sum: clipped, rotated, rounded, noised, packed; and back.

Source: docs/spec/privacy.md, "Encoding".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from umbel_proto.errors import UsageError
from umbel_proto.privacy.rotate import smooth_length
from umbel_proto.privacy.slots import SLOTS

MAX_DIM = 1 << 30
MAX_VARIANCE = 1 << 24  # Standard deviation 4096: beyond it a sampler's table outgrows a device.
MAX_DENOMINATOR = 1 << 20
MAX_LENGTH = 1 << 30  # Keeps each value plus its noise in 32 bits and a sum of squares in 63.


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
            squared integer steps; at most 2**24, its denominator at most 2**20; 0 for none.

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
        if not length**2 <= self.bound_sq < MAX_LENGTH**2:
            raise UsageError(
                f"bound_sq is {self.bound_sq}: choose one from (scale * clip)**2 = {length**2:g} "
                f"to below {MAX_LENGTH**2}."
            )
        if not isinstance(self.noise, Fraction) or not 0 <= self.noise <= MAX_VARIANCE:
            raise UsageError(f"noise is {self.noise}: choose a fraction in [0, {MAX_VARIANCE}].")
        if self.noise.denominator > MAX_DENOMINATOR:
            raise UsageError(f"noise has denominator {self.noise.denominator}: at most {MAX_DENOMINATOR}.")

    @property
    def slots(self) -> int:
        """Values in a word."""
        return SLOTS[self.bits]

    @property
    def words(self) -> int:
        """Length of a packed update, in 64-bit words."""
        return -(-self.padded // self.slots)

    @property
    def bytes_per_parameter(self) -> float:
        """What a parameter costs on the wire, padding included."""
        return 8 * self.words / self.dim
