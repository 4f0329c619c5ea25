"""The dashboard that we ship shows figures that the service gives: by these names, with these labels, in expressions that parse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from service_fleet import ManualClock, make_fleet
from umbel_server.monitor.alerts.meters import meters as alert_meters
from umbel_server.monitor.alerts.state import Timing
from umbel_server.services.memory import resident_bytes
from umbel_server.services.metrics import meters
from umbel_server.services.vitals import FRESH_S, Vitals
from umbel_server.store.alerts import Reading, Telling

BOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "deploy" / "grafana" / "umbel.json").read_text()
)
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
TELLING = Telling({}, lambda kind, those: {})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, frozenset[str]]:
    """Labels of each name that /metrics has, the scrape's own beside them."""
    meters().answered("Upload", "OK", 0.1)
    meters().failed("StorageError")
    meters().opened(1, 0, 1)
    alert_meters().looked("done")
    alert_meters().sent("mail", "sent")
    root = tmp_path_factory.mktemp("grafana")
    fleet = make_fleet(root / "garden")
    with fleet.open_store() as store:
        families = [*Vitals(fleet, store).collect(), *REGISTRY.collect()]
    found: dict[str, frozenset[str]] = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("umbel_"):
                found[sample.name] = frozenset(sample.labels) | {"job", "instance"}
    # In a test no process is a service; what it says of those is tested below.
    return found | {"umbel_service_resident_bytes": frozenset({"job", "instance", "service"})}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_asks_for_what_the_service_gives(
    expression: str, exported: dict[str, frozenset[str]]
) -> None:
    names = re.findall(r"umbel_\w+", expression)
    assert names
    assert set(names) <= exported.keys()
    asked = set(re.findall(r"(\w+)=~?\"", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        asked |= {each.strip() for each in group.split(",")}
    assert all(asked <= exported[name] for name in names), asked


def test_every_legend_names_a_label_that_is_there(exported: dict[str, frozenset[str]]) -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            (name, *_) = re.findall(r"umbel_\w+", target["expr"])
            assert labels <= exported[name], panel["title"]


def test_every_expression_parses(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        assert "CI" not in os.environ, "CI has prometheus"
        pytest.skip("this takes Debian's prometheus")
    filled = [each.replace("$__rate_interval", "5m").replace("$job", "umbel") for each in EXPRESSIONS]
    assert not [each for each in filled if "$" in each]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(filled)]
    path = tmp_path / "board.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_panel_covers_another_and_all_ask_one_prometheus() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} == {"${datasource}"}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert {each["name"] for each in BOARD["templating"]["list"]} == {"datasource", "job"}


def test_alerts_are_counted_by_severity_and_state_and_none_is_zero(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    with fleet.open_store(clock=clock) as store:
        vitals = Vitals(fleet, store)

        def firing() -> dict[tuple[str, str], float]:
            (family,) = (each for each in vitals.collect() if each.name == "umbel_alerts")
            return {(each.labels["severity"], each.labels["state"]): each.value for each in family.samples}

        assert set(firing().values()) == {0}
        assert len(firing()) == 9
        found = [Reading({"model": name}, True, 1.0, "It drifts.") for name in ("digits", "letters")]
        store.alerts.look("drift", "critical", found, Timing(), telling=TELLING, act=lambda c, a: ())
        clock.advance(FRESH_S + 1)
        assert firing()["critical", "firing"] == 2
        assert sum(firing().values()) == 2


def test_memory_is_summed_by_service_with_what_it_started_and_only_of_this_fleet(tmp_path: Path) -> None:
    page, fleet = os.sysconf("SC_PAGE_SIZE"), Path("/srv/garden")
    commands = {
        "10": "python -m umbel serve gateway --fleet /srv/garden",
        "11": "python -m umbel serve gateway --fleet /srv/garden --worker 1",
        "12": "umbel serve health --fleet=/srv/garden",
        "13": "umbel serve health --fleet /srv/garden2",
        "14": "umbel fleet devices --fleet /srv/garden",
        "15": "",
        "20": "python -m umbel serve console --fleet /srv/garden",
        "21": "python -m umbel_server.console.seen.worker",
        "22": "sh -c sort",
        "23": "python -m umbel serve opener --fleet /srv/garden",
        "24": "python -m umbel_server.console.seen.worker",
        "self": "umbel serve ca --fleet /srv/garden",
    }
    started_by = {"21": 20, "22": 21, "23": 20, "24": 13}
    for pid, command in commands.items():
        (tmp_path / pid).mkdir()
        parent = started_by.get(pid, 1)
        (tmp_path / pid / "stat").write_text(f"{pid} (a) b) S {parent} {pid} {pid} 0 -1 4194304 0\n")
        (tmp_path / pid / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
        (tmp_path / pid / "statm").write_text("100 7 3 1 0 9 0\n")
    (tmp_path / "16").mkdir()  # It has ended meanwhile.
    assert resident_bytes(fleet, root=tmp_path) == {
        "gateway": 14 * page,
        "health": 7 * page,
        "console": 21 * page,
        "opener": 7 * page,
    }
