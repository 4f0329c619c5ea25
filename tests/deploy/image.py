"""Replays the recipe of an image without a container engine: each stage is a root directory of Debian's making.

What an engine does with a Dockerfile's lines is done with debootstrap, chroot and mount namespaces. Needs root.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

SUITES = {"12": "bookworm", "13": "trixie"}
MIRROR = "http://deb.debian.org/debian"
ATTEMPTS = 2
"""A mirror may be away for a moment; what is tested is the recipe."""
_LAYERS = threading.Lock()


@dataclass(frozen=True, slots=True)
class Line:
    """An instruction of a Dockerfile and what follows it."""

    word: str
    rest: str


@dataclass(eq=False, slots=True)
class Stage:
    """One stage of an image: where it begins, its name, its lines."""

    base: str
    name: str
    lines: list[Line] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Image:
    """The last stage, built.

    Args:
        root: Its root directory.
        environment: Of what runs in it.
        user: As whom, ``uid:gid``.
        entrypoint: The program.
        command: Its arguments, unless others are given.
        volumes: What stays writable.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    def start(
        self, arguments: Sequence[str], volumes: Mapping[str, Path], *, environment: Mapping[str, str]
    ) -> list[str]:
        """Return the command that runs the image as ``docker run --read-only --tmpfs /tmp`` would."""
        mounts = [f"mount --bind {self.root} {self.root}"]
        mounts += [
            f"mount --bind {shlex.quote(str(where))} {self.root}{inside}" for inside, where in volumes.items()
        ]
        mounts += [
            f"mount -o remount,ro,bind {self.root}",
            f"mount -t tmpfs -o mode=1777 tmpfs {self.root}/tmp",
            f"mount -t proc proc {self.root}/proc",
            f"mount --rbind /dev {self.root}/dev",
        ]
        variables = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        program = [*self.entrypoint, *(arguments or self.command)]
        inside = ["chroot", f"--userspec={self.user}", str(self.root), "env", "-i", *variables, *program]
        script = " && ".join([*mounts, f"exec setpriv --no-new-privs {shlex.join(inside)}"])
        return ["unshare", "--mount", "sh", "-c", script]


def parse(path: Path) -> list[Stage]:
    """Read a Dockerfile.

    Raises:
        ValueError: A line is of a kind that cannot be replayed.
    """
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    stages: list[Stage] = []
    for row in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = row.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif word in {"RUN", "COPY", "ENV", "WORKDIR", "USER", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD"}:
            stages[-1].lines.append(Line(word, rest.strip()))
        else:
            raise ValueError(f"{path.name}: {word} cannot be replayed")
    return stages


def clean_root(where: Path, *, suite: str) -> Path:
    """Make Debian's smallest root directory."""
    for attempt in range(ATTEMPTS):
        try:
            _run(["debootstrap", "--variant=minbase", suite, str(where), MIRROR])
            break
        except RuntimeError:
            if attempt + 1 == ATTEMPTS:
                raise
            _run(["rm", "-rf", str(where)])
    (where / "etc/apt/apt.conf.d/80-retries").write_text('Acquire::Retries "3";\n')
    # The machine's own way to names and packages.
    shutil.copy("/etc/resolv.conf", where / "etc" / "resolv.conf")
    return where


def build(recipe: Path, context: Path, clean: Path, scratch: Path) -> Image:
    """Replay a Dockerfile's stages, each in a copy of a clean root. What begins alike is done once, as an engine does.

    Args:
        recipe: The Dockerfile; its stages are of one Debian release.
        context: What COPY copies from.
        clean: The clean root, as `clean_root` makes it.
        scratch: Where to build.

    Returns:
        The last stage.
    """
    built: dict[str, Image] = {}
    image = Image(clean)
    for number, stage in enumerate(parse(recipe)):
        image = Image(scratch / f"stage-{number}", environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        first, *others = stage.lines
        _run(["cp", "-a", str(_layer(first, image, clean)), str(image.root)])
        for line in others:
            _do(line, image, context, built)
        built[stage.name] = image
    return image


def _layer(first: Line, image: Image, clean: Path) -> Path:
    """Return the root after a stage's first line, which installs what Debian has."""
    if first.word != "RUN":
        raise ValueError("a stage begins with something else than RUN: it cannot be replayed")
    layer = clean.with_name(f"layer-{hashlib.sha256(first.rest.encode()).hexdigest()[:16]}")
    with _LAYERS:  # Two images may be built at once.
        if not layer.exists():
            _run(["cp", "-a", str(clean), str(layer)])
            _run_inside(replace(image, root=layer), first.rest)
    return layer


def _do(line: Line, image: Image, context: Path, built: Mapping[str, Image]) -> None:
    match line.word:
        case "RUN":
            _run_inside(image, line.rest)
        case "COPY":
            _copy(line.rest, image, context, built)
        case "ENV":
            image.environment |= dict(pair.split("=", 1) for pair in shlex.split(line.rest))
        case "WORKDIR":
            image.directory = line.rest
            (image.root / line.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = line.rest
        case "VOLUME":
            image.volumes.append(line.rest)
        case "ENTRYPOINT":
            image.entrypoint = _words(line.rest)
        case "CMD":
            image.command = _words(line.rest)


def _words(rest: str) -> list[str]:
    return list(json.loads(rest))


def _copy(rest: str, image: Image, context: Path, built: Mapping[str, Image]) -> None:
    words = rest.split()
    origin = context
    if words[0].startswith("--from="):
        origin = built[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    where = image.root / (Path(image.directory) / target).as_posix().lstrip("/")
    for source in sources:
        found = origin / source.lstrip("/")
        if found.is_dir():
            # Bytecode of the machine that builds is none of the image's.
            ignore = None if origin != context else shutil.ignore_patterns("__pycache__")
            shutil.copytree(found, where, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            where.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, where)


def _run_inside(image: Image, script: str) -> None:
    """Run a line in a stage's root, with the way to packages that this machine has."""
    root = image.root
    mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    # Only for pip: what is mounted over cannot be replaced by a package's installation.
    for here in _pip_places() if "pip install" in script else ():
        there = root / str(here).lstrip("/")
        mounts.append(f"mkdir -p {there.parent if here.is_file() else there}")
        if here.is_file():
            mounts.append(f"touch {there}")
        mounts.append(f"mount --bind {here} {there}")
    variables = [f"{name}={value}" for name, value in {**_package_variables(), **image.environment}.items()]
    inside = ["chroot", str(root), "env", "-i", *variables, "sh", "-ec", f"cd {image.directory}; {script}"]
    _run(["unshare", "--mount", "sh", "-ec", "; ".join([*mounts, shlex.join(inside)])])


def _pip_places() -> list[Path]:
    """Return what this machine's pip is told to read: its settings, certificates, directories of packages."""
    told = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    named = [Path(each) for each in re.findall(r"(?:file://)?(/[^\s'\\]+)", told)]
    settings = [Path("/etc/pip.conf")]
    return [path for path in dict.fromkeys([*settings, *named]) if path.exists() and path.parts[1] != "src"]


def _package_variables() -> dict[str, str]:
    ours = re.compile(r"(PIP_|.*_proxy$|.*_PROXY$)")
    return {name: value for name, value in os.environ.items() if ours.match(name)} | {
        "DEBIAN_FRONTEND": "noninteractive"
    }


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
