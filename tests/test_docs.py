"""The documents say what the code does: every command, option, name, variable and link."""

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import umbel
from umbel._commands import rooms
from umbel.cli import app
from umbel_proto import errors

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md")))
FLEET = ("umbel fleet", "umbel serve")
EVERYWHERE = {"--help", "--install-completion", "--show-completion", "--server"}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        # A release's source archive holds no list of tracked files. CI works on a checkout and must run this.
        assert "CI" not in os.environ, "CI runs on a git checkout"
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group) and command.commands:
        for word, child in command.commands.items():
            yield from leaves(f"{name} {word}", child)
    else:
        yield name, command


def commands() -> list[tuple[str, click.Command]]:
    found = list(leaves("umbel", app))
    for point in importlib.metadata.entry_points(group="umbel.commands"):
        found += leaves(f"umbel {point.name}", rooms._load(point))
    return found


COMMANDS = commands()


def section(name: str) -> str:
    found = re.search(rf"^## `?{name}(?: [A-Z]+)?`?\n(.*?)(?=^## |\Z)", REFERENCE, re.M | re.S)
    assert found is not None, f"docs/reference has no section {name}"
    return found[1]


def test_the_commands_of_every_room_are_looked_at() -> None:
    names = {name for name, _ in COMMANDS}
    assert {
        "umbel enroll",
        "umbel demo",
        "umbel fleet create",
        "umbel serve opener",
        "umbel model pack",
    } <= names


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_option_of_a_command_is_in_its_section(name: str, command: click.Command) -> None:
    text = section(name)
    if name.startswith("umbel rounds"):
        text += REFERENCE[REFERENCE.index("# `umbel rounds`") :].split("\n## ")[0] + "`--fleet`"
    if name.startswith(FLEET):
        text += REFERENCE[REFERENCE.index("# `umbel fleet` and `umbel serve`") :].split("\n## ")[0]
    options = {each for option in command.params if isinstance(option, click.Option) for each in option.opts}
    missing = [each for each in options - EVERYWHERE if not re.search(rf"`{each}(?![a-z-])", text)]
    assert missing == []


@pytest.mark.parametrize("name", umbel.__all__)
def test_every_public_name_is_in_the_docs(name: str) -> None:
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in DOCS)


def test_every_exit_code_is_in_the_reference() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    codes = {each.exit_code for each in kinds if issubclass(each, errors.UmbelError)}
    assert codes <= {int(code) for code in re.findall(r"^\| (\d+) \|", REFERENCE, re.M)}


@pytest.mark.parametrize("path", DOCS, ids=[str(path.relative_to(ROOT)) for path in DOCS])
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.S))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    for target in local:
        name, _, anchor = target.partition("#")
        file = path if not name else path.parent / name
        assert file.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}


def test_every_environment_variable_is_documented() -> None:
    sources = [
        path for room in ("client", "server", "proto", "models") for path in (ROOT / room).rglob("*.py")
    ]
    used = {name for path in sources for name in re.findall(r"\bUMBEL_[A-Z_]+\b", path.read_text())}
    assert used
    assert sorted(name for name in used if f"`{name}`" not in REFERENCE) == []


def test_the_index_of_decisions_is_complete() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs" / "adr").glob("0*.md")}
    assert set(re.findall(r"\((0[^)]+\.md)\)", index)) == pages


def test_the_example_of_the_readme_compiles() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


def test_no_tracked_file_holds_a_path_of_a_developers_machine() -> None:
    # Put together here, so that this file is no exception.
    machine = re.compile(r"(?<![\w.}~-])/(?:" + "|".join(("root", "home", "work")) + r")/\w")
    found = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}:{i}" for i, line in enumerate(lines, 1) if machine.search(line)]
    assert found == []
