"""Laws: the three distributions are one release, no device carries another room, and each is built from its own folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"umbel": ROOT, "umbel-server": ROOT / "server", "umbel-models": ROOT / "models"}
ROOMS = {
    "umbel": {"umbel", "umbel_proto"},
    "umbel-server": {"umbel_server"},
    "umbel-models": {"umbel_models"},
}
WHERE = {
    "umbel": ROOT / "client",
    "umbel_proto": ROOT / "proto",
    "umbel_server": ROOT / "server",
    "umbel_models": ROOT / "models",
}
COMMANDS = ("serve", "fleet", "rounds", "demo")


def build(folder: Path, kind: str, out: Path) -> Path:
    """Build a wheel or sdist as pip does it, with the backend that is installed here."""
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, unpacked as pip installs it."""
    place, unpacked = tmp_path_factory.mktemp("wheels"), {}
    for name, folder in FOLDERS.items():
        unpacked[name] = place / name / "site"
        with zipfile.ZipFile(build(folder, "wheel", place / name / "wheel")) as wheel:
            wheel.extractall(unpacked[name])
    return unpacked


@pytest.fixture(scope="module")
def told(wheels: dict[str, Path]) -> dict[str, Distribution]:
    """What each wheel tells of itself."""
    return {name: Distribution.at(next(site.glob("*.dist-info"))) for name, site in wheels.items()}


def contents(site: Path) -> set[str]:
    files = (path for path in site.rglob("*") if path.is_file() and ".dist-info" not in str(path))
    return {path.relative_to(site).as_posix() for path in files}


def pins(told: dict[str, Distribution]) -> Iterator[tuple[str, Requirement]]:
    for name, distribution in told.items():
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.name in told and requirement.name != name:
                yield name, requirement


def test_the_three_have_one_version_and_require_each_other_in_exactly_that(
    told: dict[str, Distribution],
) -> None:
    assert {name: distribution.name for name, distribution in told.items()} == {
        name: name for name in FOLDERS
    }
    (version,) = {distribution.version for distribution in told.values()}
    found = list(pins(told))
    assert {(name, pin.name) for name, pin in found} == {
        ("umbel", "umbel-server"),
        ("umbel", "umbel-models"),
        ("umbel-server", "umbel"),
        ("umbel-models", "umbel"),
    }
    assert {str(pin.specifier) for _, pin in found} == {f"=={version}"}


def test_only_an_extra_of_the_devices_requires_another_room(told: dict[str, Distribution]) -> None:
    always = [pin for name, pin in pins(told) if pin.marker is None or pin.marker.evaluate({"extra": ""})]
    assert {pin.name for pin in always} == {"umbel"}


def test_the_extras_that_are_required_of_another_room_are_there(told: dict[str, Distribution]) -> None:
    for name, pin in pins(told):
        offered = set(told[pin.name].metadata.get_all("Provides-Extra") or ())
        assert pin.extras <= offered, f"{name} requires {pin}"


def test_a_wheel_holds_its_own_rooms_whole_and_nothing_else(wheels: dict[str, Path]) -> None:
    for name, site in wheels.items():
        found = contents(site)
        assert {path.partition("/")[0] for path in found} == ROOMS[name]
        modules = {path for path in found if path.endswith(".py")}
        lying = {
            path.relative_to(WHERE[room]).as_posix()
            for room in ROOMS[name]
            for path in (WHERE[room] / room).rglob("*.py")
        }
        assert modules == lying


def test_no_file_lies_in_two_wheels(wheels: dict[str, Path]) -> None:
    everything = [path for site in wheels.values() for path in contents(site)]
    assert len(everything) == len(set(everything))


def test_every_distribution_carries_the_license_and_says_what_it_is(told: dict[str, Distribution]) -> None:
    license_of_umbel = (ROOT / "LICENSE").read_text()
    for name, distribution in told.items():
        assert distribution.metadata["License-Expression"] == "Apache-2.0"
        assert distribution.read_text("licenses/LICENSE") == license_of_umbel, name
        assert distribution.metadata.get_payload().startswith(f"# {name}\n")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_source_archive_alone_gives_the_same_wheel(
    name: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    with tarfile.open(build(FOLDERS[name], "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "sources")
    (folder,) = (tmp_path / "sources").iterdir()
    with zipfile.ZipFile(build(folder, "wheel", tmp_path / "wheel")) as wheel:
        wheel.extractall(tmp_path / "site")
    assert contents(tmp_path / "site") == contents(wheels[name])


def test_every_extra_that_sentences_and_documents_name_is_there(told: dict[str, Distribution]) -> None:
    sources = [path for room, folder in WHERE.items() for path in (folder / room).rglob("*.py")]
    documents = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(folder / "README.md" for folder in FOLDERS.values()),
    ]
    named = set()
    for path in sources + documents:
        text = path.read_text()
        named |= {
            each for extras in re.findall(r"\bumbel\[([a-z0-9,-]+)\]", text) for each in extras.split(",")
        }
        named |= set(re.findall(r"MissingExtraError\(\"([a-z0-9-]+)\"", text))
    assert {"server", "models", "demo", "learn", "torch"} <= named
    assert named <= set(told["umbel"].metadata.get_all("Provides-Extra") or ())


@pytest.fixture(scope="module")
def device(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the device's wheel and all that is installed here but umbel."""
    libraries = tmp_path_factory.mktemp("libraries")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"_?_?(editable_impl_)?umbel", path.name):
            (libraries / path.name).symlink_to(path)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(wheels["umbel"]), str(libraries)]),
        "COLUMNS": "200",
    }


def umbel(device: dict[str, str], *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'umbel'; from umbel.cli import main; main()"
    command = [sys.executable, "-S", "-c", code, *words]  # -S: without the rooms that .pth files name.
    return subprocess.run(
        command, env={**device, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("serve", "--help"), "server"),
        (("fleet", "devices"), "server"),
        (("demo",), "demo"),
        (("model", "build", "digits"), "models"),
    ],
)
def test_a_device_that_is_asked_for_a_command_of_another_room_says_which_extra_brings_it(
    words: tuple[str, ...], extra: str, device: dict[str, str]
) -> None:
    done = umbel(device, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith(f" needs an optional part of umbel: run  pip install 'umbel[{extra}]'.\n")


def test_a_device_lists_and_completes_its_own_commands_and_no_others(device: dict[str, str]) -> None:
    listed = umbel(device, "--help")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^  predict ", listed.stdout, re.M)
    assert not [name for name in COMMANDS if re.search(rf"^  {name} ", listed.stdout, re.M)]
    for typed in ("umbel ", "umbel serve "):
        done = umbel(
            device, _UMBEL_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(typed.split()))
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "enroll" in done.stdout
        assert not [name for name in COMMANDS if name in done.stdout]


def test_a_device_knows_no_module_of_another_room(device: dict[str, str]) -> None:
    code = "import umbel, umbel.cli, importlib.util as u\n"
    code += "print([name for name in ('umbel_server', 'umbel_models') if u.find_spec(name)])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=device, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
