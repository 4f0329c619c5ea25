"""A server that lies to real devices: enrolled homes, real ledgers, verified packages, real training.

Law (docs/spec/secure-aggregation.md, "Device refusals"): a refusal has a reason, reveals nothing, changes nothing,
and charges nothing; what was charged before stays charged. ``simulation/attacks.py`` has the table: for each attack
when it comes, why the device refuses, and whether its ledger is charged for the session by then.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulation.attacks import SHARES, TABLE, Attack, boxes, signed_anew, values
from simulation.federation import Federation, MemoryLink
from simulation.liar import DEVICES, ORDER, STRICT, Alone, Crowd, Liar, Session, Stage
from umbel._rounds.participant import Participant
from umbel_proto.errors import BudgetError, RefusedError, RemoteProtocolError, UmbelError
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.ledger import spent
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.messages import Confirmation, RevealedShares
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_proto.secagg.session import entry_hash, session_id
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.link import Answer, NodeId, Payload


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Liar:
    return Liar(tmp_path_factory.mktemp("liar"))


@pytest.mark.parametrize("attack", TABLE, ids=lambda attack: f"{attack.kind}: {attack.what}")
def test_the_device_refuses_says_why_and_can_go_on(
    liar: Liar, attack: Attack, caplog: pytest.LogCaptureFixture
) -> None:
    stage = liar.stage(attack.kind)
    device = stage.device()
    if attack.charged:
        device.saved = stage.at(MASK).moments[MASK].saved
        device.ask(MASK, stage.at(MASK).request)
        if attack.kind == UNMASK:
            device.ask(CONFIRM, stage.at(CONFIRM).request)
    kept, sent = device.saved, len(device.vectors)

    with pytest.raises(UmbelError, match=attack.reason):
        device.ask(attack.kind, attack.lie(stage))

    assert device.saved == kept
    assert len(device.vectors) == sent
    assert len(device.charges()) == attack.charged
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line.name == "umbel._rounds.participant"
    assert line.getMessage().startswith(f"refused {attack.kind}: ")

    device.go_on(attack.kind)
    assert len(device.charges()) == len(device.vectors) == (0 if attack.kind == TRAIN else 1)


@pytest.mark.parametrize("asked", ORDER)
@pytest.mark.parametrize("kind", ORDER)
def test_messages_out_of_turn_are_refused_and_the_right_one_is_answered(
    liar: Liar, kind: str, asked: str
) -> None:
    """Whatever is asked of a device in one phase, asked of it in another."""
    stage = liar.stage(kind)
    if asked in (kind, previous(kind), TRAIN):
        return  # In turn; a repetition; another beginning: see below.
    device = stage.device()
    before = len(device.charges())
    with pytest.raises(RemoteProtocolError, match="out of turn"):
        device.ask(asked, stage.at(asked).request)
    assert (len(device.charges()), device.vectors) == (before, [])
    device.go_on(kind)


def previous(kind: str) -> str:
    return ORDER[max(0, ORDER.index(kind) - 1)]


def test_a_message_that_is_none_of_a_round_is_refused(liar: Liar) -> None:
    device = liar.stage(MASK).device()
    with pytest.raises(RemoteProtocolError, match="no message of a round"):
        device.ask("query.everything", Payload(b""))
    device.go_on(MASK)


@pytest.mark.parametrize("kind", [SHARE, MASK])
def test_a_session_that_is_over_gets_nothing_more(liar: Liar, kind: str) -> None:
    stage = liar.stage(kind)
    device = stage.device(clock=lambda: stage.descriptor.closes_at_s)
    with pytest.raises(RemoteProtocolError, match="the session is already over"):
        device.ask(kind, stage.request)
    assert (device.charges(), device.vectors) == ((), [])


@pytest.mark.parametrize("kind", [TRAIN, SHARE, MASK, CONFIRM])
def test_asking_twice_gets_the_same_bytes_and_costs_nothing(liar: Liar, kind: str) -> None:
    stage = liar.stage(kind)
    device = stage.device()
    first = device.ask(kind, stage.request)
    charged = len(device.charges())
    second = device.ask(kind, stage.request)
    assert (first.body, first.vector) == (second.body, second.vector)
    assert len(device.charges()) == charged == (kind == MASK)


@pytest.mark.parametrize(
    ("kind", "second"),
    [
        (TRAIN, lambda stage: replace(stage.request, vector=values(stage, first=0.5))),
        (SHARE, lambda stage: stage.roster_with(1, signed_anew(stage))),
        (MASK, lambda stage: boxes(stage, 0, 1, 2)),
        (CONFIRM, lambda stage: stage.surviving(0, 1, 2, 3)),
    ],
)
def test_a_second_different_request_in_one_phase_is_refused(
    liar: Liar, kind: str, second: Callable[[Stage], Payload]
) -> None:
    """Each of these would be answered, had it come first: see the next test."""
    stage = liar.stage(kind)
    device = stage.device()
    device.ask(kind, stage.request)
    charged, sent = len(device.charges()), len(device.vectors)
    with pytest.raises(RemoteProtocolError, match="a second, different request"):
        device.ask(kind, second(stage))
    assert (len(device.charges()), len(device.vectors)) == (charged, sent)
    if kind != TRAIN:
        device.go_on(ORDER[ORDER.index(kind) + 1])


def test_what_is_refused_as_second_would_be_answered_as_first(liar: Liar) -> None:
    stage = liar.stage(SHARE)
    assert stage.device().ask(SHARE, stage.roster_with(1, signed_anew(stage))).body
    stage = liar.stage(MASK)
    assert stage.device().ask(MASK, boxes(stage, 0, 1, 2)).vector
    stage = liar.stage(CONFIRM)
    assert stage.device().ask(CONFIRM, stage.surviving(0, 1, 2, 3)).body


class TestOneUpdateASession:
    """A device sends at most one masked update under one session id, whatever it is asked and whoever restarts."""

    def replayed(self, liar: Liar, *, attempt: int) -> Session:
        """All devices have masked in a session, and lost what they kept; then they are invited, perhaps to it again."""
        stages = [liar.stage(MASK, number=i) for i in range(DEVICES)]
        devices = {stage.number: stage.device() for stage in stages}
        for stage in stages:
            devices[stage.number].ask(MASK, stage.request)
            devices[stage.number].saved = None
        session = Session(liar, devices, stages[0].invite(attempt=attempt))
        session.run()
        return session

    def test_a_session_begun_anew_ends_before_the_update(self, liar: Liar) -> None:
        """They join it with new keys, but their ledgers remember it."""
        session = self.replayed(liar, attempt=1)
        for name, device in session.devices.items():
            assert "has answered round 1 of run r1 already" in session.reasons[name]
            assert len(device.vectors) == len(device.charges()) == 1

    def test_the_same_devices_in_a_new_attempt_answer_and_are_charged_anew(self, liar: Liar) -> None:
        session = self.replayed(liar, attempt=2)
        assert session.reasons == {}
        assert all(len(device.vectors) == len(device.charges()) == 2 for device in session.devices.values())

    def test_an_update_that_is_asked_for_and_thrown_away_stays_charged(self, liar: Liar) -> None:
        """What is left to a server that wants to burn budgets: to ask for updates as an honest one would."""
        stage = liar.stage(MASK)
        device = stage.device()
        device.ask(MASK, stage.request)
        for attempt in (2, 3):
            device.ask(TRAIN, stage.invite(attempt=attempt))
        assert [charge.sid for charge in device.charges()] == [stage.sid]

    def test_the_last_of_the_budget_is_spent_and_no_more(self, liar: Liar) -> None:
        stage = liar.stage(MASK)
        rehearsal = stage.device()
        rehearsal.go_on(MASK)
        (charge,) = rehearsal.charges()
        fits = next(n for n in itertools.count() if spent([charge] * (n + 1), 1e-5) > STRICT.budget_epsilon)
        assert fits > 10
        for before, answered in ((fits - 1, True), (fits, False)):
            device = stage.device()
            device.spend(charge, before)
            if answered:
                device.go_on(MASK)
            else:
                with pytest.raises(BudgetError, match="raise budget_epsilon"):
                    device.ask(MASK, stage.request)
            assert len(device.vectors) == answered
            assert len(device.charges()) == before + answered

    def test_garbage_in_place_of_shares_costs_nothing_however_often(self, liar: Liar) -> None:
        stage = liar.stage(MASK)
        device = stage.device()
        for attack in SHARES:
            for _ in range(3):
                with pytest.raises(RemoteProtocolError):
                    device.ask(MASK, attack.lie(stage))
        assert device.charges() == ()
        device.go_on(MASK)

    def test_a_mask_key_that_everyone_knows_costs_nothing(self, liar: Liar) -> None:
        """A corrupt device joins with a key of small order, which comes into use only where masks are made."""
        stage = liar.stage(TRAIN)
        device = stage.device()
        session = Alone(stage, device, stage.request, {1: bytes(32)})
        with pytest.raises(RemoteProtocolError, match="an X25519 key of dev-1 has small order"):
            device.ask(MASK, session.shares())
        assert (device.charges(), device.vectors) == ((), [])
        device.ask(MASK, session.shares(1))
        assert len(device.charges()) == len(device.vectors) == 1


class TestTheCharge:
    """It is on disk before the update is masked, and stays there whatever happens then."""

    def test_it_is_on_disk_before_any_noise_is_drawn(
        self, liar: Liar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage = liar.stage(MASK)
        device = stage.device()
        seen: list[int] = []
        draw = os.urandom

        def look(size: int) -> bytes:
            with contextlib.closing(sqlite3.connect(device.home.ledger)) as other:
                seen.append(other.execute("SELECT count(*) FROM charges").fetchone()[0])
            return draw(size)

        # What the key of the noise is drawn with: proto/umbel_proto/prg.py.
        monkeypatch.setattr(os, "urandom", look)
        device.ask(MASK, stage.request)
        assert seen == [1]

    def test_it_outlives_a_kill_before_the_update_is_masked(self, liar: Liar, tmp_path: Path) -> None:
        stage = liar.stage(MASK)
        device = stage.device()
        assert device.saved is not None
        for name, content in (
            ("state", device.saved.state),
            ("contribution", device.saved.contribution),
            ("body", stage.request.body),
        ):
            (tmp_path / name).write_bytes(content)
        data = liar.federation.data[0]
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(device.home.path),
            str(data),
            str(tmp_path),
            str(stage.now()),
        ]
        assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
        (charge,) = device.charges()
        assert charge.sid == stage.sid
        # The memory of the device is gone with it. Even if it were not, there is no second charge.
        with pytest.raises(RefusedError, match="already"):
            device.ask(MASK, stage.request)
        assert (len(device.charges()), device.vectors) == (1, [])

    def test_without_a_place_to_write_it_nothing_leaves(self, liar: Liar) -> None:
        stage = liar.stage(MASK)
        device = stage.device()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # As on a full disk: no file grows.
        try:
            with pytest.raises(RefusedError, match="its own log says why"):
                device.ask(MASK, stage.request)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (device.charges(), device.vectors) == ((), [])
        device.go_on(MASK)

    def test_without_a_ledger_nothing_leaves(self, liar: Liar, caplog: pytest.LogCaptureFixture) -> None:
        stage = liar.stage(MASK)
        device = stage.device()
        device.home.ledger.unlink()
        with pytest.raises(RefusedError, match="its own log says why"):
            device.ask(MASK, stage.request)
        assert device.vectors == []
        assert "ledger.db is missing" in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
from umbel._home.directory import DeviceHome
from umbel._rounds.participant import Participant, Saved
from umbel_proto.secagg.pairwise import MASK
home, data, kept = map(Path, sys.argv[1:4])
read = lambda name: (kept / name).read_bytes()
device = Participant(DeviceHome(home), data, clock=lambda: float(sys.argv[4]))
os.urandom = lambda size: os.kill(os.getpid(), signal.SIGKILL)  # The noise is drawn after the charge.
device.answer(MASK, read("body"), b"", Saved(read("state"), read("contribution")))
"""


class TestOneSetOfSurvivors:
    """What a server can open is one sum, and nothing else."""

    def test_a_split_view_opens_nothing(self, liar: Liar) -> None:
        """Two devices are told that dev-4 is lost, the others that dev-3 is: none gets enough on its own set."""
        stages = [liar.stage(CONFIRM, number=i) for i in range(DEVICES)]
        devices = [stage.device() for stage in stages]
        seen = {0: (0, 1, 2, 3), 1: (0, 1, 2, 3), 2: (0, 1, 2, 4), 3: (0, 1, 2, 3), 4: (0, 1, 2, 4)}
        signed = {
            i: Confirmation.from_bytes(
                devices[i].ask(CONFIRM, stages[i].surviving(*seen[i])).body, f"dev-{i}"
            ).signature
            for i in seen
        }
        for i, device in enumerate(devices):
            others = [j for j in seen if j != i and j in seen[i]]
            for chosen in (others, [j for j in others if seen[j] == seen[i]]):
                message = replace(stages[i].confirmations, signatures=tuple((j, signed[j]) for j in chosen))
                with pytest.raises(RemoteProtocolError, match=r"did not sign these survivors|too few for"):
                    device.ask(UNMASK, Payload(message.to_bytes()))

    @pytest.mark.parametrize("corrupt", [(1, 2, 3), (2, 3, 4)])
    def test_a_peer_that_was_opened_as_alive_is_never_opened_as_dead(
        self, liar: Liar, corrupt: tuple[int, ...]
    ) -> None:
        """Even where the server has the keys of all the other survivors."""
        stage = liar.stage(UNMASK)
        device = stage.device()
        opened = RevealedShares.from_bytes(device.ask(UNMASK, stage.request).body, "dev-0")
        assert ([i for i, _ in opened.seeds], opened.keys) == (list(range(DEVICES)), ())
        for kind, request in (
            (CONFIRM, stage.surviving(0, *corrupt)),
            (UNMASK, stage.confirmed_by(*corrupt, survivors=(0, *corrupt))),
            (UNMASK, stage.request),
        ):
            with pytest.raises(RemoteProtocolError, match="out of turn"):
                device.ask(kind, request)

    def test_of_a_lost_peer_only_the_mask_key_is_opened(self, liar: Liar) -> None:
        stage = liar.stage(CONFIRM)
        device = stage.device()
        device.ask(CONFIRM, stage.surviving(0, 1, 2, 3))
        request = stage.confirmed_by(1, 2, 3, survivors=(0, 1, 2, 3))
        opened = RevealedShares.from_bytes(device.ask(UNMASK, request).body, "dev-0")
        assert [i for i, _ in opened.seeds] == [0, 1, 2, 3]
        assert [i for i, _ in opened.keys] == [4]

    def test_a_copy_of_the_masked_update_is_no_second_release(self, liar: Liar) -> None:
        """Asked for the update again after all is over, the device has nothing left to mask."""
        stage = liar.stage(MASK)
        device = stage.device()
        device.go_on(MASK)
        with pytest.raises(RemoteProtocolError, match="out of turn"):
            device.ask(MASK, stage.request)
        assert len(device.vectors) == len(device.charges()) == 1


class TestAnotherModelForOneDevice:
    """With a consistent hash it is another session, and one device alone does not get far in it."""

    def test_its_session_has_no_other_members(self, liar: Liar) -> None:
        stage = liar.stage(TRAIN)
        device = stage.device()
        trap = stage.invite(model=values(stage, first=0.5))
        entry = device.ask(TRAIN, trap).body
        sid = session_id(pb.TrainRequest.FromString(trap.body).descriptor)
        rows = ((stage.name, entry_hash(entry)), *stage.roster.rows[1:])
        lies = {
            "of another session": stage.roster,
            "dev-1 is not signed by it for this session": replace(stage.roster, sid=sid, rows=rows),
            "a roster of 1 is below": replace(stage.roster, sid=sid, rows=rows[:1], entries=()),
        }
        for reason, roster in lies.items():
            with pytest.raises(RemoteProtocolError, match=reason):
                device.ask(SHARE, Payload(roster.to_bytes()))
        assert (device.charges(), device.vectors) == ((), [])

    def test_it_does_not_get_back_into_the_other_session(self, liar: Liar) -> None:
        """An invitation to another session ends the one before, and the update of one is never sent in another."""
        stage = liar.stage(SHARE)
        device = stage.device()
        device.ask(TRAIN, stage.invite(model=values(stage, first=0.5)))
        with pytest.raises(RemoteProtocolError, match="of another session"):
            device.ask(SHARE, stage.request)
        assert (device.charges(), device.vectors) == ((), [])


class TestASparseGraph:
    """Among forty, the roster decides who its neighbors are, and not the server."""

    def test_the_graph_s_neighbors_and_no_others(self, liar: Liar) -> None:
        crowd = Crowd.around(liar.stage(TRAIN), 40)
        right = crowd.roster
        assert len(right.entries) == crowd.degree < 39
        stranger = next(entry for entry in crowd.entries if entry not in right.entries)
        for entries, reason in (
            (right.entries[1:], f"{crowd.degree - 1} entries for {crowd.degree} neighbors"),
            ((*right.entries, stranger), f"{crowd.degree + 1} entries for {crowd.degree} neighbors"),
            ((stranger, *right.entries[1:]), "not those of the graph's neighbors|is not the roster's"),
            (right.entries[::-1], "not those of the graph's neighbors|is not the roster's"),
        ):
            with pytest.raises(RemoteProtocolError, match=reason):
                crowd.device.ask(SHARE, Payload(replace(right, entries=entries).to_bytes()))
        assert crowd.device.charges() == ()
        assert crowd.device.ask(SHARE, Payload(right.to_bytes())).body


class TestTheRecord:
    """A refusal is in the device's log and in the record of the run."""

    @pytest.mark.parametrize(
        ("kind", "spoil", "reason", "outcome"),
        [
            (
                TRAIN,
                lambda p: replace(p, vector=p.vector[:-4] + bytes(4)),
                "the model is not the session's",
                "dropped",
            ),
            (
                SHARE,
                lambda p: replace(p, body=p.body + b"\x78\x01"),
                "Roster is not in canonical form",
                "dropped",
            ),
            (MASK, lambda p: replace(p, body=p.body[:-200]), "SealedShares is malformed", "charged"),
        ],
    )
    def test_the_run_s_record_says_why_the_device_is_not_in_the_sum(
        self,
        liar: Liar,
        caplog: pytest.LogCaptureFixture,
        kind: str,
        spoil: Callable[[Payload], Payload],
        reason: str,
        outcome: str,
    ) -> None:
        federation, victim = liar.federation, Federation.node(2)

        class Tampering(MemoryLink):
            def answer(self, node: NodeId, asked: str, payload: Payload) -> Answer:
                return super().answer(
                    node, asked, spoil(payload) if (node, asked) == (victim, kind) else payload
                )

        plan = federation.plan(rounds=1, clip=2.0, noise_multiplier=2.0)
        run = f"tampered-{kind.removeprefix('query.')}"
        record, (only,) = federation.run(Tampering(federation.participants()), plan, run)
        assert record.state == "finished"
        parts = {part.device: part for part in only.participations}
        assert parts[DeviceId("dev-2")].outcome == outcome
        assert reason in parts[DeviceId("dev-2")].reason
        assert {parts[DeviceId(f"dev-{i}")].outcome for i in (0, 1, 3, 4)} == {"summed"}
        said = [r for r in caplog.records if r.levelno == logging.WARNING and reason in r.getMessage()]
        assert {r.name for r in said} == {"umbel._rounds.participant", "umbel_server.learning.round"}
        assert federation.fleet.runs.joinpath(run, "progress.jsonl").read_text().count(reason) == 1

    def test_what_is_wrong_with_its_own_files_and_data_is_for_the_device_s_log_only(
        self, liar: Liar, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        """How many of its values are out of range is computed from its data, and nothing of that leaves."""
        data = tmp_path / "alice" / "examples.npz"
        data.parent.mkdir()
        np.savez(data, x=np.full((7, 64), 99, np.float32), y=np.zeros(7, np.int64))
        stage = liar.stage(TRAIN)
        device = stage.device()
        device.participant = Participant(device.home, data, clock=stage.now)
        with pytest.raises(RefusedError) as caught:
            device.ask(TRAIN, stage.request)
        assert str(caught.value) == "This device cannot take part: its own log says why."
        assert "Input 'x'" in caplog.text
        data.unlink()
        with pytest.raises(RefusedError) as caught:
            device.ask(TRAIN, stage.request)
        assert "alice" not in str(caught.value)
        assert "examples.npz" in caplog.text
