"""A secure round in memory, and what it is made of, against Flower's own SecAgg+ and against the machine's limits.

Ours is all that the protocol asks of a party, message bytes in, message bytes out: credentials and
signatures, key agreement, shares, clipping, rotation, Skellam noise (z = 1), packing, masks; on the
server checks, routing, summing, opening and decoding. Every device and the server run in this process.
One device in twenty falls silent between sharing and masking.

The baseline is what Flower's ``secaggplus_mod`` does on a device, its four stages as they are, and on the
server what its workflow does with the vectors and shares: ``bytes_to_ndarray``, ``parameters_addition``,
``combine_shares``, ``pseudo_rand_gen``, ``parameters_subtraction``, ``dequantize``, and key agreement for
lost devices. It has the same number of neighbors and the same threshold, and Flower's own defaults
otherwise. It has no signatures and no noise, which ours pays for, and it masks with a 32-bit seed.

Counted is CPU time of all threads (``process_time``), with one thread for numpy's products. Not counted are
training, and what carries or stores messages on either side.

- A device of ours: the least over those that finished, each timed through all five phases. Encoding and
  masking are timed on a few of them, and where masking for all would take long, the others send noise in its
  place: the server cannot tell, but the sum is not checked then (``sampled`` in the row's name).
- Our server: the least of several runs of the same recorded answers, with one update in flight.
- Flower's device: device 0, its keys and shares once, the rest the least of three or, where they take seconds, once. Flower's server: one step of each kind, times their number, for a whole
  round would take minutes.
- Peak memory of the server is what Python and numpy allocated (``tracemalloc``), from the first update to
  the decoded sum with one update in flight; of a device, by how much the process grew (``VmHWM``, Linux)
  from the update in memory to the masked one, and the update itself.
- Bytes are those of a device's five answers: Flower's without its records' framing.

Usage: python tests/bench/secagg.py [COHORT ...] [DIM ...], as in: 64 256 1e6.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import secrets
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
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
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from harness import Report
from numpy.typing import NDArray

from umbel_proto.ids import DeviceId
from umbel_proto.prg import TILE_BYTES, Keystream, Tile
from umbel_proto.privacy.encode import Encoding, decode, encode
from umbel_proto.privacy.plan import plan
from umbel_proto.privacy.skellam import SkellamSampler
from umbel_proto.secagg import device, server
from umbel_proto.secagg.graph import Parameters
from umbel_proto.secagg.masks import Words, add_masks, zeros
from umbel_proto.secagg.session import Descriptor, rotation_seed, session_id
from umbel_proto.secagg.shamir import combine, deal, draw_element

sys.path.append(str(Path(__file__).resolve().parents[1] / "simulation"))

from fleet import NOW_S, Fleet, descriptor, policy

DIMS = (100_000, 1_000_000, 10_000_000)
DIM = 1_000_000
"""The dimension that the targets are for."""

FRACTIONS = {16: (0.1, 0.4), 64: (0.1, 0.4), 256: (0.1, 0.4), 1024: (0.1, 0.1)}
"""Cohort -> corrupt and dropout fraction: complete graphs, and k = 96 in the largest."""

DEVICE_S = {64: 0.05, 256: 0.12, 1024: 0.10}
SERVER_S = {64: 0.15, 256: 1.5, 1024: 4.0}
DEVIATION = 158
"""Of the noise that the sampler's target is for: that of 1024 devices with 1e6 parameters here."""

SAMPLE = 8  # Devices whose encoding and masking is timed where not all are.
MASK_BYTES = 3e11  # As much keystream as a round may cost before only a sample of its devices masks.
CLIP, NOISE_MULTIPLIER = 1.0, 1.0
FLOWER_CLIP, FLOWER_LEVELS, FLOWER_MODULUS, FLOWER_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0

T = TypeVar("T")


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


def least(*works: Callable[[], object], rounds: int = 15, at_least_s: float = 0.004) -> list[float]:
    """Return the least CPU seconds of each work, taken in turn: what others do hits all alike."""
    counts, best = [], []
    for work in works:
        work()
        begin = time.perf_counter()
        work()
        counts.append(max(1, int(at_least_s / (time.perf_counter() - begin + 1e-9))))
        best.append(float("inf"))
    for _ in range(rounds):
        for i, work in enumerate(works):
            begin = time.perf_counter()
            for _ in range(counts[i]):
                work()
            best[i] = min(best[i], (time.perf_counter() - begin) / counts[i])
    return best


# One round of ours.


@dataclass(frozen=True, slots=True)
class Cost:
    """What a round took.

    Args:
        shape: The masking graph's.
        device_s: CPU seconds of one device.
        encode_s: Of these, to clip, rotate, round, add noise and pack.
        mask_s: Of these, to open boxes, agree on keys, and expand and add the masks.
        server_s: CPU seconds of the server.
        bytes_up: Of one device's answers.
        vector_bytes: Of these, its masked update.
        server_peak: Most memory of the server, in bytes, from the first update to the decoded sum.
        share_peak: The same before, when there are shares and no updates.
        device_peak: Most memory of a device while it encodes and masks, in bytes.
        checked: Whether all masked for real, and the sum was what it should be.
    """

    shape: Parameters
    device_s: float
    encode_s: float
    mask_s: float
    server_s: float
    bytes_up: float
    vector_bytes: int
    server_peak: int
    share_peak: int
    device_peak: int
    checked: bool


def resident(what: str) -> int:
    """Return the resident memory of this process, VmRSS, or its peak, VmHWM, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def lost_of(n: int) -> int:
    return max(1, n // 20)


def session(n: int, dim: int) -> Descriptor:
    """A session whose sum has noise of z = 1 against the server."""
    corrupt, dropout = FRACTIONS[n]
    rules = policy(min_cohort=n - 2 * lost_of(n), corrupt_fraction=corrupt, dropout_fraction=dropout)
    planned = plan(
        dim=dim,
        clip=CLIP,
        devices=n,
        honest=rules.honest(rules.min_cohort),
        participations=10,
        delta=1e-5,
        noise_multiplier=NOISE_MULTIPLIER,
    )
    return replace(
        descriptor(),
        encoding=planned.encoding,
        min_cohort=rules.min_cohort,
        corrupt_fraction=corrupt,
        dropout_fraction=dropout,
    )


class Round:
    """A round whose every answer is recorded, so that the server can be run again on the same.

    Args:
        n: Devices.
        dim: Parameters.
    """

    def __init__(self, n: int, dim: int) -> None:
        chance = np.random.default_rng(n)
        self.n, self.lost = n, lost_of(n)
        self.update = chance.standard_normal(dim).astype(np.float32) / np.float32(dim**0.5)
        wanted = session(n, dim)
        self.encoding: Encoding = wanted.encoding
        # A fleet draws a vector for each device: a short one, for they are not used.
        self.fleet = Fleet(n, session=replace(wanted, encoding=descriptor().encoding))
        self.fleet.descriptor = wanted
        self.fleet.requests = dict.fromkeys(self.fleet.ids, wanted.to_bytes())
        self.fleet.server = self.opened_from = server.open_session(
            wanted, authority=self.fleet.authority.public, invited=self.fleet.ids, now_s=NOW_S
        )
        self.seed = rotation_seed(session_id(wanted.to_bytes()))
        self.times = {name: Watch() for name in self.fleet.ids}
        self.encodes: list[float] = []
        self.masks: list[float] = []
        self.sent = 0
        self.events: list[list[server.Event]] = []
        self.masked: Words | None = None
        self.device_peak = 0

    def run(self) -> Cost:
        fleet = self.fleet
        shape = fleet.descriptor.graph_parameters(self.n)
        checked = self.n * shape.degree * 8.0 * self.encoding.words <= MASK_BYTES
        # The same for all whose encoding is not timed: with noise, it would add up to n times as much.
        quiet = replace(self.encoding, noise=Fraction(0))
        encoded = encode(self.update, quiet, rotation_seed=self.seed).words
        noise = np.frombuffer(secrets.token_bytes(8 * self.encoding.words), np.uint64)
        silent = set(fleet.ids[: self.lost])
        real = set(fleet.ids[self.lost :] if checked else fleet.ids[self.lost : self.lost + SAMPLE])
        for phase in ("train", "share", "mask", "confirm", "unmask"):
            tape: list[server.Event] = []
            for name in list(fleet.requests):
                if phase == "mask" and name in silent:
                    continue
                masks = phase == "mask"
                words = encoded
                if masks and len(self.encodes) < SAMPLE:
                    words = self._encode()
                fleet.vectors = {name: words}
                watch, state = self.times[name], fleet.devices[name]
                before = watch.total
                reply = watch.time(lambda name=name: fleet.ask(name)) if not masks or name in real else None
                if reply is None:
                    # Its keys and shares are real, for it answers the phases to come; its masks are not.
                    reply = self._ask_without_masks(name, noise)
                elif masks:
                    self.masks.append(watch.total - before)
                if masks:
                    self._forget_words(name)
                if masks and not self.device_peak:
                    self.device_peak = self._device_peak(state, fleet.requests[name])
                self.sent += len(reply.message)
                event = fleet.reply_event(name, reply)
                fleet.tell(event)
                # The vectors are too large to keep: a run of the tape sums the same one again and again.
                tape.append(replace(event, words=noise) if masks else event)
            self.events.append(tape)
            fleet.close()
        end, count = fleet.server, self.n - self.lost
        assert isinstance(end, server.Opened), end
        if checked:
            mean = decode(end.total, self.encoding, count=count, rotation_seed=self.seed)
            # The slots that overflow are rare, but unrotated each is in every parameter: hence the factor.
            # With a wrong mask the sum would be uniform over its slots.
            noise_sd = float(count * self.encoding.noise + count / 4) ** 0.5 / (self.encoding.scale * count)
            assert np.median(np.abs(mean - self.update)) < 2 * noise_sd, (self.n, noise_sd)
        encode_s = min(self.encodes)
        mask_s = min(self.masks)
        others = [self.times[name].total for name in fleet.ids if name in real]
        vector_bytes = 8 * self.encoding.words
        del end
        fleet.server, fleet.vectors = self.opened_from, {}
        server_s = min(self._run_server() for _ in range(3 if self.n < 256 else 2))
        return Cost(
            shape,
            min(others) + encode_s,
            encode_s,
            mask_s,
            server_s,
            self.sent / count + vector_bytes,
            vector_bytes,
            *self._server_peak(),
            self.device_peak,
            checked,
        )

    def _encode(self) -> Words:
        watch = Watch()
        words = watch.time(lambda: encode(self.update, self.encoding, rotation_seed=self.seed).words)
        self.encodes.append(watch.total)
        return words

    def _ask_without_masks(self, name: str, noise: Words) -> device.Reply:
        fleet = self.fleet
        state = fleet.devices[name]
        assert isinstance(state, device.Shared)
        accepted = device.accept(state, fleet.requests[name])
        event = fleet.event(name, fleet.requests[name])
        fleet.devices[name], reply = device.step(replace(accepted, plus=(), minus=()), event)
        return device.Reply(reply.message, noise)

    def _forget_words(self, name: DeviceId) -> None:
        """Drop the copy that a device keeps in case it is asked again: here they would add up."""
        state = self.fleet.devices[name]
        assert isinstance(state, device.Masked)
        answer = replace(state.answer, reply=replace(state.answer.reply, words=None))
        self.fleet.devices[name] = replace(state, answer=answer)
        self.fleet.replies.pop(name, None)

    def _device_peak(self, state: device.State, request: bytes) -> int:
        """Encode and mask once more, from the state before, and return the most memory in use."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # Else memory freed before would be used and not seen.
        Path("/proc/self/clear_refs").write_text("5")  # Forget the peak so far: proc(5).
        before = resident("VmRSS")
        words = encode(self.update, self.encoding, rotation_seed=self.seed).words
        device.step(state, device.SharesReceived(request, words))
        return resident("VmHWM") - before + self.update.nbytes

    def _tape(self) -> Iterator[server.Event]:
        for events in self.events:
            yield from events
            yield server.Closed()

    def _run_server(self) -> float:
        watch, state = Watch(), self.opened_from
        gc.collect()
        for event in self._tape():
            state, _ = watch.time(lambda state=state, event=event: server.step(state, event))
        assert isinstance(state, server.Opened), state
        count = len(state.survivors)
        watch.time(lambda: decode(state.total, self.encoding, count=count, rotation_seed=self.seed))
        return watch.total

    def _server_peak(self) -> tuple[int, int]:
        state, share_peak = self.opened_from, 0
        gc.collect()
        tracemalloc.start()
        for event in self._tape():
            if isinstance(event, server.MaskedSent) and not share_peak:
                share_peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.reset_peak()
            state, _ = server.step(state, event)
        assert isinstance(state, server.Opened)
        decode(state.total, self.encoding, count=len(state.survivors), rotation_seed=self.seed)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak + 8 * self.encoding.words, share_peak  # The update in flight is the tape's.


# Flower's SecAgg+.


class Flower:
    """Flower's device 0 with all its neighbors, as far as it needs them, and one of each of the server's steps.

    Args:
        n: Devices.
        shape: Of the masking graph: the neighbors and the threshold.
    """

    def __init__(self, n: int, shape: Parameters) -> None:
        self.n, self.shape, self.shares = n, shape, shape.degree + 1
        settings: dict[Any, Any] = {
            Key.SAMPLE_NUMBER: n,
            Key.SHARE_NUMBER: self.shares,
            Key.THRESHOLD: shape.threshold,
            Key.CLIPPING_RANGE: FLOWER_CLIP,
            Key.TARGET_RANGE: FLOWER_LEVELS,
            Key.MOD_RANGE: FLOWER_MODULUS,
            Key.MAX_WEIGHT: FLOWER_WEIGHT,
        }
        self.states = [SecAggPlusState() for _ in range(self.shares)]
        for number, state in enumerate(self.states):
            state.nid = number + 1
        device_, self.own = Watch(), self.states[0]
        own = self.own
        setup = device_.time(lambda: _setup(own, settings))
        for state in self.states[1:]:
            _setup(state, settings)
        keys = {str(state.nid): (state.pk1, state.pk2) for state in self.states}
        shared = device_.time(lambda: _share_keys(own, keys))
        self.keys_s = device_.total
        self.small = sum(map(len, (*setup.values(), *shared[Key.CIPHERTEXT_LIST])))
        # What the neighbors would have sent: boxes of the right length. Dealing real shares takes them seconds.
        piece = own.rd_seed_share_dict[1], own.sk1_share_dict[1]
        boxes = [
            encrypt(
                generate_shared_key(bytes_to_private_key(other.sk2), bytes_to_public_key(own.pk2)),
                share_keys_plaintext_concat(other.nid, own.nid, *piece),
            )
            for other in self.states[1:]
        ]
        self.received: dict[Any, Any] = {
            Key.CIPHERTEXT_LIST: boxes,
            Key.SOURCE_LIST: [other.nid for other in self.states[1:]],
        }
        # Opening: a seed of 32 bytes, and a key, whose PEM is several times as long.
        self.seed_s, self.key_s = (self._combining(secret) for secret in (own.rd_seed, own.sk1))

    def _combining(self, secret: bytes) -> float:
        # Flower combines all the shares it got, from those that survived.
        got, watch = round(self.shares * (1 - lost_of(self.n) / self.n)), Watch()
        dealt = create_shares(secret, self.shape.threshold, self.shares)[:got]
        assert watch.time(lambda: combine_shares(dealt)) == secret
        return watch.total

    def cost(self, update: NDArray[np.float32]) -> tuple[float, float, float, int]:
        """Return the least of three runs of ``run``, of one where each takes seconds."""
        runs = 3 if update.size * self.shares < 5e8 else 1
        device_s, server_s, bytes_up, vector_bytes = zip(
            *(self.run(update) for _ in range(runs)), strict=True
        )
        return min(device_s), min(server_s), bytes_up[0], vector_bytes[0]

    def run(self, update: NDArray[np.float32]) -> tuple[float, float, float, int]:
        """Return CPU seconds of a device and of the server, the bytes of a device's answers and of its vector."""
        own, shape, lost = self.own, self.shape, lost_of(self.n)
        packed = ndarrays_to_parameters([update])
        device_ = Watch()
        masked = device_.time(lambda: _collect_masked_vectors(own, self.received, 100, packed))
        everyone: dict[Any, Any] = {
            Key.ACTIVE_NODE_ID_LIST: [state.nid for state in self.states],
            Key.DEAD_NODE_ID_LIST: [],
        }
        revealed = device_.time(lambda: _unmask(own, everyone))
        raw = masked[Key.MASKED_PARAMETERS]
        each, pair, final = Watch(), Watch(), Watch()
        arrays = each.time(lambda: [bytes_to_ndarray(data) for data in raw])
        total = each.time(lambda: parameters_addition(arrays, arrays))
        sizes = get_parameters_shape(total)
        noise = each.time(lambda: pseudo_rand_gen(own.rd_seed, FLOWER_MODULUS, sizes))
        total = each.time(lambda: parameters_subtraction(total, noise))

        def unpair() -> None:
            agreed = generate_shared_key(
                bytes_to_private_key(own.sk1), bytes_to_public_key(self.states[1].pk1)
            )
            parameters_addition(total, pseudo_rand_gen(agreed, FLOWER_MODULUS, sizes))

        pair.time(unpair)

        def finish() -> None:
            factor, rest = factor_extract(parameters_mod(total, FLOWER_MODULUS))
            for vector in dequantize(rest, FLOWER_CLIP, FLOWER_LEVELS):
                vector += -FLOWER_CLIP
                vector *= FLOWER_LEVELS / max(factor, 1)

        final.time(finish)
        alive = self.n - lost
        # A lost device's neighbors are those that survived: its share of the lost is not counted.
        near = round(shape.degree * alive / self.n)
        opening_s = alive * self.seed_s + lost * self.key_s
        server_s = opening_s + alive * each.total + lost * near * pair.total + final.total
        vector_bytes = sum(map(len, raw))
        bytes_up = self.small + sum(map(len, revealed[Key.SHARE_LIST])) + vector_bytes
        return self.keys_s + device_.total, server_s, bytes_up, vector_bytes


# The rows.


def limits(report: Report) -> None:
    """What the machine can do, and how near the parts of a round come to it. All with one thread."""
    size, count = 2 * DIM, 32  # Bytes of an update in 16-bit slots; masks to add to it.
    words, other = zeros(size // 8), zeros(size // 8)
    key, keys = secrets.token_bytes(32), [secrets.token_bytes(32) for _ in range(count)]
    data, whole = words.tobytes(), Tile.of(TILE_BYTES)
    stream = Keystream(key)

    def keystream() -> None:
        for _ in range(count * size // TILE_BYTES):
            stream.fill(whole)

    def expand() -> None:
        for each in keys:
            fresh = Keystream(each)
            for low in range(0, size, TILE_BYTES):
                fresh.fill(whole if size - low >= TILE_BYTES else whole.first(size - low))

    aes, expanded, added, one, sums, copy, sha, flower = least(
        keystream,
        expand,
        lambda: add_masks(words, plus=keys),
        lambda: add_masks(words, plus=keys[:1]),
        lambda: np.add(words, other, out=words),
        lambda: np.copyto(words, other),
        lambda: hashlib.sha256(data).digest(),
        lambda: parameters_addition(
            [np.zeros(DIM, np.int64)], pseudo_rand_gen(key, FLOWER_MODULUS, [(DIM,)])
        ),
        rounds=25,
    )
    rate = count * size / aes / 1e9 * (count * size // TILE_BYTES * TILE_BYTES) / (count * size)
    report.value("AES-256 keystream in the cache", rate, unit="GB/s")
    report.value(f"copy {size / 1e6:g} MB", size / copy / 1e9, unit="GB/s")
    report.value(f"add {size / 1e6:g} MB to {size / 1e6:g} MB", size / sums / 1e9, unit="GB/s")
    report.value(f"SHA-256 of {size / 1e6:g} MB", size / sha / 1e9, unit="GB/s")
    goal = 0.85 * rate
    report.value(
        f"{count} masks, expanded", count * size / expanded / 1e9, unit="GB/s", baseline=rate, at_least=goal
    )
    report.value(f"{count} masks, expanded and added", count * size / added / 1e9, unit="GB/s", baseline=rate)
    report.ratio("a mask of 1e6 parameters, of many", 1e3 * added / count, 1e3 * flower, unit="ms")
    report.ratio("a mask of 1e6 parameters, alone", 1e3 * one, 1e3 * flower, unit="ms")


def parts(report: Report) -> None:
    """Shares, noise and encoding by themselves."""
    for shares, threshold in ((64, 36), (96, 67), (256, 141)):
        share_times(report, shares, threshold)
    for deviation in (50, 158, 860, 4000):
        sampler_rate(report, deviation)
    chance = np.random.default_rng(0)
    encoding = session(64, DIM).encoding
    update = chance.standard_normal(DIM).astype(np.float32) / np.float32(DIM**0.5)
    seed = bytes(32)
    encode_s, decode_s, quantize_s = least(
        lambda: encode(update, encoding, rotation_seed=seed),
        lambda: decode(zeros(encoding.words), encoding, count=64, rotation_seed=seed),
        lambda: quantize([update], FLOWER_CLIP, FLOWER_LEVELS),
    )
    report.ratio(
        "encode 1e6 parameters, Flower's quantize beside it", 1e3 * encode_s, 1e3 * quantize_s, unit="ms"
    )
    report.value("decode a sum of 1e6 parameters", 1e3 * decode_s, unit="ms")


def share_times(report: Report, shares: int, threshold: int) -> None:
    secret, points = draw_element(), range(1, shares + 1)
    dealt = deal(secret, points=points, threshold=threshold)
    some = {point: dealt[point] for point in points[:threshold]}
    ours = least(lambda: deal(secret, points=points, threshold=threshold), lambda: combine(some), rounds=7)
    dealing, combining = Watch(), Watch()
    theirs = dealing.time(lambda: create_shares(secret, threshold, shares))
    combining.time(lambda: combine_shares(theirs))
    name = f"{threshold} of {shares} shares"
    report.ratio(f"deal {name}", 1e3 * ours[0], 1e3 * dealing.total, unit="ms")
    report.ratio(f"combine {name}", 1e3 * ours[1], 1e3 * combining.total, unit="ms")


def sampler_rate(report: Report, deviation: int) -> None:
    chance, stream, count, variance = np.random.default_rng(0), Keystream(), 1 << 16, deviation**2
    sampler = SkellamSampler(Fraction(variance))
    ours_s, numpy_s = least(
        lambda: sampler.sample(count, stream),
        lambda: chance.poisson(variance / 2, count) - chance.poisson(variance / 2, count),
    )
    report.value(
        f"noise of deviation {deviation}, numpy's Poisson beside it",
        count / ours_s / 1e6,
        unit="M/s",
        baseline=count / numpy_s / 1e6,
        at_least=200 if deviation == DEVIATION else None,
    )


def rounds(report: Report, n: int, dims: Sequence[int]) -> None:
    """Whole rounds of n devices."""
    flower = None
    for dim in dims:
        cost = Round(n, dim).run()
        flower = flower or Flower(n, cost.shape)
        update = np.full(dim, dim**-0.5, np.float32)
        theirs_device_s, theirs_server_s, theirs_bytes, theirs_vector = flower.cost(update)
        what = f"n = {n}, k = {cost.shape.degree}, d = 1e{len(str(dim)) - 1}"
        what += ": " if cost.checked else ", sampled: "
        aimed = dim == DIM
        report.value(
            what + "a device",
            1e3 * cost.device_s,
            unit="ms",
            baseline=1e3 * theirs_device_s,
            at_most=1e3 * DEVICE_S[n] if aimed and n in DEVICE_S else None,
        )
        report.value(what + "  of it encoding", 1e3 * cost.encode_s, unit="ms")
        report.value(what + "  of it masking", 1e3 * cost.mask_s, unit="ms")
        report.value(
            what + "the server",
            1e3 * cost.server_s,
            unit="ms",
            baseline=1e3 * theirs_server_s,
            at_most=1e3 * SERVER_S[n] if aimed and n in SERVER_S else None,
        )
        if aimed and n in SERVER_S:
            times = theirs_device_s / cost.device_s
            report.value(what + "a device, times faster", times, unit="", at_least=12 if n == 64 else None)
            times = theirs_server_s / cost.server_s
            report.value(what + "the server, times faster", times, unit="", at_least=40)
        report.value(
            what + "masked update, a parameter",
            cost.vector_bytes / dim,
            unit="B",
            at_most=2.67,
            baseline=theirs_vector / dim,
        )
        report.value(
            what + "all a device sends, a parameter",
            cost.bytes_up / dim,
            unit="B",
            baseline=theirs_bytes / dim,
        )
        size = cost.vector_bytes
        report.value(what + "peak of the server, in updates sent", cost.server_peak / size, unit="")
        report.value(what + "  while it has only shares", cost.share_peak / 1e6, unit="MB")
        report.value(what + "peak of a device, in updates sent", cost.device_peak / size, unit="")
        report.value(
            what + "peak of a device, in updates of float32",
            cost.device_peak / update.nbytes,
            unit="",
            at_most=8 if aimed else None,
        )


def main() -> None:
    report = Report("secagg")
    cohorts = [int(word) for word in sys.argv[1:] if "e" not in word] or list(FRACTIONS)
    dims = [int(float(word)) for word in sys.argv[1:] if "e" in word] or DIMS
    limits(report)
    parts(report)
    for n in cohorts:
        begin = time.perf_counter()
        rounds(report, n, dims)
        report.write()
        print(f"n = {n}: {time.perf_counter() - begin:.0f} s", flush=True)
    report.finish()


if __name__ == "__main__":
    main()
