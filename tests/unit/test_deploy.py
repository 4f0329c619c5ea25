"""Law: what deploys the service is of the form that its tools read, and confines what it starts.

The chart is rendered by Go's own templates and Sprig, as Helm does, and checked against Kubernetes' schemas.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import Ports
from umbel_server.store.postgresql import postgresql_url
from umbel_server.store.settings import ENVIRONMENT

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "umbel"
RENDER = ROOT / "tests" / "deploy" / "render.go"
KUBERNETES = ("1.27", "1.37")
NAMED: dict[str, Any] = {"fleet": {"name": "meadow", "host": "fleet.example"}}
EVERYTHING: dict[str, Any] = {
    "fleet": {
        "name": "meadow",
        "host": "fleet.example",
        "storeSecret": "store",
        "storeAuthoritySecret": "store-ca",
    },
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "service": {"annotations": {"a": "b"}, "loadBalancerSourceRanges": ["192.0.2.0/24"]},
    "persistence": {"existingClaim": "kept"},
    "networkPolicy": {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "edge", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"c": "d"},
}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that renders, built once."""
    library = Path("/usr/share/gocode")  # Where Debian puts Go's libraries.
    if shutil.which("go") is None or not (library / "src/github.com/Masterminds/sprig").exists():
        assert "CI" not in os.environ, "CI has Go and Sprig"
        pytest.skip("rendering the chart takes Debian's golang-go and golang-github-masterminds-sprig-dev")
    made = tmp_path_factory.mktemp("render")
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(library), "GOCACHE": str(made / "cache")}
    subprocess.run(["go", "build", "-o", made / "render", RENDER], env=environment, check=True, timeout=200)
    return made / "render"


def render(renderer: Path, values: Mapping[str, Any], tmp_path: Path) -> dict[str, str]:
    chosen = tmp_path / "values.json"
    chosen.write_text(json.dumps(values))
    done = subprocess.run([renderer, CHART, "meadow", chosen], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    return dict(json.loads(done.stdout))


def objects(rendered: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        found
        for name, text in rendered.items()
        if name.endswith(".yaml")
        for found in yaml.safe_load_all(text)
        if found
    ]


@pytest.mark.parametrize("values", [NAMED, EVERYTHING], ids=["plain", "everything"])
def test_the_chart_renders_to_objects_that_kubernetes_knows(
    renderer: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    found = objects(render(renderer, values, tmp_path))
    assert {each["kind"] for each in found} == {
        "Service",
        "StatefulSet",
        "NetworkPolicy",
        "PodDisruptionBudget",
    }
    for each in found:
        for version in KUBERNETES:
            kubernetes_validate.validate(each, version, strict=True)


def test_a_fleet_without_a_name_or_host_is_not_rendered(renderer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fleet\.name is empty"):
        render(renderer, {}, tmp_path)
    with pytest.raises(ValueError, match=r"fleet\.host is empty"):
        render(renderer, {"fleet": {"name": "meadow"}}, tmp_path)


def test_every_container_of_the_chart_is_confined(renderer: Path, tmp_path: Path) -> None:
    found = objects(render(renderer, EVERYTHING, tmp_path))
    (stateful,) = (each for each in found if each["kind"] == "StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["initContainers"], *pod["containers"]):
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        # A secret comes by reference, never in the text of the object.
        assert all("valueFrom" in variable for variable in container.get("env", []))
    ports = {port["name"] for port in pod["containers"][0]["ports"]}
    assert ports == {"gateway", "enrollment", "superlink"} < set(Ports.__dataclass_fields__)


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_compose_is_of_its_specification() -> None:
    subprocess.run(
        [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        check=True,
        capture_output=True,
    )  # fmt: skip


def test_every_service_of_compose_is_confined_and_pinned() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", service["image"]), name
    # Only umbel has ports: the database listens on a socket, Prometheus on umbel's loopback.
    assert [name for name, service in services.items() if "ports" in service] == ["umbel"]
    assert "listen_addresses=" in services["postgresql"]["command"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["prometheus"]["network_mode"] == "service:umbel"


def test_what_compose_names_is_declared() -> None:
    whole = compose()
    for service in whole["services"].values():
        for volume in service.get("volumes", []):
            origin = volume.partition(":")[0]
            assert origin in whole["volumes"] or (DEPLOY / origin).exists(), volume
        assert set(service.get("secrets", [])) <= whole["secrets"].keys()
        assert set(service.get("depends_on", {})) <= whole["services"].keys()


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    """A fleet as compose makes it, but for the database."""
    made = tmp_path_factory.mktemp("composed") / "fleet"
    words = [
        re.sub(r"\$\{FLEET_(NAME|HOST).*\}", "fleet.example" if "HOST" in word else "meadow", word)
        for word in compose()["services"]["make-fleet"]["command"]
    ]
    environment = {**os.environ, "UMBEL_FLEET": str(made)}
    subprocess.run([sys.executable, "-m", "umbel", *words], env=environment, check=True, timeout=60)
    return FleetDir.open(made)


def test_the_ports_of_compose_are_those_of_the_fleet_that_it_makes(composed: FleetDir) -> None:
    settings = composed.settings
    published = {tuple(map(int, each.split(":"))) for each in compose()["services"]["umbel"]["ports"]}
    outside = (settings.ports.gateway, settings.ports.enrollment, settings.ports.superlink)
    assert published == {(port, port) for port in outside}
    assert settings.listen == "0.0.0.0"
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"127.0.0.1:{settings.health.port}"]}]


def test_the_console_of_compose_is_reached_by_what_the_page_says(composed: FleetDir) -> None:
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    assert {composed.settings.api.listen, composed.settings.console.listen} == {"127.0.0.1"}
    (edit,) = re.findall(r"compose exec umbel (sed .*)/var/lib/umbel/fleet/fleet.toml$", page, re.M)
    (told,) = re.findall(r"^\$ printf '(.*)' > compose.override.yaml$", page, re.M)
    subprocess.run(f"{edit} {composed.path / 'fleet.toml'}", shell=True, check=True)
    settings = FleetDir.open(composed.path).settings
    assert {settings.api.listen, settings.console.listen} == {"0.0.0.0"}
    assert settings.health.listen == "127.0.0.1"
    published = yaml.safe_load(told.replace("\\n", "\n"))["services"]["umbel"]["ports"]
    assert published == [f"{port}:{port}" for port in (settings.api.port, settings.console.port)]


def test_compose_names_places_and_variables_that_the_image_and_umbel_read(composed: FleetDir) -> None:
    whole = compose()
    recipe = (DEPLOY / "service.Dockerfile").read_text()
    (volume,) = re.findall(r"^VOLUME (\S+)$", recipe, re.M)
    assert f"fleet:{volume}" in whole["services"]["umbel"]["volumes"]
    assert re.search(rf"UMBEL_FLEET={volume}/fleet\b", recipe)
    assert whole["services"]["umbel"]["environment"].keys() == {ENVIRONMENT}
    postgresql_url(whole["services"]["umbel"]["environment"][ENVIRONMENT])
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    copied = dict(re.findall(rf"compose cp umbel:{volume}/fleet/(\S+) (secrets/\S+)$", page, re.M))
    assert copied == {"ca/ca.pem": "secrets/ca.pem", "keys/metrics.token": "secrets/metrics"}
    assert composed.ca_pem == composed.path / "ca/ca.pem"
    read = {each["file"] for kind in ("configs", "secrets") for each in whole[kind].values()}
    assert {f"./{each}" for each in copied.values()} < read
