"""A fleet with the past that the kept demo makes up, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from model_packages import RELEASE, digits, first, opened, training
from service_fleet import ManualClock, make_fleet
from umbel_models.pack import repack
from umbel_proto.package import Package
from umbel_server.demo.past import life
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry.settings import Registry


def lived_in(path: Path, *, now_s: float) -> tuple[FleetDir, Package]:
    """Return the fleet, and the trained package that it began with.

    Args:
        path: Where to make it.
        now_s: When its past ends, Unix seconds.
    """
    made = make_fleet(path, clock=ManualClock(now_s))
    made.release_key.write_bytes(RELEASE.to_pem())
    made.release_pub.write_bytes(RELEASE.public.raw)
    fleet = FleetDir(made.path, replace(made.settings, registry=Registry(2)))
    trained = opened(
        repack(
            opened(first()),
            training().parameters,
            calibration=digits().calibration.x,
            calibration_y=digits().calibration.y,
            version=2,
            key=RELEASE,
            held_out=digits().held_out,
        )
    )
    life.live(fleet, trained, now_s=now_s)
    return fleet, trained
