"""Runs in MLflow's own tracking server, over TLS, and in event files as TensorBoard reads them; once, however often exported."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from api_world import api_world
from run_world import PLAN, begin, hold_round, trained
from two_places import RUNNER, TwoPlaces
from umbel_proto.errors import RefusedError, StorageError, UmbelError, UnavailableError, UsageError
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.ports import free_ports
from umbel_server.learning.commands import app as rounds
from umbel_server.learning.exported import exported
from umbel_server.learning.to_mlflow import MAX_ANSWER, Mlflow
from umbel_server.learning.to_tensorboard import write

BEGAN_S = 1_790_000_000.0
MISSING = """
import sys
sys.modules["tensorboard"] = None
from umbel.cli import main
sys.argv[1:] = ["rounds", "export", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPlaces]:
    path = tmp_path_factory.mktemp("export")
    with api_world(path) as made:
        full = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        full.path, full.tokens = path, {"root": made.token(made.user("root", Role.ADMIN), HELD[Role.ADMIN])}
        for name in ("done", "going", "lost", "apart"):
            trained(made.store, name, at_s=BEGAN_S)
        made.store.runs.finish("done", "finished", "")  # type: ignore[arg-type]
        made.store.runs.finish("lost", "failed", "too few devices | again")  # type: ignore[arg-type]
        begin(made.store, "new")
        yield full


@dataclass(frozen=True)
class Tracking:
    """MLflow's tracking server, and who may ask it."""

    url: str
    client: httpx.Client

    def run(self, name: str) -> Any:
        """The only run of a name."""
        asked = {"experiment_ids": self.experiments(), "filter": f"attributes.run_name = '{name}'"}
        (found,) = self.client.post("/runs/search", json=asked).json()["runs"]
        return found

    def experiments(self) -> list[str]:
        found = self.client.post("/experiments/search", json={"max_results": 100}).json()["experiments"]
        return [each["experiment_id"] for each in found]

    def history(self, run: Any, name: str) -> list[tuple[int, float]]:
        query = {"run_id": run["info"]["run_id"], "metric_key": name}
        found = self.client.get("/metrics/get-history", params=query).json()["metrics"]
        return [(each["step"], each["value"]) for each in found]


@pytest.fixture(scope="module")
def mlflow(world: TwoPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    with tracking(world.fleet, tmp_path_factory.mktemp("mlflow")) as running:
        yield running


class tracking:  # noqa: N801 - a context
    """Run MLflow's own application with a store of its own, behind TLS."""

    def __init__(self, fleet: FleetDir, path: Path) -> None:
        self._fleet, self._path = fleet, path

    def __enter__(self) -> Tracking:
        (port,) = free_ports(1, listen="127.0.0.1", taken=frozenset())
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self._path / 'store.db'}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self._path / "artifacts"),
        }
        words = [sys.executable, "-m", "flask", "--app", "mlflow.server:app", "run", "--port", str(port)]
        words += ["--cert", str(self._fleet.server_pem), "--key", str(self._fleet.server_key)]
        self._log = (self._path / "log").open("wb")
        self._process = subprocess.Popen(words, env=environment, stdout=self._log, stderr=subprocess.STDOUT)
        url = f"https://127.0.0.1:{port}"
        trust = ssl.create_default_context(cafile=str(self._fleet.ca_pem))
        client = httpx.Client(base_url=f"{url}/api/2.0/mlflow", verify=trust, timeout=60)
        until_s = time.monotonic() + 180
        while True:
            try:
                client.post("/experiments/search", json={"max_results": 1}).raise_for_status()
                return Tracking(url, client)
            except httpx.TransportError:
                assert self._process.poll() is None, (self._path / "log").read_text()
                assert time.monotonic() < until_s
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


def to_mlflow(world: TwoPlaces, mlflow: Tracking, run: str, where: str = "here", *words: str) -> Any:
    ca = str(world.fleet.ca_pem)
    asked = [
        "rounds",
        "export",
        run,
        "--to",
        "mlflow",
        "--tracking-uri",
        mlflow.url,
        "--ca",
        ca,
        "--json",
        *words,
    ]
    return json.loads(world.run("|".join(asked), where))


def to_tensorboard(world: TwoPlaces, run: str, logdir: Path, where: str = "here") -> Any:
    asked = ["rounds", "export", run, "--to", "tensorboard", "--logdir", str(logdir), "--json"]
    return json.loads(world.run("|".join(asked), where))


def read(logdir: Path) -> EventAccumulator:
    """Read event files as TensorBoard does."""
    return EventAccumulator(str(logdir)).Reload()


def test_mlflow_has_the_rounds_the_plan_and_the_lineage(world: TwoPlaces, mlflow: Tracking) -> None:
    made = to_mlflow(world, mlflow, "done")
    run = mlflow.run("done")
    assert made == {
        "run": "done", "state": "finished", "to": "mlflow", "where": run["info"]["run_id"], "new": made["new"],
    }  # fmt: skip
    assert run["info"]["status"] == "FINISHED"
    assert 0 < run["info"]["start_time"] <= run["info"]["end_time"]
    assert mlflow.history(run, "heldout/accuracy") == [(1, 0.5), (2, 0.75), (3, 1 - 0.5 / 3)]
    assert mlflow.history(run, "devices/loss") == [(1, 1.5), (2, 0.75), (3, 0.5)]
    assert mlflow.history(run, "round/attempts") == [(1, 1), (2, 2), (3, 1)]
    assert mlflow.history(run, "round/devices") == [(1, 6), (2, 6), (3, 6)]
    assert mlflow.history(run, "round/lost") == [(1, 2), (2, 2), (3, 2)]
    assert mlflow.history(run, "round/seconds") == [(1, 42), (2, 42), (3, 42)]
    assert [step for step, _ in mlflow.history(run, "privacy/epsilon_server")] == [1, 2, 3]
    parameters = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert (parameters["rounds"], parameters["privacy.noise_multiplier"], parameters["guard.gate"]) == (
        "6",
        "4.0",
        "true",
    )
    tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
    assert (tags["umbel.model"], tags["umbel.version"], tags["umbel.package_sha256"]) == (
        "digits",
        "2",
        "ab" * 32,
    )
    assert "device-0" not in json.dumps(run)


@pytest.mark.parametrize("again", ["here", "far"])
def test_a_second_export_to_mlflow_doubles_nothing(world: TwoPlaces, mlflow: Tracking, again: str) -> None:
    first = to_mlflow(world, mlflow, "going")
    second = to_mlflow(world, mlflow, "going", again)
    assert (second["where"], second["new"]) == (first["where"], 0)
    assert len(mlflow.history(mlflow.run("going"), "devices/loss")) == 3


def test_a_run_that_went_on_gets_only_its_new_rounds(
    world: TwoPlaces, mlflow: Tracking, tmp_path: Path
) -> None:
    run = trained(world.store, "further", at_s=BEGAN_S, rounds=2)
    first = to_mlflow(world, mlflow, run), to_tensorboard(world, run, tmp_path)
    assert mlflow.run(run)["info"]["status"] == "RUNNING"
    hold_round(world.store, run, 3, at_s=BEGAN_S + 500)
    world.store.runs.finish(run, "stopped", "enough")
    second = to_mlflow(world, mlflow, run), to_tensorboard(world, run, tmp_path)
    assert [each["new"] for each in second] == [each["new"] // 2 for each in first]
    assert [step for step, _ in mlflow.history(mlflow.run(run), "devices/loss")] == [1, 2, 3]
    assert mlflow.run(run)["info"]["status"] == "KILLED"
    assert [each.step for each in read(tmp_path / run).Scalars("devices/loss")] == [1, 2, 3]


def test_runs_of_one_name_that_began_at_different_times_are_two(world: TwoPlaces, mlflow: Tracking) -> None:
    with Mlflow(mlflow.url, {}, ca=world.fleet.ca_pem) as server:
        first, second = (
            server.write(exported(shown("twin", created_s), ()), experiment="twins")[0]
            for created_s in (1.5, 2.5)
        )
    assert first != second


def test_a_run_without_rounds_is_there_with_its_plan(
    world: TwoPlaces, mlflow: Tracking, tmp_path: Path
) -> None:
    assert to_mlflow(world, mlflow, "new", "far", "--experiment", "early")["new"] == 0
    assert mlflow.run("new")["info"]["status"] == "RUNNING"
    assert to_tensorboard(world, "new", tmp_path, "far")["new"] == 0
    assert read(tmp_path / "new").Tags()["scalars"] == []


def test_tensorboard_has_the_rounds_the_plan_and_the_end(world: TwoPlaces, tmp_path: Path) -> None:
    made = to_tensorboard(world, "lost", tmp_path, "far")
    assert (made["state"], made["where"]) == ("failed", str(tmp_path / "lost"))
    events = read(tmp_path / "lost")
    loss = events.Scalars("devices/loss")
    assert [(each.step, each.value) for each in loss] == [(1, 1.5), (2, 0.75), (3, 0.5)]
    assert [each.wall_time for each in loss] == [BEGAN_S + 60 * number + 50 + 42 for number in (1, 2, 3)]
    assert made["new"] == sum(len(events.Scalars(name)) for name in events.Tags()["scalars"])
    about = events.Tensors("umbel/about")[-1].tensor_proto.string_val[0].decode()
    assert "| umbel.reason | too few devices \\| again |" in about
    told = events.PluginTagToContent("hparams")
    start, end = (
        plugin_data_pb2.HParamsPluginData.FromString(told[f"_hparams_/session_{each}_info"])
        for each in ("start", "end")
    )
    assert start.session_start_info.hparams["privacy.noise_multiplier"].number_value == 4.0
    assert end.session_end_info.status == api_pb2.STATUS_FAILURE


def test_a_second_export_to_tensorboard_writes_nothing(world: TwoPlaces, tmp_path: Path) -> None:
    to_tensorboard(world, "apart", tmp_path)
    before = {file.name: file.read_bytes() for file in (tmp_path / "apart").iterdir()}
    assert to_tensorboard(world, "apart", tmp_path, "far")["new"] == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "apart").iterdir()} == before


def test_a_directory_of_another_run_of_that_name_is_left_alone(tmp_path: Path) -> None:
    write(exported(shown("twin", 1.5), ()), tmp_path)
    with pytest.raises(RefusedError, match="another run"):
        write(exported(shown("twin", 2.5), ()), tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "x' or '1' = '1"])
def test_a_run_whose_name_is_none_is_exported_nowhere(name: str) -> None:
    with pytest.raises(UsageError, match="run"):
        exported(shown(name, 1.0), ())


def test_mlflow_is_told_neither_what_ended_a_run_nor_the_names_of_the_servers_files(
    world: TwoPlaces, mlflow: Tracking
) -> None:
    run = shown("files", 1.0)
    run["reason"] = "/srv/garden/heldout.npz cannot be read"
    run["plan"] |= {"heldout": "/srv/garden/heldout.npz", "result": {"calibration": "/srv/garden/some.npz"}}
    with Mlflow(mlflow.url, {}, ca=world.fleet.ca_pem) as server:
        server.write(exported(run, ()), experiment="digits")
    kept = json.dumps(mlflow.run("files"))
    assert "umbel.run" in kept
    assert "/srv" not in kept
    assert "umbel.reason" not in kept


def test_an_infinite_epsilon_is_no_figure() -> None:
    attempt = {
        "round": 1, "attempt": 1, "state": "opened", "started_s": 1.0, "finished_s": 2.0, "participations": [],
        "figures": {"epsilon_server": None, "accuracy": 0.5, "metrics": {}, "guard": {}},
    }  # fmt: skip
    names = {each.name for each in exported(shown("one", 1.0), [attempt]).points}
    assert "heldout/accuracy" in names
    assert "privacy/epsilon_server" not in names


def test_a_server_that_is_not_vouched_for_is_told_nothing(mlflow: Tracking) -> None:
    with Mlflow(mlflow.url, {}) as server, pytest.raises(UnavailableError, match="certificate"):
        server.write(exported(shown("secret", 1.0), ()), experiment="x")


@pytest.mark.parametrize(
    "uri", ["http://mlflow.example", "file:///tmp/mlruns", "sqlite:///store.db", "https://a:b@mlflow.example"]
)
def test_a_tracking_uri_without_tls_or_server_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="tracking URI"):
        Mlflow(uri, {})


@pytest.mark.parametrize("token", ["T0KEN ", "T0KEN\n", "T0\x00KEN", "T0KEN\u00f6"])
def test_a_token_that_no_header_takes_is_in_no_sentence(token: str) -> None:
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_TOKEN is not one line") as caught:
        Mlflow("https://mlflow.example", {"MLFLOW_TRACKING_TOKEN": token})
    assert "T0" not in str(caught.value)


def test_an_answer_is_read_to_a_size(world: TwoPlaces) -> None:
    """Of a server that packs what is small into what is large, and of one that says how long it will be."""
    packed = gzip.compress(b" " * (64 * MAX_ANSWER))
    for body, head in ((packed, {"Content-Encoding": "gzip"}), (b" " * (MAX_ANSWER + 1), {})):
        with saying(body, head) as url, Mlflow(url, {}) as server:
            tracemalloc.start()
            with pytest.raises(UmbelError, match=r"more than|is that an MLflow server"):
                server.write(exported(shown("one", 1.0), ()), experiment="x")
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert most < 4 * MAX_ANSWER


@contextlib.contextmanager
def saying(body: bytes, head: Mapping[str, str]) -> Iterator[str]:
    """Run a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **head}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_is_no_mlflow_is_named(world: TwoPlaces, mlflow: Tracking, tmp_path: Path) -> None:
    with (
        Mlflow(f"{mlflow.url}/nowhere", {}, ca=world.fleet.ca_pem) as server,
        pytest.raises(Exception, match="is that an MLflow server"),
    ):
        server.write(exported(shown("secret", 1.0), ()), experiment="x")
    with pytest.raises(StorageError, match="nowhere"):
        Mlflow(mlflow.url, {}, ca=tmp_path / "nowhere")


@pytest.mark.parametrize(("to", "lacking"), [("mlflow", "--tracking-uri"), ("tensorboard", "--logdir")])
def test_where_to_has_to_be_said(world: TwoPlaces, to: str, lacking: str) -> None:
    asked = ["export", "done", "--to", to, "--fleet", str(world.fleet.path)]
    result = RUNNER.invoke(rounds, asked, env={"MLFLOW_TRACKING_URI": None})
    assert isinstance(result.exception, UsageError)
    assert lacking in str(result.exception)


def test_without_the_extra_a_sentence_names_it_and_mlflow_needs_none(
    world: TwoPlaces, tmp_path: Path
) -> None:
    asked = ["done", "--to", "tensorboard", "--logdir", str(tmp_path), "--fleet", str(world.fleet.path)]
    done = subprocess.run(
        [sys.executable, "-c", MISSING, *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == UsageError.exit_code
    assert "pip install 'umbel[tensorboard]'" in done.stderr


def shown(run: str, created_s: float) -> dict[str, Any]:
    return {
        "run": run, "model": "digits", "version": 2, "state": "running", "reason": "", "rounds_done": 0,
        "delta": 1e-6, "created_s": created_s, "finished_s": None, "plan": json.loads(PLAN.to_json()),
    }  # fmt: skip
