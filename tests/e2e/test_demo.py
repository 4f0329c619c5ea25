"""Law: the demo does what its table says, with real processes and TLS, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from console_world import Visitor, text_of
from umbel_server.demo.past.life import VANS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]  # The first test brings the fleet up.

UMBEL = [sys.executable, "-m", "umbel"]


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    with out.with_suffix(".txt").open("wb") as said:
        return subprocess.Popen(
            [*UMBEL, "demo", "--out", str(out), *more],
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait(demo: subprocess.Popen[bytes], out: Path, done: Callable[[], bool], *, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        if demo.poll() is not None:
            pytest.fail(f"the demo ended with {demo.returncode}: {out.with_suffix('.txt').read_text()}")
        assert time.monotonic() < until, "the demo took too long"
        time.sleep(0.05)


def said_by(out: Path) -> str:
    return out.with_suffix(".txt").read_text()


def processes_of(out: Path) -> list[int]:
    """Processes whose command line or environment names the demo's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(out).encode() in seen:
                found.append(int(entry.name))
    return found


def ports_of(out: Path) -> list[int]:
    path = out / "fleet" / "fleet.toml"
    if not path.exists():
        return []
    settings = tomllib.loads(path.read_text())
    return [*settings["ports"].values(), settings["console"]["port"]]


def is_bound(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def left_of(out: Path, *, within_s: float = 5.0) -> list[str]:
    """What still runs or listens; a process that was killed may take the kernel a moment."""
    until = time.monotonic() + within_s
    while True:
        left = [f"process {pid}" for pid in processes_of(out)]
        left += [f"port {port}" for port in ports_of(out) if is_bound(port)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def umbel(*words: object) -> Any:
    result = subprocess.run(
        [*UMBEL, *map(str, words), "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A demo that has told its story and keeps its fleet running."""
    out = tmp_path_factory.mktemp("demo") / "out"
    demo = start(out, "--keep", "--port", "0")
    try:
        wait(demo, out, lambda: "Ctrl-C ends it" in said_by(out), timeout_s=360)
        yield out, demo
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGINT)
            demo.wait(20)


def test_the_demo_learns_privately_loses_a_device_and_gains_one(kept: tuple[Path, Any]) -> None:
    summary = json.loads((kept[0] / "summary.json").read_text())
    assert summary["accuracy"]["before"] < 0.3
    assert summary["accuracy"]["after"] >= 0.88
    assert (
        abs(summary["accuracy"].get("int8", summary["accuracy"]["fp32"]) - summary["accuracy"]["fp32"])
        <= 0.02
    )
    assert summary["dropped"] == ["dev-3"]
    assert summary["joined_late"] == ["dev-8"]
    assert summary["rounds"] == 8


def test_the_summary_has_every_figure_under_its_promised_name(kept: tuple[Path, Any]) -> None:
    summary = json.loads((kept[0] / "summary.json").read_text())
    # With the noise of one run in many the package has no int8.
    variants = {"int8", "fp32"} & summary["latency_us"].keys() | {"fp32"}
    names = {"before", "after", "devices", "devices_error", "plain_fedavg", "central"}
    assert summary["accuracy"].keys() == names | variants
    assert summary["latency_us"].keys() == variants
    assert summary["bytes"].keys() == {
        "up_per_device_round", "down_per_device_round", "flower_fedavg_up_per_device_round",
        *(f"model_{name}" for name in variants),
    }  # fmt: skip
    assert summary["epsilon"].keys() == {"server", "release", "delta"}
    assert summary["seconds"].keys() == {"first_round", "total", "by_phase"}
    assert summary["seconds"]["by_phase"].keys() == {"train", "share", "mask", "confirm", "unmask"}
    assert summary["cohort_for_epsilon_4"] > 8
    assert set(summary["reports"]) == {f"dev-{number}" for number in range(1, 9)}
    assert all(count >= 1 for count in summary["reports"].values())


def test_half_of_what_plain_averaging_sends_goes_up(kept: tuple[Path, Any]) -> None:
    size = json.loads((kept[0] / "summary.json").read_text())["bytes"]
    assert size["up_per_device_round"] < 0.55 * size["flower_fedavg_up_per_device_round"]


def test_the_operator_reads_devices_and_telemetry_from_the_running_fleet(kept: tuple[Path, Any]) -> None:
    fleet = kept[0] / "fleet"
    assert {(kept[0] / name).stat().st_mode & 0o777 for name in ("log", "fleet")} == {0o700}
    known = umbel("fleet", "devices", "--fleet", fleet)
    devices = [device for device in known if device["id"].startswith("dev-")]
    assert len(known) == len(devices) + VANS
    assert [device["id"] for device in devices] == [f"dev-{number}" for number in range(1, 9)]
    assert {device["status"] for device in devices} == {"online"}
    assert all(device["models"]["digits"] == 2 for device in devices)
    assert [device["rounds"] for device in devices if device["id"] == "dev-1"] == [8]
    told = umbel("fleet", "telemetry", "--fleet", fleet)
    telemetry = [line for line in told if line["device"].startswith("dev-")]
    assert len(telemetry) >= 8
    assert all(line["predictions"] >= 359 for line in telemetry)
    assert all(line["batches"]["rejected"] == 0 for line in telemetry)


def test_a_device_shows_its_identity_model_spool_and_privacy(kept: tuple[Path, Any]) -> None:
    home = kept[0] / "devices" / "dev-1"
    status = umbel("status", "--home", home)
    assert status["device"] == "dev-1"
    assert status["models"][0]["version"] == 2
    assert status["rounds"] == 8
    privacy = umbel("privacy", "--home", home)
    assert len(privacy["charges"]) == 8
    summary = json.loads((kept[0] / "summary.json").read_text())
    # The server's figure and the device's own ledger were reached on different ways.
    assert privacy["epsilon"] == pytest.approx(summary["epsilon"]["server"], rel=1e-6)


def test_the_doctor_finds_nothing_wrong_with_a_device_of_the_demo(kept: tuple[Path, Any]) -> None:
    found = umbel("doctor", "--home", kept[0] / "devices" / "dev-1")
    assert [each for each in found["findings"] if each["state"] == "wrong"] == []
    assert found["healthy"]


def test_a_device_at_rest_takes_less_than_150_mb_and_has_no_torch(kept: tuple[Path, Any]) -> None:
    devices = [
        pid
        for pid in processes_of(kept[0])
        if b"\0run\0" in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"umbel\0run", b"\0run")
    ]
    assert len(devices) == 8
    for pid in devices:
        status = Path(f"/proc/{pid}/status").read_text()
        peak_kb = int(status.split("VmHWM:")[1].split()[0])
        assert peak_kb < 150 * 1024
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_nothing_private_lies_in_the_services_directory_or_any_log(kept: tuple[Path, Any]) -> None:
    """Secrets of devices and of the fleet, planted nowhere but in their own files, are found nowhere else."""
    out = kept[0]
    secrets = {}
    for path in [
        *out.glob("devices/*/*.key"),
        *out.glob("fleet/*/*.key"),
        *out.glob("fleet/superlink/*.secret"),
    ]:
        raw = path.read_bytes()
        # The body of a PEM file; a raw key as it is.
        secrets[path] = raw.split(b"\n")[1] if raw.startswith(b"-----") else raw.strip()
    assert len(secrets) >= 8 * 3 + 5
    readable = [
        *out.glob("log/*"),
        *out.glob("fleet/runs/*/*"),
        out / "summary.json",
        out / "fleet" / "store.db",
    ]
    for path in readable:
        content = path.read_bytes()
        for secret_of, secret in secrets.items():
            assert secret not in content, f"{path} holds the secret of {secret_of}"


@pytest.fixture(scope="module")
def visitor(kept: tuple[Path, Any]) -> Iterator[Visitor]:
    """Somebody who has read what the demo says, trusts its authority, and has signed in."""
    said = said_by(kept[0])
    url, password = re.search(r"https://[0-9.]+:[0-9]+", said), re.search(r"password (\S+)", said)
    assert url is not None
    assert password is not None
    trust = ssl.create_default_context(cafile=kept[0] / "fleet" / "ca" / "ca.pem")
    with httpx.Client(base_url=url[0], verify=trust, timeout=60) as client:
        made = Visitor(client)
        assert client.get("/").status_code == 303  # Nobody sees anything without signing in.
        assert made.sign_in("visitor", password[1]).status_code == 303
        yield made


SCREENS = {
    "/drift?model=parcels&version=2&format=json": ('"drifted": true', '"input_mean"'),
    "/rollouts/parcels-4": ("running", "canary", "step 1"),
    "/rollouts/parcels-3": ("rolled back", "gate latency p95"),
    "/approvals": ("parcels@5", "1 of 2"),
    "/fairness?model=parcels&version=2&format=json": ('"finding": true', '"north"', '"night"'),
    "/alerts": ("parcels-drift", "firing", "acknowledged"),
    "/experiments/stamps-2-ab": ("running", "stamps"),
    "/runs/demo-run": ("finished",),
    "/audit": ("demo.present", "made up by umbel demo --keep"),
}


@pytest.mark.parametrize("path", SCREENS)
def test_the_console_opens_on_a_fleet_that_somebody_has_lived_in(visitor: Visitor, path: str) -> None:
    answer = visitor.get(path)
    assert answer.status_code == 200
    shown = answer.text if "json" in path else text_of(answer.text)
    assert [each for each in SCREENS[path] if each not in shown] == []


def test_the_console_says_on_every_page_what_of_it_is_made_up(visitor: Visitor) -> None:
    for path in ("/", "/devices", "/models", "/fairness?model=parcels"):
        assert "are made up" in text_of(visitor.get(path).text)


def test_the_visitors_password_is_in_no_file_of_the_demo(kept: tuple[Path, Any]) -> None:
    password = re.search(r"password (\S+)", said_by(kept[0]))
    assert password is not None
    files = [path for path in kept[0].rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if password[1].encode() in path.read_bytes()] == []


def test_ctrl_c_ends_the_kept_fleet_and_frees_its_ports(kept: tuple[Path, subprocess.Popen[bytes]]) -> None:
    out, demo = kept
    assert any(map(is_bound, ports_of(out)))
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(20) == 0
    assert left_of(out) == []


def has_begun(out: Path, phase: str) -> bool:
    path = out / "fleet" / "runs" / "demo-run" / "progress.jsonl"
    return path.exists() and f'"{phase}"' in path.read_text()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before any device": lambda out: (out / "log" / "superlink.log").exists(),
    "while devices enroll": lambda out: (out / "log" / "dev-4.log").exists(),
    "in the middle of a round": lambda out: has_begun(out, "mask"),
}


@pytest.mark.parametrize(
    ("heard", "moment"),
    [
        ("by all of the terminal", "before any device"),
        ("by the demo alone", "while devices enroll"),
        ("by all of the terminal", "in the middle of a round"),
        ("by the demo alone", "in the middle of a round"),
    ],
)
def test_ctrl_c_at_any_moment_ends_every_process_and_frees_every_port(
    tmp_path: Path, moment: str, heard: str
) -> None:
    out = tmp_path / "out"
    demo = start(out)
    wait(demo, out, lambda: MOMENTS[moment](out), timeout_s=60)
    if heard == "by the demo alone":
        demo.terminate()
    else:
        os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(20) == 130, out.with_suffix(".txt").read_text()
    assert left_of(out) == []


def test_a_killed_demo_takes_its_processes_along(tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = start(out)
    wait(demo, out, lambda: has_begun(out, "train"), timeout_s=60)
    demo.kill()
    demo.wait()
    assert left_of(out, within_s=20) == []


def test_the_demo_replaces_a_former_demo_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("work")
    result = subprocess.run(
        [*UMBEL, "demo", "--out", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert "not empty and no demo" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "work"
