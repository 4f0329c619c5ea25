"""``umbel registry``: what people type, from a package to its release; and what the card, the sheet and the table say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from model_packages import RELEASE, resigned
from registry_world import package
from service_fleet import policy
from umbel import cli
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import held
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry.compare import Change, difference
from umbel_server.registry.figures import Metric
from umbel_server.trust.repository import Repository

ROLES = {"anna": Role.RELEASE_MANAGER, "ben": Role.REVIEWER, "carl": Role.REVIEWER}


@dataclass
class Terminal:
    """The ``umbel`` command, typed."""

    patch: pytest.MonkeyPatch
    captured: pytest.CaptureFixture[str]
    home: Path

    def __call__(self, *words: object, by: str = "", code: int = 0) -> str:
        self.patch.delenv("UMBEL_API_TOKEN", raising=False)
        acting = ["--as", str(self.home / f"{by}.token")] if by else []
        self.patch.setattr("sys.argv", ["umbel", *map(str, words), *acting])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = self.captured.readouterr()
        assert int(exit_.value.code or 0) == code, out + err
        return out if code == 0 else err

    def json(self, *words: object, by: str = "") -> Any:
        return json.loads(self("registry", *words, "--json", by=by))


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    made = create_fleet(tmp_path / "garden", name="garden", policy=policy(), approvals=2)
    made.release_key.write_bytes(RELEASE.to_pem())
    made.release_pub.write_bytes(RELEASE.public.raw)
    with made.open_store() as store:
        for name, role in ROLES.items():
            store.accounts.add(local_actor(), name, roles=frozenset({role}))
            token, _ = store.api_tokens.create(local_actor(), name, scopes=held({role}), valid_s=3600)
            (tmp_path / f"{name}.token").write_text(token + "\n")
    return made


@pytest.fixture
def umbel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fleet: FleetDir
) -> Terminal:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("UMBEL_FLEET", str(fleet.path))
    return Terminal(monkeypatch, capsys, tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> dict[int, Path]:
    """Digits 1 and 2; the second one takes brighter pictures and has a run behind it."""

    def second(body: dict[str, Any]) -> None:
        body["contract"][0]["maximum"] = 32.0
        body["lineage"] |= {"run": "run-7", "epsilon_server": 3.5}

    found = {1: tmp_path / "digits-1.umbel", 2: tmp_path / "digits-2.umbel"}
    found[1].write_bytes(package(1))
    found[2].write_bytes(resigned(package(2), second))
    return found


def describe(umbel: Terminal) -> None:
    umbel("registry", "describe", "digits", "--owner", "anna", "--purpose", "reads | digits", "--risk", "minimal",
          "--review", "2020-01-31", by="anna")  # fmt: skip


def test_a_version_goes_from_a_file_to_devices_and_back(
    umbel: Terminal, files: dict[int, Path], fleet: FleetDir
) -> None:
    assert "umbel registry add" in umbel("fleet", "publish", files[1], by="anna", code=3)
    assert "umbel registry request digits@1" in umbel("registry", "add", files[1], by="anna")
    assert "umbel registry describe digits" in umbel(
        "registry", "request", "digits@1", "--comment", "first", by="anna", code=3
    )
    describe(umbel)
    assert "say why" in umbel("registry", "request", "digits@1", by="anna", code=2)
    assert "2 accounts besides anna" in umbel(
        "registry", "request", "digits@1", "--comment", "first", by="anna"
    )
    assert "is no account" in umbel("registry", "approve", "digits@1", "--comment", "me", code=3)
    assert "asked for this" in umbel("registry", "approve", "digits@1", "--comment", "me", by="anna", code=3)
    assert "1 more must" in umbel("registry", "approve", "digits@1", "--comment", "good", by="ben")
    out = umbel("registry", "approve", "digits@1", "--comment", "very good", by="carl")
    command = out.strip().splitlines()[-1].partition("Next:  umbel ")[2]
    assert "Released digits@1" in umbel(*command.split(), by="anna")
    [line] = umbel.json("list")
    assert (line["stage"], line["approvals"]) == ("released", "2/2")
    umbel("registry", "stage", "digits@1", "deprecated", "--reason", "old", by="anna")
    umbel("registry", "stage", "digits@1", "released", "--reason", "not so old", by="anna")
    assert "umbel registry retire" in umbel(
        "registry", "stage", "digits@1", "retired", "--reason", "x", code=2
    )
    umbel("registry", "retire", "digits@1", "--reason", "wrong", by="anna")
    assert Repository.of(fleet).read().lines["digits"].signed.targets == {}
    with fleet.open_store() as store:
        actors = [entry.actor for entry in store.audit.all() if entry.action.startswith("version.")]
    assert actors == ["anna", "anna", "ben", "carl", "anna", "anna", "anna", "anna"]


def test_a_token_from_the_environment_counts_and_one_of_another_scope_does_not(
    umbel: Terminal, files: dict[int, Path], fleet: FleetDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from umbel_server.access.acting import acting_as
    from umbel_server.access.permissions import parse_scopes

    with fleet.open_store() as store:
        narrow, _ = store.api_tokens.create(
            local_actor(), "anna", scopes=parse_scopes(["registry:read"]), valid_s=60
        )
        monkeypatch.setenv("UMBEL_API_TOKEN", (tmp_path / "ben.token").read_text().strip())
        assert acting_as(store, None, next(iter(held({Role.REVIEWER})))).name == "ben"
    (tmp_path / "narrow.token").write_text(narrow)
    error = umbel("registry", "add", files[1], by="narrow", code=3)
    assert "not for registry:write" in error
    assert narrow not in error
    (tmp_path / "wrong.token").write_text("umbel_wrong")
    umbel("registry", "add", files[1], by="wrong", code=3)
    umbel("registry", "add", files[1], by="missing", code=2)


def test_show_tells_the_evidence_the_decisions_and_what_was_said(
    umbel: Terminal, files: dict[int, Path]
) -> None:
    describe(umbel)
    umbel("registry", "add", files[1], "--code", "git:12ab", by="anna")
    umbel("registry", "request", "digits@1", "--comment", "it reads", by="anna")
    umbel("registry", "approve", "digits@1", "--comment", "as promised", by="ben")
    umbel("registry", "comment", "digits@1", "what of the sevens?", by="carl")
    text = umbel("registry", "show", "digits@1")
    for part in ("candidate", "git:12ab", "it reads", "as promised", "what of the sevens?", "needs 1 more"):
        assert part in text
    told = umbel.json("show", "digits@1")
    assert told["approvals_missing"] == 1
    evidence = told["requests"][0]["evidence"]
    assert {each["kind"] for each in evidence["evaluation"]} >= {"accuracy", "log loss"}
    assert "accuracy int8" in evidence["quantization"]
    assert "overdue" in umbel("registry", "list")
    assert umbel("registry", "show", "digits") == text
    assert "digits@3" in umbel("registry", "show", "digits@3", code=2)
    assert "no version of letters" in umbel("registry", "show", "letters", code=2)
    assert "MODEL@VERSION" in umbel("registry", "show", "digits@new", code=2)


def test_the_card_is_a_cyclonedx_document_with_what_the_registry_knows(
    umbel: Terminal, files: dict[int, Path], tmp_path: Path
) -> None:
    describe(umbel)
    umbel("registry", "add", files[1], by="anna")
    umbel("registry", "add", files[2], by="anna")
    umbel("registry", "request", "digits@2", "--comment", "better", by="anna")
    umbel("registry", "approve", "digits@2", "--comment", "a | b <script>", by="ben")
    umbel("registry", "card", "digits@2", "--json", "--out", tmp_path / "card.json")
    raw = (tmp_path / "card.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw) is None
    component = json.loads(raw)["metadata"]["component"]
    told = {each["name"].removeprefix("umbel:registry:"): each["value"] for each in component["properties"]}
    assert told["owner"] == "anna"
    assert told["approved by ben"].endswith("a | b <script>")
    assert component["pedigree"]["ancestors"][0]["version"] == "1"
    assert component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]

    markdown = umbel("registry", "card", "digits@2")
    _, front, body = markdown.split("---\n", 2)
    matter = yaml.safe_load(front)
    [index] = matter["model-index"]
    assert index["name"] == "digits"
    assert {each["type"] for each in index["results"][0]["metrics"]} >= {"accuracy", "log_loss"}
    assert "reads \\| digits" in body
    assert "<script>" not in body
    assert "| accuracy | all |" in body


def test_a_package_without_a_card_has_one_in_the_registry(umbel: Terminal, tmp_path: Path) -> None:
    def bare(body: dict[str, Any]) -> None:
        body["documents"] = {key: name for key, name in body["documents"].items() if key == "quantization"}

    (tmp_path / "bare.umbel").write_bytes(resigned(package(1), bare))
    umbel("registry", "add", tmp_path / "bare.umbel", by="anna")
    raw = umbel("registry", "card", "digits@1", "--json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw) is None
    assert "Nobody said what it is for" in umbel("registry", "card", "digits@1")
    assert "Nobody said." in umbel("registry", "datasheet", "digits@1")


def test_the_data_sheet_has_the_headings_and_what_contract_baseline_and_lineage_tell(
    umbel: Terminal, files: dict[int, Path]
) -> None:
    umbel("registry", "add", files[2], by="anna")
    sheet = umbel("registry", "datasheet", "digits@2")
    # The headings of Gebru et al., in their order.
    headings = ("Motivation", "Composition", "Collection process", "Preprocessing", "Uses", "Distribution")
    places = [sheet.index(f"## {heading}") for heading in (*headings, "Maintenance")]
    assert places == sorted(places)
    assert "| x | float32 | 1x8x8 | 0 | 32 |" in sheet
    assert "| confidence |" in sheet
    assert "epsilon_server 3.5" in sheet


def test_two_versions_are_compared_field_by_field(
    umbel: Terminal, files: dict[int, Path], tmp_path: Path
) -> None:
    for file in files.values():
        umbel("registry", "add", file, by="anna")
    told = umbel.json("compare", "digits@1", "digits@2", "--plot", tmp_path / "both.png")
    assert told["contract"] == {"x.maximum": {"before": 16.0, "after": 32.0}}
    assert told["lineage"]["run"] == {"before": None, "after": "run-7"}
    assert told["lineage"]["parent"] == {"before": None, "after": 1}
    assert told["sizes"].keys() == {"package"}
    assert {each["verdict"] for each in told["metrics"]} == {"", "no clear difference"}
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    text = umbel("registry", "compare", "digits@1", "digits@2")
    assert "x.maximum" in text
    assert "no clear difference" in text


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # Newcombe 1998, table II, method 10: 56/70 and 48/80; 9/10 and 3/10; 10/10 and 0/20.
        ((48, 80), (56, 70), (0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.1705, 0.8090)),
        ((0, 20), (10, 10), (0.6791, 1.0000)),
    ],
)
def test_the_difference_of_two_shares_is_newcombes(
    before: tuple[int, int], after: tuple[int, int], expected: tuple[float, float]
) -> None:
    from umbel_models.evaluation import wilson

    first, second = (Metric("accuracy", hits / of, "", wilson(hits, of)) for hits, of in (before, after))
    found = difference(first, second)
    assert found == pytest.approx(expected, abs=5e-5)
    assert Change("accuracy", "", first, second, found).verdict == "better"
    assert Change("log loss", "", first, second, found).verdict == "worse"
    assert Change("surprise", "", first, second, found).verdict == "changed"
    assert difference(first, Metric("accuracy", 0.5)) is None


def test_help_loads_neither_the_schema_nor_torch() -> None:
    program = (
        "import sys; from umbel_server.registry.command import app; import typer;"
        "typer.main.get_command(app); print([n for n in ('cyclonedx', 'torch', 'matplotlib', 'sqlalchemy') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
