"""A secure round in memory, without Flower's transport, against Flower's own SecAgg+.

Ours is all that the protocol asks of a party, message bytes in, message bytes out: credentials and
signatures, key agreement, shares, clipping, rotation, Skellam noise (z = 1), packing, masks; on the
server checks, routing, summing, opening and decoding. Every device and the server run in this process.

The baseline is what Flower's ``secaggplus_mod`` does on a device, its four stages as they are, and on the
server what its workflow does with the vectors and shares: ``bytes_to_ndarray``, ``parameters_addition``,
``combine_shares``, ``pseudo_rand_gen``, ``parameters_subtraction``, ``dequantize``, and key agreement for
lost devices. It has the same number of neighbors and the same threshold, and Flower's own defaults
otherwise. It has no signatures and no noise, which ours pays for, and it masks with a 32-bit seed.

Counted is CPU time of all threads (``process_time``), with one thread for numpy's products: the kernel
books a helper's time only at its ticks, and a device's share of it is shorter than one. Not counted are training, and what carries or
stores messages on either side. Flower's is timed on one device, and on the server for one secret of each
kind, and multiplied: a whole round of 64 would take minutes. Nobody is lost, but in the rows that say so:
there one in ten (at least one) falls silent between sharing and masking. Bytes are those of a device's
four or five answers: Flower's without its records' framing.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Before numpy is imported: see above.

import numpy as np
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from harness import Report

from umbel_proto.privacy.encode import decode, encode
from umbel_proto.privacy.plan import plan
from umbel_proto.secagg.graph import parameters
from umbel_proto.secagg.server import Opened
from umbel_proto.secagg.session import Descriptor, rotation_seed, session_id

sys.path.append(str(Path(__file__).resolve().parents[1] / "simulation"))

from fleet import Fleet, descriptor, policy

COHORTS = (8, 16, 64)
DIMS = (13_706, 100_000)
RUNS = 5
CLIP, NOISE_MULTIPLIER = 1.0, 1.0
FLOWER_CLIP, FLOWER_LEVELS, FLOWER_MODULUS, FLOWER_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a round took.

    Args:
        device_s: CPU seconds of one device.
        encode_s: Of these, to clip, rotate, round, add noise and pack; 0 where it is not told apart.
        server_s: CPU seconds of the server, nobody lost.
        server_lost_s: The same with one device in ten lost.
        bytes_up: Of one device's answers.
        vector_bytes: Of these, its masked update.
    """

    device_s: float
    encode_s: float
    server_s: float
    server_lost_s: float
    bytes_up: float
    vector_bytes: float


class Watch:
    """Adds up CPU seconds."""

    def __init__(self) -> None:
        self.total = 0.0

    def time(self, work: Callable[[], T]) -> T:
        begin = time.process_time()
        try:
            return work()
        finally:
            self.total += time.process_time() - begin


def lost_of(n: int) -> int:
    return max(1, n // 10)


def session(n: int, dim: int) -> Descriptor:
    """A session whose sum has noise of z = 1 against the server."""
    shape = descriptor()
    rules = policy(min_cohort=n - lost_of(n))
    planned = plan(
        dim=dim,
        clip=CLIP,
        devices=n,
        honest=rules.honest(rules.min_cohort),
        participations=10,
        delta=1e-5,
        noise_multiplier=NOISE_MULTIPLIER,
    )
    return replace(shape, encoding=planned.encoding, min_cohort=rules.min_cohort)


def umbel_round(n: int, dim: int, *, lost: int) -> Cost:
    fleet = Fleet(n, session=session(n, dim))
    encoding = fleet.descriptor.encoding
    seed = rotation_seed(session_id(fleet.descriptor.to_bytes()))
    chance = np.random.default_rng(n)
    update = chance.standard_normal(dim).astype(np.float32) / np.float32(dim**0.5)
    devices, encodes, server = Watch(), Watch(), Watch()
    vectors, sent, vector_bytes = {}, 0, 0
    for phase in ("train", "share", "mask", "confirm", "unmask"):
        for name in list(fleet.requests):
            if phase == "mask":
                if int(name[1:]) < lost:
                    continue
                vectors[name] = encodes.time(lambda: encode(update, encoding, rotation_seed=seed).words)
                fleet.vectors = vectors
            reply = devices.time(lambda name=name: fleet.ask(name))
            sent += len(reply.message)
            if reply.words is not None:
                vector_bytes += reply.words.nbytes
            server.time(lambda name=name, reply=reply: fleet.answer(name, reply))
        server.time(fleet.close)
    end = fleet.server
    assert isinstance(end, Opened)
    count = n - lost
    mean = server.time(lambda: decode(end.total, encoding, count=count, rotation_seed=seed))
    # Noise of z = 1 is about the bound's size in the sum: a wrong mask would be far outside.
    assert np.abs(mean - update).max() < 20 / count
    encode_s = encodes.total / count
    device_s = devices.total / count + encode_s
    total = server.total
    return Cost(device_s, encode_s, total, total, (sent + vector_bytes) / count, vector_bytes / count)


def umbel_cost(n: int, dim: int) -> Cost:
    whole, broken = umbel_round(n, dim, lost=0), umbel_round(n, dim, lost=lost_of(n))
    return replace(whole, server_lost_s=broken.server_s)


def flower_cost(n: int, dim: int) -> Cost:
    """Time Flower's device 0 and one of each of the server's steps."""
    shape = parameters(n, corrupt_fraction=0.1, dropout_fraction=0.2, server_malicious=True)
    shares, lost = shape.degree + 1, min(lost_of(n), shape.degree)
    settings: dict[Any, Any] = {
        Key.SAMPLE_NUMBER: n,
        Key.SHARE_NUMBER: shares,
        Key.THRESHOLD: shape.threshold,
        Key.CLIPPING_RANGE: FLOWER_CLIP,
        Key.TARGET_RANGE: FLOWER_LEVELS,
        Key.MOD_RANGE: FLOWER_MODULUS,
        Key.MAX_WEIGHT: FLOWER_WEIGHT,
    }
    chance = np.random.default_rng(n)
    update = [chance.standard_normal(dim).astype(np.float32) / np.float32(dim**0.5)]
    states = [SecAggPlusState() for _ in range(shares)]
    for number, state in enumerate(states):
        state.nid = number + 1
    device, own = Watch(), states[0]
    setup = device.time(lambda: _setup(own, settings))
    for state in states[1:]:
        _setup(state, settings)
    keys = {str(state.nid): (state.pk1, state.pk2) for state in states}
    shared = device.time(lambda: _share_keys(own, keys))
    # What the neighbors would have sent: boxes of the right length. Dealing real shares takes them seconds.
    piece = own.rd_seed_share_dict[1], own.sk1_share_dict[1]
    boxes = [
        encrypt(
            generate_shared_key(bytes_to_private_key(other.sk2), bytes_to_public_key(own.pk2)),
            share_keys_plaintext_concat(other.nid, own.nid, *piece),
        )
        for other in states[1:]
    ]
    received: dict[Any, Any] = {
        Key.CIPHERTEXT_LIST: boxes,
        Key.SOURCE_LIST: [other.nid for other in states[1:]],
    }
    packed = ndarrays_to_parameters(update)
    masked = device.time(lambda: _collect_masked_vectors(own, received, 100, packed))
    everyone: dict[Any, Any] = {
        Key.ACTIVE_NODE_ID_LIST: [state.nid for state in states],
        Key.DEAD_NODE_ID_LIST: [],
    }
    revealed = device.time(lambda: _unmask(own, everyone))

    raw = masked[Key.MASKED_PARAMETERS]
    add, opening, pair, final = Watch(), Watch(), Watch(), Watch()
    arrays = add.time(lambda: [bytes_to_ndarray(data) for data in raw])
    total = add.time(lambda: parameters_addition(arrays, arrays))
    sizes = get_parameters_shape(total)
    dealt = create_shares(own.rd_seed, shape.threshold, shares)
    seed = opening.time(lambda: combine_shares(dealt))
    assert seed == own.rd_seed
    noise = opening.time(lambda: pseudo_rand_gen(seed, FLOWER_MODULUS, sizes))
    total = opening.time(lambda: parameters_subtraction(total, noise))
    whole = n * (add.total + opening.total)
    # A lost device: its key from the shares, then one agreement and one mask for each neighbor.
    dealt = create_shares(own.sk1, shape.threshold, shares)
    recover = Watch()
    key = recover.time(lambda: combine_shares(dealt))
    assert key == own.sk1

    def unpair() -> None:
        agreed = generate_shared_key(bytes_to_private_key(key), bytes_to_public_key(states[1].pk1))
        parameters_addition(total, pseudo_rand_gen(agreed, FLOWER_MODULUS, sizes))

    pair.time(unpair)
    broken = (n - lost) * (add.total + opening.total) + lost * (recover.total + shape.degree * pair.total)

    def finish() -> None:
        factor, rest = factor_extract(parameters_mod(total, FLOWER_MODULUS))
        for vector in dequantize(rest, FLOWER_CLIP, FLOWER_LEVELS):
            vector += -FLOWER_CLIP
            vector *= FLOWER_LEVELS / max(factor, 1)

    final.time(finish)
    vector_bytes = sum(map(len, raw))
    small = (*setup.values(), *shared[Key.CIPHERTEXT_LIST], *revealed[Key.SHARE_LIST])
    return Cost(
        device.total,
        0.0,
        whole + final.total,
        broken + final.total,
        vector_bytes + sum(map(len, small)),
        vector_bytes,
    )


def median(costs: list[Cost], field: str) -> float:
    return statistics.median(getattr(cost, field) for cost in costs)


def main() -> None:
    report = Report("round")
    umbel_round(8, 40, lost=0), flower_cost(8, 40)  # Lazy imports are not what is measured.
    for n in COHORTS:
        for dim in DIMS:
            pairs = [(umbel_cost(n, dim), flower_cost(n, dim)) for _ in range(RUNS)]
            ours, flower = [pair[0] for pair in pairs], [pair[1] for pair in pairs]

            def compare(what: str, field: str, n=n, dim=dim, ours=ours, flower=flower) -> None:
                name = f"n = {n}, d = {dim}: {what}"
                report.ratio(name, 1e3 * median(ours, field), 1e3 * median(flower, field), unit="ms")

            compare("a device", "device_s")
            report.value(f"n = {n}, d = {dim}:   of it encoding", 1e3 * median(ours, "encode_s"), unit="ms")
            compare("the server", "server_s")
            compare(f"the server, {lost_of(n)} lost", "server_lost_s")
            report.value(
                f"n = {n}, d = {dim}: masked update, a parameter",
                median(ours, "vector_bytes") / dim,
                unit="B",
                at_most=2.67,
                baseline=median(flower, "vector_bytes") / dim,
            )
            report.value(
                f"n = {n}, d = {dim}: all a device sends, a parameter",
                median(ours, "bytes_up") / dim,
                unit="B",
                baseline=median(flower, "bytes_up") / dim,
            )
    report.finish()


if __name__ == "__main__":
    main()
