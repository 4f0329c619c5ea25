"""Models with a life behind them, for the console's browser tests: released, waiting, rejected, reviewed, signed for."""

from __future__ import annotations

import functools
import json
from typing import Any

from sqlalchemy import insert

from console_world import ConsoleWorld
from model_packages import RELEASE, digits, first, opened, resigned, training
from monitor_world import Reporters
from registry_world import ANNA, BEN, CARL, PIPELINE, World
from umbel_models.pack import repack
from umbel_proto.histogram import LATENCY_US, Histogram
from umbel_server.access.actor import Role, local_actor
from umbel_server.fleet.publish import publish
from umbel_server.registry.approval import Verdict
from umbel_server.registry.versions import add, comment, describe
from umbel_server.store.registry import Line
from umbel_server.store.tables_rollouts import device_models

COHORTS = (
    ("accuracy", 0.958, "", (0.931, 0.975)),
    ("accuracy", 0.971, "cohort younger", (0.944, 0.985)),
    ("accuracy", 0.883, "cohort older", (0.804, 0.933)),
    ("accuracy", 0.921, "cohort left-handed", None),
    ("log loss", 0.214, "", (0.171, 0.258)),
)
SECTIONS = {
    "fairness:largest gap of accuracy": "0.088, younger less older",
    "fairness:interval": "0.021 to 0.166",
    "privacy:guarantee": "example-level, (ε, δ)-differentially private",
    "privacy:epsilon_release": "3.2",
    "privacy:delta": "1e-06",
}
DECIDES = {
    "input 28": 0.21,
    "input 36": 0.17,
    "input 20": 0.12,
    "input 43": 0.08,
    "input 10": 0.05,
    "input 58": 0.02,
}
"""Accuracy that version 1 loses without an input; later ones rest more on the first and less on the others."""

WITHIN = {"younger": (212, (0, 1, 2, 3, 4, 5)), "older": (86, (2, 0, 1, 4, 3, 5))}
"""Of each cohort how many examples there are, and the place that each input has there by what decides."""


@functools.cache
def version(number: int) -> bytes:
    """Digits of a version: 1 as it came, later ones trained, with figures by cohort."""
    made = first()
    if number > 1:
        made = repack(
            opened(first()),
            training().parameters,
            calibration=digits().calibration.x,
            version=number,
            key=RELEASE,
            lineage={"code": "git:4be1c9d"},
        )
    card = json.loads(bytes(opened(made).file("card.json")))
    told = card["metadata"]["component"]["modelCard"]
    sections = _decides(number)
    if number > 1:
        told["quantitativeAnalysis"]["performanceMetrics"] = [
            _figure(kind, value + 0.004 * number, part, interval) for kind, value, part, interval in COHORTS
        ]
        sections |= SECTIONS | _decides_within()
    told["properties"] += [{"name": f"umbel:{name}", "value": value} for name, value in sections.items()]

    def change(body: dict[str, Any]) -> None:
        if number > 1:
            body["lineage"]["base_version"] = number - 1

    return resigned(made, change, **{"card.json": json.dumps(card).encode()})


def registry(world: ConsoleWorld) -> None:
    """Version 1 is out of fashion, 2 in use, 3 waits for one more, 4 was rejected, 5 is a draft."""
    world.fleet.release_key.write_bytes(RELEASE.to_pem())
    world.fleet.release_pub.write_bytes(RELEASE.public.raw)
    made = World(world.fleet, world.store, world.clock)
    line = Line(
        "digits",  # type: ignore[arg-type]
        "Anna Aas, handwriting",
        "Reads the house numbers that couriers write on parcels.",
        "limited",
        "2031-03-31",
        "when fewer than 5 % of parcels are written by hand",
    )
    describe(made.store, line, ANNA, reason="as the charter says")
    for number in (1, 2):
        add(made.fleet, made.store, version(number), PIPELINE)
        made.ask(number)
        made.say(BEN, number)
        made.say(CARL, number)
        publish(made.fleet, made.store, version(number), actor=ANNA)
    for number in (3, 4, 5):
        add(made.fleet, made.store, version(number), PIPELINE)
    made.ask(4)
    made.say(BEN, 4, Verdict.REJECT)
    made.ask(3)
    made.say(CARL, 3)
    comment(
        made.store,
        "digits",
        3,
        BEN,
        "Older hands are read worse than in version 2: is that the new calibration?",
    )
    _reviews(world)
    world.store.accounts.add(local_actor(), "pipeline", roles=frozenset({Role.CI}), reason="builds packages")


def _reviews(world: ConsoleWorld) -> None:
    devices = Reporters(world.store, world.clock, 24)
    for place, name in enumerate(devices.names):
        counters = {
            "predictions": 400 + 10 * place,
            "review.asked": 12,
            "review.resolved": 9,
            "review.changed": 2 if place % 3 else 1,
            "review.dropped": place % 2,
            "feedback.compared": 4,
            "feedback.alike": 3,
        }
        times = [240.0 + 3 * place] * 300 + [900.0] * 80 + [2600.0] * 20
        latency = Histogram.empty("latency_us", LATENCY_US).observe(times)
        devices.tell(name, latency, counters=counters, version=2 if place % 4 else 1)
    devices.arrive()
    now_s = world.clock()
    answering = [
        {"device_id": name, "model": "digits", "version": 2 if place % 4 else 1, "since_s": now_s}
        for place, name in enumerate(devices.names)
    ]
    with world.store.database.write() as connection:
        connection.execute(insert(device_models), answering)


def _decides(number: int) -> dict[str, str]:
    told: dict[str, str] = {}
    for place, (name, lost) in enumerate(DECIDES.items()):
        value = lost + (0.02 if place == 0 else -0.004) * (number - 1)
        name = f"explanations:accuracy lost without {name}"
        told |= {
            name: f"{value:.4f}",
            f"{name} low": f"{value - 0.02:.4f}",
            f"{name} high": f"{value + 0.02:.4f}",
        }
    return told


def _decides_within() -> dict[str, str]:
    told: dict[str, str] = {}
    for name, (count, order) in WITHIN.items():
        told[f"explanations:cohort {name}, examples"] = str(count)
        # A test may add columns, which decide as much there as anywhere.
        for place, column in zip([*order, *range(len(order), len(DECIDES))], DECIDES, strict=True):
            lost, figure = list(DECIDES.values())[place], f"cohort {name}, accuracy lost without {column}"
            told |= {
                f"explanations:{figure}": f"{lost:.4f}",
                f"explanations:{figure} low": f"{lost - 0.03:.4f}",
                f"explanations:{figure} high": f"{lost + 0.03:.4f}",
            }
    return told


def _figure(
    kind: str, value: float, part: str, interval: tuple[float, float] | None
) -> dict[str, str | dict[str, str]]:
    made: dict[str, str | dict[str, str]] = {"type": kind, "value": repr(value)}
    if part:
        made["slice"] = part
    if interval:
        made["confidenceInterval"] = {"lowerBound": repr(interval[0]), "upperBound": repr(interval[1])}
    return made
