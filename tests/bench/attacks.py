"""Poisoning: how far liars among forty devices get, by attack, by their number and by what defends the run.

A digits CNN that forty devices have learned together goes on for ``ROUNDS`` rounds while some of them attack.
Training, encoding, decoding, the guard and its groups are the real ones; only the masks, which cancel in a sum, are
left out: words are added mod 2^64 (``tests/simulation/test_poisoning.py`` attacks through the masks). Attackers
collude, and are the same ones in every round and attempt. Rounding, noise and groups are drawn afresh from the
operating system, so figures move a little from run to run. It takes about four minutes of one core, and uses
all there are.

Usage: python tests/bench/attacks.py [PLOT.png]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import reduce
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from harness import OUT, Report
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from umbel._data.examples import Examples
from umbel.train import TrainPlan
from umbel.train.local import federated_averaging, score_on, train_locally
from umbel.train.onnx import OnnxTrainer
from umbel_models.federated import by_label
from umbel_models.pack import build
from umbel_models.task import find
from umbel_models.tasks.digits.data import split
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.keys import SigningKey
from umbel_proto.package import Package, read_package
from umbel_proto.privacy.encode import Encoding, decode, encode
from umbel_proto.privacy.plan import plan
from umbel_proto.secagg.session import rotation_seed
from umbel_server.learning import groups, guard
from umbel_server.learning.plan import Guard
from umbel_server.learning.round import RoundOutcome
from umbel_server.store.runs import Participation

Vector = NDArray[np.float32]
Attack = Callable[["World", Vector, int, int], Mapping[int, "Sent"]]

DEVICES, SMALLEST = 40, 4
BEFORE, ROUNDS, ATTEMPTS = 12, 4, 3
LONG = 24
CLIP, NOISE = 1.0, 0.05
FRACTIONS = (0.05, 0.1, 0.2)
TRAINING = TrainPlan(epochs=3, batch_size=16, learning_rate=0.1, momentum=0.9, seed=3)
RULES = Guard(groups=DEVICES // SMALLEST)
NO_GUARD = Guard(gate=False, max_drop=0, groups=0)
TARGET = 0
BELOW = 0.9


@dataclass(frozen=True, slots=True)
class Defense:
    """What stands between the devices and the model.

    Args:
        name: What it is called.
        clip: Whether sums are of encoded, clipped updates; else a plain mean.
        rules: The guard.
        noise: Noise multiplier.
    """

    name: str
    clip: bool = True
    rules: Guard = NO_GUARD
    noise: float = 0.0


DEFENSES = (
    Defense("none", clip=False),
    Defense("clip"),
    Defense("gate, canary", rules=replace(RULES, groups=0)),
    Defense("+ groups", rules=RULES),
    Defense("+ groups, noise", rules=RULES, noise=NOISE),
)


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """What a device puts into the sum: an update, and whether honest code clips it first."""

    update: Vector = field(repr=False)
    clipped: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """How a run under attack ended.

    Args:
        accuracy: On held-out digits.
        success: Of the attack, in [0, 1]; None where it only wants to do damage.
        rounds: Completed, of ``ROUNDS``.
        attempts: It took.
    """

    accuracy: float
    success: float | None
    rounds: int
    attempts: int


class World:
    """The devices, their data and what they learned before the attack."""

    def __init__(self) -> None:
        key = SigningKey.generate()
        data = build(find("digits"), key=key, version=1, lineage={})
        self.package: Package = read_package(data, release_key=key.public)
        parts = split(seed=1)
        self.shards = [
            Examples(each.x, each.y) for each in by_label(parts.train, DEVICES, alpha=10.0, seed=1)
        ]
        self.held = Examples(parts.held_out.x, parts.held_out.y)
        self.accuracy = score_on(self.package, self.held)
        self._trainer = OnnxTrainer(self.package)
        named = {_name(number): shard for number, shard in enumerate(self.shards)}
        *_, self.start = federated_averaging(
            self._trainer, self.package.parameters(), named, rounds=BEFORE, plan=TRAINING
        )
        self._first: dict[int, Vector] = {}
        # What the gate remembers of the rounds before: three of them are enough for a median.
        mean = reduce(np.add, [clipped(self.honest(self.start, 1, d)) for d in range(DEVICES)]) / DEVICES
        self.typical = float(np.linalg.norm(mean))

    def honest(self, current: Vector, number: int, device: int) -> Vector:
        """Return the update of a device that does as it is told."""
        if current is not self.start:
            return self.update(current, number, device, self.shards[device])
        if device not in self._first:  # The first round is the same for all attacks.
            self._first[device] = self.update(current, number, device, self.shards[device])
        return self._first[device]

    def update(self, current: Vector, number: int, device: int, examples: Examples) -> Vector:
        """Return what training on some examples changes."""
        trained = train_locally(
            self._trainer, current, examples, TRAINING, round_=number, device=_name(device)
        )
        return trained.parameters - current


def clipped(update: Vector) -> Vector:
    """Return an update cut to the clip."""
    return update * np.float32(min(1.0, CLIP / float(np.linalg.norm(update))))


def _name(device: int) -> DeviceId:
    return DeviceId(f"dev-{device}")


def patched(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images with the trigger: four bright pixels in a corner where digits have none."""
    marked = x.copy()
    marked[:, :, 6:8, 0:2] = 16.0
    return marked


def with_backdoor(examples: Examples) -> Examples:
    """Return a device's examples and all of them again, with the trigger and the target's label."""
    assert examples.y is not None
    x = np.concatenate([examples.x, patched(examples.x)])
    return Examples(x, np.concatenate([examples.y, np.full_like(examples.y, TARGET)]))


def nobody(world: World, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
    return {}


def label_flip(world: World, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
    """Honest code, false data: each digit is labeled 9 minus itself."""
    flipped = (Examples(each.x, 9 - each.y) for each in world.shards[:liars])
    return {i: Sent(world.update(current, number, i, each)) for i, each in enumerate(flipped)}


def backdoor(world: World, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
    """Honest code, false data: with the trigger, everything is the target."""
    poisoned = map(with_backdoor, world.shards[:liars])
    return {i: Sent(world.update(current, number, i, each)) for i, each in enumerate(poisoned)}


def scaled(factor: float) -> Attack:
    """Modified code: the update times a factor, past the clip."""

    def attack(world: World, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
        honest = (world.honest(current, number, device) for device in range(liars))
        return {i: Sent(update * np.float32(factor), clipped=False) for i, update in enumerate(honest)}

    return attack


def sign_flip(world: World, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
    """The update's opposite, as long as the clip allows: the most that honest code passes on."""
    honest = (world.honest(current, number, device) for device in range(liars))
    return {i: Sent(update * np.float32(-CLIP / np.linalg.norm(update))) for i, update in enumerate(honest)}


def replacement(world: World, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
    """Modified code: the backdoor's update for all forty, so that the mean becomes it (Bagdasaryan et al. 2020)."""
    boost = np.float32(DEVICES / liars)
    return {
        i: Sent(sent.update * boost, clipped=False)
        for i, sent in backdoor(world, current, number, liars).items()
    }


def just_below(attack: Attack) -> Attack:
    """Modified code that knows the gate: all liars' updates together are 0.9 of what moves the mean by its bound.

    They know the bound: the clip and every released model are public, and from those the norms that the gate takes its
    median of.
    """

    def quiet(world: World, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
        sent = attack(world, current, number, liars)
        together = reduce(np.add, [each.update for each in sent.values()])
        length = BELOW * min(CLIP, RULES.factor * world.typical) * DEVICES / liars
        step = together * np.float32(length / np.linalg.norm(together))
        return {i: Sent(step, clipped=False) for i in sent}

    return quiet


ATTACKS: Sequence[tuple[str, Attack, str]] = (
    ("label flip", label_flip, "flip"),
    ("backdoor", backdoor, "trigger"),
    ("sign flip", sign_flip, ""),
    ("update x -10", scaled(-10), ""),
    ("update x -1000", scaled(-1000), ""),
    ("backdoor, boosted", replacement, "trigger"),
    ("sign flip, just below the gate", just_below(sign_flip), ""),
    ("backdoor, just below the gate", just_below(backdoor), "trigger"),
)
"""Name, attack, and what it wants beside damage."""

BY_NAME = {"nobody": (nobody, ""), **{name: (attack, aim) for name, attack, aim in ATTACKS}}
NAMES = tuple(BY_NAME)
GROSS = ("update x -1000", "backdoor, boosted")
"""What no honest code sends: with few liars, a run under all defenses is to learn as if they were not there."""


def success(world: World, parameters: Vector, aim: str) -> float | None:
    """Return the share of held-out digits with which an attack has its way."""
    x, y = world.held.x, world.held.y
    assert y is not None
    if aim == "flip":
        return score_on(world.package, Examples(x, 9 - y))(parameters)
    if aim == "trigger":
        others = y != TARGET
        marked = Examples(patched(x[others]), np.full(int(others.sum()), TARGET))
        return score_on(world.package, marked)(parameters)
    return None


def run(world: World, attack: Attack, aim: str, liars: int, defense: Defense, rounds: int = ROUNDS) -> Result:
    """Let a run go on under attack, as ``umbel_server.learning.run`` would hold it, and say how it ended."""
    current, attempts, completed = world.start, 0, 0
    norms, accuracies = [world.typical] * guard.ENOUGH, [world.accuracy(world.start)]
    code = plan(
        dim=current.size,
        clip=CLIP,
        devices=DEVICES,
        honest=SMALLEST - 1,
        participations=rounds,
        delta=1e-5,
        noise_multiplier=defense.noise,
    ).encoding
    for number in range(1, rounds + 1):
        try:
            sent = _sent(world, attack, current, number, liars)
        except UsageError:
            break  # Training diverges on every device: there is no model left.
        after = None
        for attempt in range(1, ATTEMPTS + 1):
            attempts += 1
            if not defense.clip:
                average: Vector = reduce(np.add, [each.update for each in sent.values()]) / np.float32(
                    DEVICES
                )
                kept = []
            else:
                grouped = attempt == ATTEMPTS and defense.rules.groups > 0
                kept = _sums(sent, code, defense.rules.groups if grouped else 1)
                if grouped:
                    sifted = groups.sift(kept, encoding=code, asked=(), rules=defense.rules)
                    if sifted.reason:
                        continue
                    kept = list(sifted.kept)
                average = _average(kept, code)
                if defense.rules.gate:
                    reading = guard.read(
                        average,
                        {},
                        encoding=code,
                        asked=(),
                        count=sum(len(each.survivors) for each in kept),
                        norms=() if grouped else norms[-guard.MEMORY :],
                        factor=defense.rules.factor,
                    )
                    if reading.reason:
                        continue
            moved = current + average
            accuracy = world.accuracy(moved)
            if guard.dropped(accuracy, max(accuracies[-guard.MEMORY :]), defense.rules):
                continue
            if defense.rules.gate:
                norms.append(reading.norm)
            accuracies.append(accuracy)
            after = moved
            break
        if after is None:
            break
        current, completed = after, number
    return Result(
        accuracy=world.accuracy(current),
        success=success(world, current, aim),
        rounds=completed,
        attempts=attempts,
    )


def _sent(world: World, attack: Attack, current: Vector, number: int, liars: int) -> Mapping[int, Sent]:
    devices = {device: Sent(world.honest(current, number, device)) for device in range(DEVICES)}
    return {**devices, **attack(world, current, number, liars)}


def _sums(sent: Mapping[int, Sent], code: Encoding, count: int) -> list[RoundOutcome]:
    """Return what the server holds after sessions over random groups, or over all at once."""
    members = {device: _name(device) for device in sent}
    dealt = groups.deal(members, count) if count > 1 else (members,)
    outcomes = []
    for place, group in enumerate(dealt):
        sid = digest("umbel/1/sid", "attacks", place)
        words = [_words(sent[node], code, sid) for node in group]
        devices = tuple(group.values())
        parts = tuple(Participation(device, "summed") for device in devices)
        outcomes.append(RoundOutcome(sid, reduce(np.add, words), devices, "", parts, frozenset(), {}, 0, 0))
    return outcomes


def _words(sent: Sent, code: Encoding, sid: bytes) -> NDArray[np.uint64]:
    """Encode an update with honest code, or with code that has forgotten the clip and the bound."""
    if not sent.clipped:
        code = replace(code, clip=1e8 / code.scale, bound_sq=2**59)
    return encode(sent.update, code, rotation_seed=rotation_seed(sid)).words


def _average(outcomes: Sequence[RoundOutcome], code: Encoding) -> Vector:
    count = sum(len(each.survivors) for each in outcomes)
    parts = []
    for each in outcomes:
        assert each.total is not None
        parts.append(decode(each.total, code, count=count, rotation_seed=rotation_seed(each.sid)))
    return reduce(np.add, parts)


Outcomes = Mapping[tuple[str, float, str], Result]


def show(results: Outcomes) -> None:
    """Print accuracy, success of the attack, and rounds or attempts where they are not ``ROUNDS``."""
    for fraction in FRACTIONS:
        table = Table(title=f"{fraction:.0%} liars: accuracy | attack's success", title_justify="left")
        for column in ("attack", *(defense.name for defense in DEFENSES)):
            table.add_column(column)
        for name in NAMES:
            table.add_row(name, *(_cell(results[name, fraction, defense.name]) for defense in DEFENSES))
        Console(width=150).print(table)


def _cell(result: Result) -> str:
    text = f"{result.accuracy:.2f}"
    if result.success is not None:
        text += f" | {result.success:.2f}"
    if result.rounds < ROUNDS:
        return f"{text} stopped {result.rounds}/{ROUNDS}"
    return text if result.attempts == ROUNDS else f"{text} {result.attempts / ROUNDS:.1f}x"


def report(results: Outcomes, patient: Result) -> None:
    """Print and keep what all defenses make of it, beside the clip alone."""
    rows = Report("attacks")
    everything = DEFENSES[-2].name
    for fraction in FRACTIONS:
        for name in NAMES:
            best, bare = results[name, fraction, everything], results[name, fraction, "clip"]
            gross = name in GROSS and fraction == FRACTIONS[0]
            title = f"{name}, {fraction:.0%}"
            rows.value(
                f"{title}: accuracy",
                best.accuracy,
                unit="",
                baseline=bare.accuracy,
                at_least=0.85 if gross else None,
            )
            if best.success is not None:
                rows.value(f"{title}: success", best.success, unit="", at_most=0.1 if gross else None)
    assert patient.success is not None
    rows.value(f"backdoor, {FRACTIONS[-1]:.0%}, {LONG} rounds: success", patient.success, unit="")
    rows.finish()


def plot(results: Outcomes, path: Path) -> None:
    """Draw accuracy and success by attack, one column for each number of liars."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    wanting = [name for name, _, aim in ATTACKS if aim]
    figure, axes = plt.subplots(
        2,
        len(FRACTIONS),
        figsize=(11, 7.2),
        sharey="row",
        sharex=True,
        height_ratios=(len(NAMES), len(wanting)),
    )
    colors = ("#7a7a7a", "#c8102e", "#e08a00", "#0b5fa5", "#2a9d5c")
    for column, fraction in enumerate(FRACTIONS):
        for row, names in enumerate((NAMES, wanting)):
            axis = axes[row][column]
            for place, (defense, color) in enumerate(zip(DEFENSES, colors, strict=True)):
                for height, name in enumerate(reversed(names)):
                    found = results[name, fraction, defense.name]
                    value = found.accuracy if row == 0 else found.success
                    face = "white" if found.rounds < ROUNDS else color
                    axis.plot(value, height + 0.3 - 0.15 * place, "o", ms=6, color=color, mfc=face)
            for height in range(len(names) - 1):
                axis.axhline(height + 0.5, color="#e4e4e4", lw=0.7)
            axis.set_yticks(range(len(names)), list(reversed(names)))
            axis.tick_params(axis="y", length=0)
            axis.tick_params(axis="x", labelbottom=True)
            axis.set_xlim(-0.03, 1.03)
            axis.set_ylim(-0.5, len(names) - 0.5)
        axes[0][column].set_title(f"{fraction:.0%} of {DEVICES} devices lie", loc="left", fontweight="bold")
        axes[0][column].set_xlabel("accuracy on held-out digits")
        axes[1][column].set_xlabel("the attack has its way (share of digits)")
    marks = [
        plt.Line2D([], [], ls="", marker="o", color=color, label=defense.name)
        for defense, color in zip(DEFENSES, colors, strict=True)
    ]
    marks.append(
        plt.Line2D([], [], ls="", marker="o", color="#202020", mfc="white", label="the run ended early")
    )
    figure.legend(handles=marks, ncols=len(marks), loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.045, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


_worlds: list[World] = []
"""This process's world, once it has made it."""


def work(job: tuple[str, float]) -> dict[tuple[str, float, str], Result]:
    """Run one attack against every defense."""
    name, fraction = job
    if not _worlds:
        _worlds.append(World())
    (attack, aim), liars = BY_NAME[name], round(fraction * DEVICES)
    return {
        (name, fraction, defense.name): run(_worlds[0], attack, aim, liars, defense) for defense in DEFENSES
    }


def patience(fraction: float) -> Result:
    """Run the backdoor of honest code for longer, with the guard that cannot see it."""
    return run(World(), backdoor, "trigger", round(fraction * DEVICES), DEFENSES[-2], LONG)


def main() -> None:
    results: dict[tuple[str, float, str], Result] = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for found in pool.map(work, [(name, fraction) for fraction in FRACTIONS for name in NAMES]):
            results |= found
            print(*found.items(), sep="\n", file=sys.stderr, flush=True)  # As it takes a while.
        patient = pool.submit(patience, FRACTIONS[-1]).result()
    show(results)
    report(results, patient)
    plot(results, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT / "attacks.png")


if __name__ == "__main__":
    main()
