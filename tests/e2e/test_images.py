"""Law: the recipes of the images make, in a clean Debian, a service and a device that start and stop as containers do.

No container engine takes part: `deploy/image.py` replays the recipes. What runs is not root, cannot write to its root
directory, and can gain no privilege.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.image import SUITES, Image, build, clean_root, parse
from service_fleet import make_fleet, running
from umbel_server.fleet.invite import invite

pytestmark = pytest.mark.timeout(600)  # Most of it waits for packages: others may run beside it.

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "deploy").glob("*.Dockerfile"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_names_its_base_exactly_and_ends_as_somebody_who_is_not_root(recipe: Path) -> None:
    stages = parse(recipe)
    assert {stage.base for stage in stages} == {"debian:12.11-slim"}
    lines = [(line.word, line.rest) for line in stages[-1].lines]
    users = [rest for word, rest in lines if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    after = lines[lines.index(("USER", users[-1])) :]
    assert not any(word in {"RUN", "COPY"} for word, _ in after)
    # What pip installs is pinned.
    assert all(
        "-c constraints.txt" in line.rest
        for stage in stages
        for line in stage.lines
        if "pip install" in line.rest
    )


def test_what_the_recipes_copy_is_what_the_builder_is_sent() -> None:
    sent = {row[1:] for row in (ROOT / ".dockerignore").read_text().splitlines() if row.startswith("!")}
    for recipe in RECIPES:
        for line in parse(recipe)[0].lines:
            if line.word == "COPY":
                for source in line.rest.split()[:-1]:
                    assert any(each == source or each.startswith(f"{source}/") for each in sent), source
    assert all((ROOT / each).exists() for each in sent)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        assert "CI" not in os.environ, "CI is root and has debootstrap"
        pytest.skip("replaying an image takes root and debootstrap")
    scratch = tmp_path_factory.mktemp("image")
    release = parse(RECIPES[0])[0].base.removeprefix("debian:").partition(".")[0]
    yield clean_root(scratch / "clean", suite=SUITES[release])
    subprocess.run(["rm", "-rf", str(scratch)], check=True)  # Some 3 GB; quicker than shutil's way.


@pytest.fixture(scope="module")
def images(clean: Path) -> dict[str, Image]:
    """Both images, built beside the clean root at the same time: most of it is one program that unpacks."""

    def made(recipe: Path) -> Image:
        scratch = clean.with_name(recipe.stem)
        scratch.mkdir()
        return build(recipe, ROOT, clean, scratch)

    with ThreadPoolExecutor() as builders:
        return dict(zip((each.stem for each in RECIPES), builders.map(made, RECIPES), strict=True))


def confined(process: subprocess.Popen[str], user: int) -> None:
    """Check that a process is nobody's but its user's, can gain no privilege, and cannot write to its root directory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert re.search(rf"^Uid:\t{user}\t{user}\t{user}\t{user}$", status, re.M)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert re.search(r"^CapEff:\t0+$", status, re.M)
    with pytest.raises(OSError, match="Read-only"):
        Path("/proc", str(process.pid), "root", "opt/umbel/here").touch()


def test_a_device_enrolls_and_runs_in_its_image_and_stops_when_asked(
    images: dict[str, Image], tmp_path: Path
) -> None:
    image = images["device"]
    volume = tmp_path / "device"
    volume.mkdir(mode=0o700)
    os.chown(volume, *map(int, image.user.split(":")))
    volumes, fleet = {image.volumes[0]: volume}, make_fleet(tmp_path / "garden")
    with running(fleet) as (_, store), (tmp_path / "log").open("w") as log:
        token = invite(fleet, store, device="rose").to_text()
        for environment in ({"UMBEL_TOKEN": token}, {}):  # The second time it is enrolled.
            device = subprocess.Popen(
                image.start([], volumes, environment=environment),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                assert device.stdout is not None
                said = device.stdout.readline()
                assert said == "ready rose\n", (tmp_path / "log").read_text()[-2000:]
                confined(device, 10002)
            finally:
                device.send_signal(signal.SIGTERM)
                ended = device.wait(40)
                if device.stdout is not None:
                    device.stdout.close()
            assert ended == 0
        assert [each.id for each in store.devices.all()] == ["rose"]


def test_the_service_starts_in_its_image_and_stops_when_asked(
    images: dict[str, Image], tmp_path: Path
) -> None:
    image = images["service"]
    volume = tmp_path / "fleet"
    volume.mkdir(mode=0o700)
    os.chown(volume, *map(int, image.user.split(":")))
    volumes = {image.volumes[0]: volume}
    for _ in range(2):  # The second time it is there.
        ran = subprocess.run(
            image.start(["fleet", "create", "--name", "garden", "--if-missing"], volumes, environment={}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(
            image.start([], volumes, environment={}), stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert service.stdout is not None
        said = []
        for line in service.stdout:
            said.append(line.strip())
            if said[-1] == "ready umbel":
                break
        assert said[-1:] == ["ready umbel"], (tmp_path / "log").read_text()[-2000:]
        confined(service, 10001)
        devices = subprocess.run(
            image.start(["fleet", "devices", "--json"], volumes, environment={}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (devices.returncode, devices.stdout.strip()) == (0, "[]"), devices.stderr
    finally:
        service.send_signal(signal.SIGTERM)
        ended = service.wait(40)
        if service.stdout is not None:
            service.stdout.close()
    assert ended == 0
