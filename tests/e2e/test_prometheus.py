"""Law: a real Prometheus, set up as deploy/prometheus says, sees a real service, and its rules are sound."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from live_fleet import umbel
from service_fleet import policy
from umbel_proto.ids import FleetId
from umbel_server.demo.supervisor import Supervisor
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.ports import free_ports

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "deploy" / "prometheus"
LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module", autouse=True)
def _debians_prometheus() -> None:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        assert "CI" not in os.environ, "CI has prometheus"
        pytest.skip("this takes Debian's prometheus")


def test_the_rules_are_sound_and_fire_when_they_should(tmp_path: Path) -> None:
    rules = SETTINGS / "rules.yml"
    cases = tmp_path / "cases.yml"
    cases.write_text((ROOT / "tests" / "deploy" / "rules_test.yml").read_text().replace("RULES", str(rules)))
    for words in (["check", "rules", rules], ["test", "rules", cases]):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_names_a_page_that_says_what_to_do() -> None:
    for group in yaml.safe_load((SETTINGS / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            path, _, anchor = rule["annotations"]["runbook"].partition("#")
            headings = [line for line in (ROOT / path).read_text().splitlines() if line.startswith("#")]
            anchors = {line.lstrip("# ").lower().replace(" ", "-") for line in headings}
            assert anchor in anchors, rule["alert"]


def test_prometheus_sees_the_service(tmp_path: Path) -> None:
    fleet = create_fleet(tmp_path / "fleet", name=FleetId("garden"), policy=policy())
    logs = tmp_path / "log"
    logs.mkdir()
    (port,) = free_ports(1, listen=LOOPBACK, taken=frozenset())
    with Supervisor(logs) as supervisor:
        for name in ("gateway", "health"):
            started = supervisor.start(name, umbel("serve", name, "--fleet", fleet.path))
            supervisor.wait(
                name, lambda started=started, name=name: started.says(f"ready {name}"), timeout_s=60
            )  # type: ignore[misc]
        supervisor.start(
            "prometheus",
            [
                "prometheus",
                f"--config.file={settings_for(fleet, tmp_path)}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={LOOPBACK}:{port}",
            ],
        )

        def seen(query: str) -> list[dict[str, Any]]:
            try:
                answer = httpx.get(f"http://{LOOPBACK}:{port}/api/v1/query", params={"query": query})
            except httpx.TransportError:
                return []
            return list(answer.json()["data"]["result"]) if answer.is_success else []

        def says_one(name: str) -> bool:
            return [each["value"][1] for each in seen(name)] == ["1"]

        # The figures of one look do not all come at one moment.
        for name in ("up", "umbel_store_up"):
            supervisor.wait(f"{name} to be 1", lambda name=name: says_one(name), timeout_s=60)  # type: ignore[misc]
        supervisor.wait("expiries", lambda: bool(seen("umbel_expiry_timestamp_seconds")), timeout_s=60)
        expiries = {
            each["metric"]["what"]: float(each["value"][1]) for each in seen("umbel_expiry_timestamp_seconds")
        }
        assert {"ca", "server"} <= expiries.keys()
        assert min(expiries.values()) > time.time()


def test_figures_are_for_those_with_the_token(tmp_path: Path) -> None:
    fleet = create_fleet(tmp_path / "fleet", name=FleetId("garden"), policy=policy())
    logs = tmp_path / "log"
    logs.mkdir()
    with Supervisor(logs) as supervisor:
        health = supervisor.start("health", umbel("serve", "health", "--fleet", fleet.path))
        supervisor.wait("health", lambda: health.says("ready health"), timeout_s=60)
        url = f"https://{LOOPBACK}:{fleet.settings.health.port}/metrics"
        trust = ssl.create_default_context(cafile=str(fleet.ca_pem))
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert httpx.get(url, headers=headers, verify=trust).status_code == 401


def settings_for(fleet: FleetDir, tmp_path: Path) -> Path:
    """The settings as they are in deploy/, but for where the two files and the port are."""
    settings = yaml.safe_load((SETTINGS / "prometheus.yml").read_text())
    settings["global"]["scrape_interval"] = "1s"
    settings["rule_files"] = [str(SETTINGS / "rules.yml")]
    (job,) = settings["scrape_configs"]
    job["authorization"]["credentials_file"] = str(fleet.path / "keys" / "metrics.token")
    job["tls_config"]["ca_file"] = str(fleet.ca_pem)
    job["static_configs"] = [{"targets": [f"{LOOPBACK}:{fleet.settings.health.port}"]}]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(settings))
    return path
