"""The ``umbel`` command: what it loads, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from service_fleet import make_fleet
from umbel._commands import rooms
from umbel._commands.options import Argument
from umbel._home.directory import DeviceHome, Identity
from umbel._rounds.asked import AskedQuery
from umbel._rounds.ledger import Ledger
from umbel.cli import app
from umbel_proto import errors
from umbel_proto.credentials import FleetPolicy, sign_policy
from umbel_proto.ids import DeviceId, FleetId, RunId
from umbel_proto.keys import SigningKey
from umbel_proto.privacy.ledger import Charge

UMBEL = Path(sys.executable).with_name("umbel")
ROOT = Path(__file__).resolve().parents[2]

PLUGIN = """
import errno, os, signal, time, typer
from umbel_proto import errors
app = typer.Typer()

@app.command()
def fail(how: str) -> None:
    if how == "interrupt":
        # A shell starts what runs in the background with the signal ignored; a terminal's Ctrl-C comes through.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    if how == "disk":
        raise OSError(errno.ENOSPC, "no room", "/some/file")
    if how == "bug":
        raise ZeroDivisionError
    if how == "RemoteProtocolError":
        raise errors.RemoteProtocolError("server", "A sentence.")
    if how == "MissingExtraError":
        raise errors.MissingExtraError("torch")
    raise getattr(errors, how)("A sentence.")
"""


def umbel(*args: object, plugins: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    if plugins is not None:
        environment["PYTHONPATH"] = str(plugins)
    command = [str(UMBEL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A directory as pip would leave it after installing packages with commands for umbel."""
    info = tmp_path / "plugins" / "plug-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[umbel.commands]\nplug = plug:app\nlacking = lacking:app\nbroken = broken:app\n"
    )
    (info.parent / "plug.py").write_text(PLUGIN)
    (info.parent / "lacking.py").write_text("import a_library_that_is_not_installed\n")
    (info.parent / "broken.py").write_text("import umbel._a_module_that_is_not_there\n")
    return info.parent


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    """An enrolled device that never meets a gateway: enough to look at its ledger."""
    home, authority = DeviceHome(tmp_path / "home"), SigningKey.generate()
    home.make()
    policy = FleetPolicy(FleetId("garden"), 0.1, 0.2, True, 3, 0.0, float("inf"), 1e-6)
    home.write(home.authority_key, authority.public.raw, secret=False)
    home.write(home.policy, sign_policy(authority, policy), secret=False)
    Ledger.create(home.ledger).close()
    home.write_identity(Identity(FleetId("garden"), DeviceId("rose"), "127.0.0.1:1", ""))
    return home


def test_the_version_is_printed() -> None:
    done = umbel("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"umbel \d+\.\d+\.\d+\S*\n", done.stdout)


def test_help_names_every_command_without_loading_the_other_rooms() -> None:
    code = (
        "import sys\nfrom umbel.cli import main\nsys.argv = ['umbel', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("enroll", "run", "predict", "status", "privacy", "demo", "fleet", "serve", "model"):
        assert re.search(rf"\b{command}\b.*[A-Z]\w+", done.stdout)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "umbel" in loaded
    assert not loaded & {"umbel_server", "umbel_models", "flwr", "grpc", "h2", "torch", "numpy", "sqlalchemy"}


def test_every_command_of_our_other_distributions_has_a_summary_of_its_own() -> None:
    ours = {point.name for point in entry_points(group=rooms.GROUP) if point.value.startswith("umbel_")}
    assert {"serve", "model"} <= ours
    assert sorted(ours - rooms._KNOWN.keys()) == []


def test_a_shell_completes_commands_of_every_room() -> None:
    def complete(line: str) -> set[str]:
        environment = {"_UMBEL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "2"}
        done = subprocess.run(
            [UMBEL], env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stderr == ""
        return set(done.stdout.replace("plain,", "").split())

    assert complete("umbel data con") == {"consent", "conditions"}
    assert complete("umbel fleet pub") == {"publish"}


def test_completion_is_silent_about_what_is_not_installed(plugins: Path) -> None:
    environment = {"_UMBEL_COMPLETE": "bash_complete", "COMP_WORDS": "umbel lacking ", "COMP_CWORD": "2"}
    done = subprocess.run(
        [UMBEL],
        env=os.environ | environment | {"PYTHONPATH": str(plugins)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_only_the_command_that_was_asked_for_is_loaded(plugins: Path) -> None:
    assert umbel("--version", plugins=plugins).returncode == 0
    assert "plug" in umbel("--help", plugins=plugins).stdout
    done = umbel("plug", "--help", plugins=plugins)
    assert (done.returncode, "HOW" in done.stdout) == (0, True)


def test_an_unknown_command_is_refused() -> None:
    done = umbel("enrol")
    assert done.returncode == 2
    assert "enroll" in done.stderr


def test_an_argument_that_may_stand_in_the_environment_says_so_when_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UMBEL_TOKEN", raising=False)
    result = CliRunner().invoke(app, ["enroll", "--home", str(tmp_path)])
    assert (result.exit_code, "Give it, or set UMBEL_TOKEN." in result.output) == (2, True)


def test_without_a_command_the_help_is_shown() -> None:
    done = umbel()
    assert "enroll" in done.stdout + done.stderr


def test_a_command_whose_extra_is_missing_says_what_to_install(plugins: Path) -> None:
    done = umbel("lacking", plugins=plugins)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: umbel lacking needs an optional part of umbel: run  pip install 'umbel[lacking]'.\n"
    )


@pytest.mark.parametrize(
    ("command", "extra"), [("demo", "demo"), ("fleet", "server"), ("serve", "server"), ("model", "models")]
)
def test_every_known_command_names_the_extra_it_comes_with(command: str, extra: str, plugins: Path) -> None:
    code = (
        "import sys, importlib.metadata as metadata; from umbel._commands import rooms\n"
        "point = metadata.EntryPoint(sys.argv[1], 'lacking:app', rooms.GROUP)\n"
        "try: rooms._load(point)\nexcept Exception as exc: print(type(exc).__name__, exc.extra)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(plugins)},
    )
    assert done.stdout == f"MissingExtraError {extra}\n"


def test_a_missing_module_of_our_own_is_a_bug_and_shown_as_one(plugins: Path) -> None:
    done = umbel("broken", plugins=plugins)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "umbel._a_module_that_is_not_there" in done.stderr


@pytest.mark.parametrize(
    "kind",
    [
        errors.UmbelError,
        errors.UsageError,
        errors.MissingExtraError,
        errors.BudgetError,
        errors.TokenError,
        errors.PackageError,
        errors.CertificateError,
        errors.UnavailableError,
        errors.StorageError,
        errors.LocalProtocolError,
        errors.RemoteProtocolError,
    ],
)
def test_every_error_is_one_sentence_and_its_exit_code(kind: type[errors.UmbelError], plugins: Path) -> None:
    done = umbel("plug", kind.__name__, plugins=plugins)
    assert (done.returncode, done.stdout) == (kind.exit_code, "")
    assert re.fullmatch(r"Error: [^\n]*\.\n", done.stderr)


def test_ctrl_c_ends_with_130_and_no_traceback(plugins: Path) -> None:
    done = umbel("plug", "interrupt", plugins=plugins)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_full_disk_anywhere_is_a_sentence(plugins: Path) -> None:
    done = umbel("plug", "disk", plugins=plugins)
    assert done.returncode == 6
    assert done.stderr == "Error: No space is left on the disk of /some/file: free some and try again.\n"


def test_an_older_python_is_told_what_is_needed() -> None:
    code = "import sys; sys.version_info = (3, 10, 9, 'final', 0); import umbel.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "umbel needs Python 3.11 or newer: install one, and umbel in it.\n",
    )


@pytest.mark.parametrize(
    "command", [["status"], ["privacy"], ["run"], ["predict", "digits", str(Path(__file__))]]
)
def test_a_device_that_is_not_enrolled_is_told_how(command: list[str], tmp_path: Path) -> None:
    if command[0] == "predict":
        import numpy as np

        command[2] = str(tmp_path / "x.npz")
        np.savez(command[2], x=np.zeros((1, 8, 8)))
    done = umbel(*command, "--home", tmp_path / "nobody")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"umbel enroll TOKEN --home {tmp_path / 'nobody'}" in done.stderr


def test_looking_at_a_home_that_is_not_there_makes_none(tmp_path: Path) -> None:
    umbel("status", "--home", tmp_path / "nobody")
    assert list(tmp_path.iterdir()) == []


def test_every_charge_to_the_privacy_budget_is_shown(home: DeviceHome) -> None:
    with Ledger(home.ledger) as ledger:
        for number, variance in enumerate((Fraction(10**13), Fraction(0))):
            charge = Charge(
                RunId("run7"), number, 1, bytes([number]) * 32, 10**12, 1000, variance, time.time()
            )
            ledger.charge(charge, budget_epsilon=float("inf"), budget_delta=1e-6)
    shown = json.loads(umbel("privacy", "--home", home.path, "--json").stdout)
    assert (shown["device"], shown["budget"]) == ("rose", {"epsilon": None, "delta": 1e-6})
    first, second = shown["charges"]
    assert (first["run"], first["round"], first["attempt"]) == ("run7", 0, 1)
    assert first["noise_multiplier"] == pytest.approx(10**0.5)
    assert 0 < first["epsilon_after"] < 20
    assert (second["noise_multiplier"], second["epsilon_after"], shown["epsilon"]) == (0, None, None)
    table = umbel("privacy", "--home", home.path).stdout
    assert "run7" in table
    assert "infinite" in table


def names_in(value: object) -> set[str]:
    """The names of every object in a value of JSON."""
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, list) else set()


def test_every_field_of_what_a_device_has_shared_is_in_the_reference(home: DeviceHome) -> None:
    with Ledger(home.ledger) as ledger:
        charge = Charge(RunId("run7"), 1, 1, bytes(32), 10**12, 1000, Fraction(10**13), time.time())
        ledger.charge(charge, budget_epsilon=float("inf"), budget_delta=1e-6)
    shown = json.loads(umbel("privacy", "--home", home.path, "--json").stdout)
    asked = AskedQuery("q1", "mean", "digits", 1, "x", "", "The mean.", 1, "ada", "why", "agreed", "", 0.0)
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    told = page.partition("\n## umbel privacy\n")[2].partition("\n## ")[0]
    fields = names_in({**shown, "queries": [asked.to_json(1.0)]})
    assert {
        name for name in fields if not re.search(rf"\b{name}\b", told.partition("--json` | ")[2])
    } == set()


def commands() -> list[tuple[str, click.Command]]:
    """Whatever does something by itself, by its words."""
    everything = [(" ".join(path), command) for path, command in spoken(app, ()) if path]
    return [
        (name, command)
        for name, command in sorted(everything, key=lambda each: each[0])
        if not isinstance(command, click.Group) or command.invoke_without_command
    ]


def spoken(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from spoken(below, (*path, name))


def test_the_help_of_every_command_explains_each_of_its_arguments() -> None:
    """They are short words otherwise; a release of click made the help of all of them vanish."""
    everything = [
        (path, command) for path, command in spoken(app, ()) if not isinstance(command, click.Group)
    ]
    for plugin in entry_points(group="umbel.commands"):
        loaded = rooms._load(plugin)
        everything += [
            each for each in spoken(loaded, (plugin.name,)) if not isinstance(each[1], click.Group)
        ]
    assert len(everything) > 15
    silent = [
        (*path, each.name)
        for path, command in everything
        for each in command.params
        if isinstance(each, click.Argument) and not getattr(each, "help", "")
    ]
    assert silent == []


def test_the_help_of_a_device_command_shows_what_its_arguments_are() -> None:
    with_arguments = [
        (command, argument)
        for _, command in spoken(app, ())
        for argument in command.params
        if isinstance(argument, Argument)
    ]
    assert with_arguments
    for command, argument in with_arguments:
        shown = " ".join(command.get_help(click.Context(command)).split())
        assert argument.human_readable_name in shown
        assert argument.help in shown


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_option_is_in_the_reference(name: str, command: click.Command) -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    section = re.search(rf"^## umbel {name}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section is not None
    for parameter in command.params:
        names = parameter.opts if isinstance(parameter, click.Option) else [parameter.human_readable_name]
        assert all(f"`{each}" in section[1] for each in names), names


def test_the_reference_names_every_exit_code() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    rows = re.search(r"^## Exit codes\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert rows is not None
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", rows[1], re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert codes == {kind.exit_code for kind in kinds} | {0, 130}


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (["fleet", "devices", "--fleet", "FLEET"], "sqlalchemy", "server"),
        (["serve", "superlink", "--fleet", "FLEET"], "flwr", "server"),
        (["model", "build", "digits", "--out", "x", "--key", "y"], "onnx", "models"),
        (["demo"], "matplotlib", "demo"),
    ],
)
def test_a_library_that_is_missing_only_when_a_command_runs_is_a_sentence_too(
    words: list[str], missing: str, extra: str, tmp_path: Path
) -> None:
    if "FLEET" in words:
        make_fleet(tmp_path / "FLEET")
    code = f"import sys\nsys.modules[{missing!r}] = None\nsys.argv = ['umbel', *{words!r}]\n"
    code += "from umbel.cli import main\nmain()"
    (tmp_path / "y").write_bytes(SigningKey.generate().to_pem())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()  # before it, what the command said it was doing
    assert last.startswith("Error: ")
    assert f"pip install 'umbel[{extra}]'" in last
