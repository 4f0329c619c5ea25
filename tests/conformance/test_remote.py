"""Operators' commands in the fleet's directory and at its service: the same words, the same JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from api_world import ApiWorld, api_world
from model_packages import RELEASE
from monitor_world import DAY_S, HOUR_S, Reporters
from registry_world import ANNA, governed, package
from rollout_world import World as Devices
from two_places import TwoPlaces, timeless
from umbel_proto.errors import CertificateError, RefusedError, RemoteProtocolError, UmbelError, UsageError
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import HELD
from umbel_server.fleet.publish import publish
from umbel_server.learning.plan import RunPlan
from umbel_server.registry.versions import add, describe
from umbel_server.remote.client import Client, Place, trusting
from umbel_server.remote.monitor import MonitorFar
from umbel_server.store.audit import Sought
from umbel_server.store.registry import Line
from umbel_server.store.runs import Participation, RoundRecord

PLAN = 'model = "digits"\nversion = 1\nrounds = 2\ndevices = 8\n'
PLAN += "[privacy]\nclip = 1.0\nnoise_multiplier = 4.0\ndelta = 1e-6\n"
HALVES = '[[step]]\nname = "half"\npercent = 50\n[[step]]\nname = "all"\npercent = 100\n'
RECORDED = {
    "model": "digits",
    "version": 1,
    "package_sha256": "0" * 64,
    "rounds": 2,
    "devices": 8,
    "privacy": {"clip": 1.0, "noise_multiplier": 1.0},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPlaces]:
    path = tmp_path_factory.mktemp("remote")
    with api_world(path, approvals=2) as made:
        made.fleet.release_key.write_bytes(RELEASE.to_pem())
        made.fleet.release_pub.write_bytes(RELEASE.public.raw)
        full = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        full.path, full.tokens = path, {}
        people = {
            "root": Role.ADMIN,
            "anna": Role.RELEASE_MANAGER,
            "ben": Role.REVIEWER,
            "carl": Role.REVIEWER,
        }
        for name, role in people.items():
            full.tokens[name] = made.token(made.user(name, role), HELD[role])
        made.user("program", Role.CI)
        describe(made.store, Line(ModelName("digits"), "anna", "reads digits", "minimal"), ANNA)
        publish(governed(made.fleet, 0), made.store, package(1), actor=ANNA)
        Devices(made.store, made.clock, devices=12, releases=(2, 3)).check()
        for version in (4, 5):
            add(made.fleet, made.store, package(version), ANNA)
        (path / "plan.toml").write_text(PLAN)
        (path / "halves.toml").write_text(HALVES)
        (path / "password").write_text("correct horse battery\n")
        (path / "package").write_bytes(package(6))
        for run in ("done", "here", "far"):
            record(made, run)
        yield full


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPlaces]:
    """A fleet whose devices report, some of them randomized, and of which some are in a cohort."""
    path = tmp_path_factory.mktemp("watched")
    with api_world(path) as made:
        made.fleet.release_key.write_bytes(RELEASE.to_pem())
        made.fleet.release_pub.write_bytes(RELEASE.public.raw)
        full = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        full.path, full.tokens = path, {"root": made.token(made.user("root", Role.ADMIN), HELD[Role.ADMIN])}
        describe(made.store, Line(ModelName("digits"), "anna", "reads digits", "minimal"), ANNA)
        for version in (1, 2):
            publish(made.fleet, made.store, package(version), actor=ANNA)
        reporters = Reporters(made.store, made.clock, count=60)
        reporters.tag("north", reporters.names[:30])
        sure = Histogram.empty("confidence", CONFIDENCE).observe(np.linspace(0.5, 0.99, 50))
        hidden = Histogram("confidence", sure.edges, tuple(each + 3 for each in sure.counts), 0.0, 1.5)
        told = {"predictions": 50, "label.3": 20, "label.1": 30, "feedback": 5, "feedback.agreed": 4}
        # Not near the ends of any time that is asked about: here and there are asked at two moments.
        for days, slower in ((2.5, 3.0), (9.5, 1.0)):
            for device in reporters.names:
                fast = Histogram.empty("latency_us", LATENCY_US).observe(np.full(50, 500.0) * slower)
                reporters.tell(device, sure, fast, ago_s=days * DAY_S, counters={**told, "errors": 2})
                reporters.tell(device, hidden, ago_s=days * DAY_S - HOUR_S, counters=told, version=2)
        reporters.arrive()
        yield full


def record(world: ApiWorld, run: str) -> None:
    plan = RunPlan.from_mapping(RECORDED)
    world.store.runs.create(RunId(run), ModelName("digits"), plan.to_json())
    figures = {"accuracy": 0.75, "clip": 2.0, "epsilon_server": 3.25, "epsilon_release": None}
    for attempt, state in ((1, "aborted"), (2, "opened")):
        reason = "too few answered" if state == "aborted" else ""
        parts = (
            Participation(DeviceId("device-001"), "summed"),
            Participation(DeviceId("device-002"), "dropped", "below the policy's floor"),
        )
        world.store.runs.begin_round(RunId(run), 1, attempt)
        world.store.runs.end_round(
            RoundRecord(RunId(run), 1, attempt, state, 10.0, 11.5, reason, figures, parts)  # type: ignore[arg-type]
        )
    if run == "done":
        world.store.runs.finish(RunId(run), "finished", "")


READS = [
    "fleet devices --json",
    "fleet device device-001 --json",
    "fleet pending --json",
    "fleet policy --json",
    "fleet privacy --json",
    "fleet privacy --after device-000 --limit 1 --json",
    "registry list --json",
    "registry list --model digits --json",
    "registry describe digits --json",
    "registry show digits@1 --json",
    "registry show digits@4 --json",
    "registry show digits --json",
    "registry compare digits@4 digits@5 --json",
    "registry card digits@1",
    "registry card digits@1 --json",
    "registry datasheet digits@1",
    "rollout list --json",
    "rollout list --after digits --limit 1 --json",
    "rollout plan digits 3 --from 2 --plan {path}/halves.toml --json",
    "rounds list --json",
    "rounds list --after done --limit 1 --json",
    "rounds show done --json",
    "rounds start {path}/plan.toml --dry-run --json",
    "user list --json",
    "audit list --json",
    "audit list --action run --actor service:runs --limit 3 --json",
    "audit export --action run",
    "audit export --action run --csv",
    "audit verify --json",
]


@pytest.mark.parametrize("words", READS)
def test_what_is_read_reads_the_same(world: TwoPlaces, words: str) -> None:
    read = json.loads if words.endswith("--json") else str
    here, far = world.run(words, "here"), world.run(words, "far")
    assert read(far) == read(here)
    assert here.strip()


TEXTS = [each.removesuffix(" --json") for each in READS if each.endswith("--json") and "--csv" not in each]


@pytest.mark.parametrize("words", TEXTS)
def test_what_people_read_reads_the_same(world: TwoPlaces, words: str) -> None:
    def still(text: str) -> str:
        return re.sub(r"\d+ (s|min)\b", "a while", text)

    assert still(world.run(words, "far")) == still(world.run(words, "here"))


@pytest.mark.parametrize("where", ["here", "far"])
def test_a_list_that_was_cut_goes_on_after_its_last_name(world: TwoPlaces, where: str) -> None:
    names: list[str] = []
    while page := json.loads(
        world.run(f"rounds list --limit 1 {f'--after {names[-1]}' if names else ''} --json", where)
    ):
        assert len(page) == 1
        names += [each["run"] for each in page]
    listed = json.loads(world.run("rounds list --json", where))
    assert names == sorted(each["run"] for each in listed)
    assert len(names) >= 3
    charged = json.loads(world.run("fleet privacy --json", where))["devices"]
    first, *others = [each["device"] for each in charged]
    rest = json.loads(world.run(f"fleet privacy --after {first} --json", where))["devices"]
    assert [each["device"] for each in rest] == others


WATCHED = [
    "fleet telemetry --sum --json",
    "fleet telemetry --sum --days 5 --json",
    "monitor drift digits --version 1 --json",
    "monitor drift digits --version 2 --days 5 --level 0.1 --floor 0.2 --json",
    "monitor performance digits --version 1 --json",
    "monitor fairness digits --version 1 --label 3 --least-devices 20 --matters 0.1 --json",
    "monitor operations digits --version 1 --days 5 --json",
]


@pytest.mark.parametrize("words", WATCHED)
def test_what_is_seen_of_models_is_seen_the_same(watched: TwoPlaces, words: str) -> None:
    here, far = (json.loads(watched.run(words, where)) for where in ("here", "far"))
    assert timeless(far) == timeless(here)
    assert timeless(here)
    text = words.removesuffix(" --json")
    assert watched.run(text, "far") == watched.run(text, "here") != ""


def test_a_service_tells_of_no_single_device_what_it_reported(watched: TwoPlaces) -> None:
    assert len(json.loads(watched.run("fleet telemetry --json", "here"))) == 60
    for words in ("fleet telemetry", "fleet telemetry --json --limit 1", "fleet telemetry --tag north"):
        with pytest.raises(UsageError, match="of no single device"):
            watched.run(words, "far")


@pytest.mark.parametrize("words", ["drift", "performance", "operations", "fairness --label 3"])
def test_what_was_not_reported_is_refused_the_same_way(watched: TwoPlaces, words: str) -> None:
    what, *options = words.split()
    told = set()
    for where in ("here", "far"):
        with pytest.raises(UsageError, match="No device has reported of model 'nothing'") as refused:
            watched.run(" ".join(("monitor", what, "nothing", *options)), where)
        told.add(str(refused.value))
    assert len(told) == 1


def test_figures_of_another_kind_than_this_umbel_knows_are_refused(watched: TwoPlaces) -> None:
    class Odd(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"now": {"devices": "many"}})

    place = Place(str(watched.client.base_url), watched.tokens["root"], watched.fleet.ca_pem.read_text())
    with Client(place, through=Odd()) as client, pytest.raises(RemoteProtocolError, match="another version"):
        MonitorFar(client).operations("digits", 1, days=7)


# Each is done to one thing in the directory, and to its like at the service.
PAIRS = [
    ("root", "fleet quarantine {device} --reason odd --json"),
    ("root", "fleet release-quarantine {device} --reason well --json"),
    ("root", "fleet revoke {gone} --reason lost --json"),
    ("root", "fleet token --name {name} --uses 1 --json"),
    ("root", "fleet policy --min-battery {share} --reason winter --json"),
    ("root", "rollout tag {device} kitchen north --reason moved"),
    ("root", "rollout hold digits --reason slowly"),
    ("root", "rollout pin {device} digits 2 --reason fragile"),
    ("root", "rollout unpin {device} digits --reason sturdy"),
    ("root", "rollout unhold digits --reason fast"),
    (
        "root",
        " && ".join(
            (
                "rollout start digits 3 --from 2 --plan {path}/halves.toml --name {name} --reason autumn --json",
                "rollout pause {name} --reason lunch --json",
                "rollout resume {name} --reason fed --json",
                "rollout status {name} --json",
                "rollout stop {name} --roll-back --reason smoke --json",
            )
        ),
    ),
    (
        "root",
        " && ".join(
            (
                "rounds pause {run} --reason lunch --json",
                "rounds show {run} --json",
                "rounds stop {run} --reason enough --json",
            )
        ),
    ),
    ("anna", "registry describe digits --purpose {name} --reason words --json"),
    ("anna", "registry request digits@{version} --comment better --json"),
    ("ben", "registry approve digits@{version} --comment seen --json"),
    ("ben", "registry comment digits@{version} fine --json"),
    ("carl", "registry reject digits@{version} --comment no --json"),
    ("root", "user add {name} --role viewer --password-file {path}/password --reason new --json"),
    ("root", "user role {name} operator reviewer --reason grows --json"),
    ("root", "user password {name} --password-file {path}/password --reason lost --json"),
    ("root", "user disable {name} --reason left --json"),
    ("root", "user enable {name} --reason back --json"),
    ("root", "access token create program --scope read --days 3 --purpose {name} --json"),
]
LIKE = {
    "here": {"device": "device-003", "gone": "device-005", "name": "one", "run": "here", "version": "4", "share": "0.25"},
    "far": {"device": "device-004", "gone": "device-006", "name": "two", "run": "far", "version": "5", "share": "0.5"},
}  # fmt: skip
VOLATILE = {
    "token", "expires_s", "created_s", "stage_s", "since_s", "at_s", "decided_s", "requested_s", "id", "sha256", "size",
    "parent", "lineage", "evidence_sha256", "revision", "min_battery", "version", "actor", "added_s", "contract_sha256", "variants",
}  # fmt: skip


def plain(value: Any, like: dict[str, str]) -> Any:
    """Return JSON without what cannot be the same of two things: names, moments, secrets."""
    if isinstance(value, dict):
        return {key: plain(each, like) for key, each in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [plain(each, like) for each in value]
    named = {name: key for key, name in like.items()}
    return named.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize(("who", "words"), PAIRS, ids=[" ".join(words.split()[:3]) for _, words in PAIRS])
def test_what_is_changed_is_changed_the_same_and_told_the_same(
    world: TwoPlaces, who: str, words: str
) -> None:
    told = {}
    for where in ("here", "far"):
        before = world.store.audit.newest()
        assert before is not None
        said: list[Any] = []
        for command in words.format(path=world.path, **LIKE[where]).split(" && "):
            printed = world.run(command, where, who)
            if "--json" in command:
                said.append(plain(json.loads(printed), LIKE[where]))
            else:
                said.append(printed.replace(LIKE[where]["device"], "device"))
        told[where] = said, [each.action for each in world.store.audit.all(after=before.sequence)]
        # The policy is one: it goes back to what it was, unseen.
        if where == "here" and words.startswith("rollout unhold"):
            world.run("rollout hold digits --reason again", "here")
    assert told["far"] == told["here"]


REFUSED = [
    ("fleet device nobody --json", UsageError),
    ("fleet revoke nobody --reason lost", UsageError),
    ("fleet quarantine nobody --reason odd", UsageError),
    ("fleet publish {path}/plan.toml", UmbelError),
    ("fleet token --uses 0", UsageError),
    ("registry show digits@99", UsageError),
    ("registry describe nothing", UsageError),
    ("registry approve digits@1 --comment seen", RefusedError),
    ("registry stage digits@4 released --reason why", RefusedError),
    ("rollout status nothing", UsageError),
    ("rollout start digits 3 --from 2 --reason slow --percent 1", UsageError),
    ("rounds show nothing", UsageError),
    ("rounds stop done --reason enough", RefusedError),
    ("rounds pause done --reason enough", RefusedError),
    ("rounds resume done", RefusedError),
    ("user add root --role admin --no-password", UsageError),
    ("user role nobody viewer --reason why", UsageError),
    ("access token revoke tok-0123456789 --reason why", UsageError),
]


@pytest.mark.parametrize(("words", "kind"), REFUSED, ids=[words for words, _ in REFUSED])
def test_what_is_refused_ends_the_same_way(world: TwoPlaces, words: str, kind: type[UmbelError]) -> None:
    ends = {}
    for where in ("here", "far"):
        with pytest.raises(kind) as refused:
            world.run(words.format(path=world.path), where)
        ends[where] = refused.value.exit_code
        assert "\n" not in str(refused.value)
    assert ends["far"] == ends["here"]


def test_a_run_is_paused_once_over_the_api_however_often_it_is_asked(world: TwoPlaces) -> None:
    record(world, "lake")

    def ask(what: str, **more: Any) -> httpx.Response:
        return world.call(world.tokens["root"], "POST", f"/runs/lake/{what}", **more)

    once = {"headers": {"Idempotency-Key": "lunch"}, "json": {"reason": "lunch"}}
    first, again = ask("pause", **once), ask("pause", **once)
    assert (first.status_code, first.json()) == (200, again.json())
    assert (first.json()["state"], first.json()["paused_s"]) == ("paused", world.clock())
    late = ask("pause", json={"reason": "me too"})
    assert late.status_code == 409
    assert "Run lake is paused already (lunch)" in late.text
    assert ask("pause").status_code == 422
    assert len(list(world.store.audit.all(Sought(object="run:lake", action="run.pause")))) == 1
    assert ask("stop", json={"reason": "enough"}).json()["state"] == "stopped"
    # Clients of before there were pauses send no reason.
    assert ask("resume").status_code == ask("resume", json={"reason": "on"}).status_code == 409


def test_an_approval_from_afar_is_the_accounts_and_nobody_approves_without_one(world: TwoPlaces) -> None:
    world.run("registry request digits@5 --comment again", "far", "anna")
    with pytest.raises(RefusedError):
        world.run("registry approve digits@5 --comment mine", "far", "anna")
    world.run("registry approve digits@5 --comment seen", "far", "ben")
    shown = json.loads(world.run("registry show digits@5 --json", "here"))
    assert [each["account"] for each in shown["requests"][-1]["decisions"]] == ["ben"]


def test_what_an_account_may_not_a_command_of_it_does_not(world: TwoPlaces) -> None:
    before = world.store.audit.newest()
    for words in ("fleet revoke device-001 --reason x", "user list", "rounds stop done --reason x"):
        with pytest.raises(RefusedError, match="User anna may not do this"):
            world.run(words, "far", "anna")
    assert world.store.audit.newest() == before


def test_a_name_is_a_name_and_never_a_way_to_another_route(world: TwoPlaces) -> None:
    before = world.store.audit.newest()
    for name in ("device-001/quarantine?", "../users", "a/b", "?limit=1", "%2e%2e", "#", ".."):
        with pytest.raises(UsageError):
            world.run(f"fleet|revoke|{name}|--reason|lost", "far")
    with pytest.raises(UsageError):
        world.run("rollout hold digits/end --reason lost", "far")
    assert world.store.audit.newest() == before


def test_nothing_is_asked_of_a_service_whose_certificate_does_not_fit(
    world: TwoPlaces, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with api_world(tmp_path_factory.mktemp("other")) as other:
        place = Place(str(world.client.base_url), world.tokens["root"], other.fleet.ca_pem.read_text())
        with Client(place) as client, pytest.raises(CertificateError, match="not vouched for"):
            client.get("/me")


class Lossy(httpx.BaseTransport):
    """Does what is asked and loses the first answers on the way back."""

    def __init__(self, through: httpx.BaseTransport, losses: int) -> None:
        self.through, self.losses, self.asked = through, losses, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        response = self.through.handle_request(request)
        if self.asked <= self.losses:
            response.read()
            response.close()
            raise httpx.RemoteProtocolError("the answer was lost", request=request)
        return response

    def close(self) -> None:
        self.through.close()


def test_a_change_whose_answer_is_lost_is_done_once(world: TwoPlaces) -> None:
    ca = world.fleet.ca_pem.read_text()
    lossy = Lossy(httpx.HTTPTransport(verify=trusting(ca)), losses=2)
    with Client(Place(str(world.client.base_url), world.tokens["root"], ca), through=lossy) as client:
        before = world.store.audit.newest()
        assert before is not None
        client.post("/enrollment/tokens", {"uses": 3})
        done = [each.action for each in world.store.audit.all(after=before.sequence)]
    assert (lossy.asked, done) == (3, ["enrollment.invite"])


def test_long_lists_are_followed_to_their_end(world: TwoPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel_server.remote.client.PAGE", 3)
    place = Place(str(world.client.base_url), world.tokens["root"], world.fleet.ca_pem.read_text())
    with Client(place) as client:
        names = [each["id"] for each in client.pages("/device-reports", limit=5)]
        assert names == [f"device-{number:03d}" for number in range(12)]
        entries = [each["sequence"] for each in client.pages("/audit", oldest_first="true", limit=7)]
        assert entries == list(range(1, len(entries) + 1))
        assert len(entries) > 7


def test_held_out_data_of_a_run_from_afar_is_the_fleets_and_no_other_file(world: TwoPlaces) -> None:
    secret = world.path / "secret.npz"
    secret.write_bytes(b"no zip")
    for named in (str(secret), "../secret.npz", "sub/x.npz", ".hidden.npz", "plan.toml"):
        (world.path / "bad.toml").write_text(f'heldout = "{named}"\n{PLAN}')
        with pytest.raises(UsageError, match="directory  data  of the fleet"):
            world.run("rounds start {path}/bad.toml --dry-run", "far")


def test_a_person_makes_their_own_tokens_and_an_admin_those_of_programs(world: TwoPlaces) -> None:
    world.store.accounts.add(local_actor(), "paula", roles=frozenset({Role.VIEWER}), password="$argon2id$x")
    with pytest.raises(RefusedError, match="makes tokens of their own"):
        world.run("access token create paula --scope devices:read", "far")
    world.run("access token create ben --scope devices:read", "far", "ben")
    mine = json.loads(world.run("access token list --name ben --json", "far", "ben"))
    assert {each["user"] for each in mine} == {"ben"}
    with pytest.raises(RefusedError, match="may not do this"):
        world.run("access token list --json", "far", "ben")
