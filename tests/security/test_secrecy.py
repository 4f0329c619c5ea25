"""Law: nothing private is in any log, repr, traceback, standard stream or file that it does not belong in.

Values that would be recognized are planted where they are private: in a device's examples and labels. Those that the
device makes itself are noted as it makes them: update, metrics, keys, seeds, shares, unmasked words, the key of the
noise. Then rounds are run, well and badly, and everything they left is searched for all of them in many spellings.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import resource
import secrets
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.message_pb2 import ObjectTree

from simulation.federation import Federation, MemoryLink
from simulation.liar import STRICT, Recorder
from umbel import flower
from umbel._data.examples import read_examples
from umbel._home.directory import DeviceHome
from umbel._home.files import read_file
from umbel._rounds import contribution
from umbel._rounds.contribution import Contribution
from umbel._rounds.participant import Saved
from umbel_proto.errors import UmbelError
from umbel_proto.privacy.encode import encode
from umbel_proto.secagg import device as protocol
from umbel_proto.secagg.device import Member
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.masks import add_masks
from umbel_proto.secagg.messages import RevealedShares
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_proto.secagg.saved import restore
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.plan import RunPlan

VICTIM = Federation.node(0)
ROWS = 96


def spellings(secret: bytes) -> Iterator[bytes]:
    """The ways in which bytes end up in files, logs and reprs."""
    yield secret
    yield secret[::-1]
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield repr(secret)[2:-1].encode()
    yield ", ".join(map(str, secret)).encode()
    yield " ".join(map(str, secret)).encode()
    yield str(int.from_bytes(secret, "big")).encode()
    yield str(int.from_bytes(secret, "little")).encode()
    for shift in range(
        3
    ):  # Wherever in a longer text it begins; the first and last digits depend on what is around.
        middle = base64.b64encode(bytes(shift) + secret)[4:-4]
        yield from (middle, middle.translate(bytes.maketrans(b"+/", b"-_")))


def decimals(value: float) -> Iterator[bytes]:
    """A number's point and its first six digits: however many more are printed, these are among them.

    With the point, as digits alone are found by chance in the hashes that every file is full of.
    """
    for text in (f"{abs(value):.15f}", f"{abs(value):.15e}", repr(abs(value))):
        number = text.lstrip("0")
        point, first = number.find("."), len(number) - len(number.lstrip("0."))
        shown = number[: max(first + 6 + (first < point), point + 1)]
        if point >= 0 and len(shown[first:].replace(".", "")) >= 6:
            yield shown.encode()


@dataclass
class Secrets:
    """What must not be found, by what it is."""

    needles: dict[bytes, str] = field(default_factory=dict)

    def note(self, what: str, secret: bytes) -> None:
        for spelling in spellings(secret):
            self.needles.setdefault(spelling, what)

    def note_numbers(self, what: str, values: np.ndarray, *, windows: int = 6) -> None:
        """Some runs of four numbers as bytes, and each first one of them as text."""
        flat = values.ravel()
        for begin in range(0, flat.size - 4, max(1, flat.size // windows)):
            window = flat[begin : begin + 4]
            if np.any(window):
                self.note(what, window.tobytes())
                for text in decimals(float(window[0])) if values.dtype.kind == "f" else ():
                    self.needles.setdefault(text, what)

    def found_in(self, data: bytes) -> set[str]:
        return {what for needle, what in self.needles.items() if needle in data}


class Watch(MemoryLink):
    """Notes the secrets of one device while it carries a run, and keeps what devices say.

    Args:
        federation: Whose devices.
        secrets: Where to note them.
        spoil: Changes a request to the device: by kind.
    """

    def __init__(
        self,
        federation: Federation,
        private: Secrets,
        spoil: Mapping[str, Callable[[Payload], Payload]] | None = None,
    ) -> None:
        super().__init__(federation.participants())
        self.federation, self.private, self.spoil = federation, private, spoil or {}
        self.said: list[str] = []

    def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
        if node != VICTIM:
            return super().answer(node, kind, payload)
        payload = self.spoil.get(kind, lambda same: same)(payload)
        before = self.saved.get(node)
        try:
            body, vector, after = self.participants[node].answer(kind, payload.body, payload.vector, before)
        except Exception as exc:
            self.said.append("".join(traceback.format_exception(exc)))
            self.said.append(repr(exc))
            return Answer(node, None, str(exc) if isinstance(exc, UmbelError) else type(exc).__name__)
        self.saved[node] = after
        self.look(kind, payload, before, after, body, vector)
        return Answer(node, Payload(body, vector), size_up=len(body) + len(vector))

    def look(
        self,
        kind: str,
        payload: Payload,
        before: Saved | None,
        after: Saved | None,
        body: bytes,
        vector: bytes,
    ) -> None:
        home = self.federation.homes[0]
        member = Member(read_file(home.credential), home.signing_key(), home.open_policy(), home.authority())
        private = self.private
        shown: list[object] = [payload, before, after, member, self.participants[VICTIM], home]
        for saved in (before, after):
            if saved is None:
                continue
            state = restore(saved.state, member)
            shown += [state, protocol.Reply(body, np.frombuffer(vector, "<u8"))]
            if isinstance(state, protocol.Joined | protocol.Shared):
                private.note("seed", state.secrets.seed)
                private.note("mask key", state.secrets.mask_private.private_bytes_raw())
                private.note("share key", state.secrets.share_private.private_bytes_raw())
                shown.append(state.secrets)
            if isinstance(state, protocol.Shared | protocol.Masked) and state.own_share:
                private.note("own share", state.own_share)
            if isinstance(state, protocol.Masked):
                for held in list(state.held.values())[:2]:
                    private.note("held seed share", held.seed)
                    private.note("held key share", held.key)
                    shown.append(held)
            if saved.contribution:
                part = Contribution.from_bytes(saved.contribution)
                private.note_numbers("update", part.update)
                private.note("metrics", np.array(part.auxiliary).tobytes())
                for value in part.auxiliary:
                    private.needles.update(dict.fromkeys(decimals(value), "metrics"))
                shown.append(part)
        if kind == MASK and before is not None:
            state = restore(before.state, member)
            assert isinstance(state, protocol.Shared)
            accepted = protocol.accept(state, payload.body)
            for key in (*accepted.plus, *accepted.minus):
                private.note("key of a mask", key)
            words = np.frombuffer(vector, "<u8").astype(np.uint64)
            event = protocol.SharesReceived(payload.body, words)
            shown += [accepted, event]
            bare = words.copy()
            add_masks(bare, plus=accepted.minus, minus=accepted.plus)
            private.note_numbers("unmasked words", bare)
            part = Contribution.from_bytes(before.contribution)
            encoding = state.session.descriptor.encoding
            shown.append(encode(part.update, encoding, rotation_seed=bytes(32), auxiliary=part.auxiliary))
        if kind == UNMASK:
            opened = RevealedShares.from_bytes(body, "dev-0")
            shown.append(opened)
            for _, share in opened.seeds:
                private.note("revealed share", share)
        self.said += map(repr, shown)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Secrets:
    """What must not be found: among it every 32 bytes that are drawn, such as the key of the noise, and every measure."""
    noted = Secrets()
    token, draw = secrets.token_bytes, os.urandom

    def drawn(size: int) -> bytes:
        value = draw(size)
        if size == 32:
            noted.note("drawn key", value)
        return value

    def drawn_token(size: int | None = None) -> bytes:
        value = token(size)
        if size == 32:
            noted.note("drawn key", value)
        return value

    # The system's randomness is asked for by either name.
    monkeypatch.setattr(os, "urandom", drawn)
    monkeypatch.setattr(secrets, "token_bytes", drawn_token)

    # What a device adds of them is scaled to [-1, 1]; here they are as it measures them.
    def measured(name: str, value_of: Callable[[Any], float]) -> None:
        measure = getattr(contribution, name)

        def noting(*args: Any, **named: Any) -> Any:
            result = measure(*args, **named)
            noted.needles.update(dict.fromkeys(decimals(value_of(result)), f"{name} of a device"))
            return result

        monkeypatch.setattr(contribution, name, noting)

    measured("train_locally", lambda trained: trained.loss)
    measured("evaluate", lambda result: result.loss)
    measured("norm_of", float)
    return noted


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Five devices that no test changes."""
    return Federation(tmp_path_factory.mktemp("enrolled") / "root", 5, policy=STRICT)


@pytest.fixture
def federation(enrolled: Federation, tmp_path: Path, private: Secrets) -> Federation:
    """The same five, the first of them with planted examples and labels."""
    made = enrolled.copy(tmp_path / "root")
    plant(made.data[0], private)
    private.note("identity key", identity_key(made.homes[0]))
    return made


def plant(path: Path, private: Secrets) -> None:
    chance = np.random.default_rng(20)
    x = chance.uniform(1, 15, (ROWS, 1, 8, 8)).astype(np.float32)
    y = chance.integers(0, 10, ROWS)
    private.note_numbers("example", x, windows=12)
    for begin in range(0, ROWS - 16, 16):
        labels = y[begin : begin + 16]
        private.note("labels", labels.astype(np.uint8).tobytes())
        private.note("labels", labels.astype(np.int64).tobytes())
    np.savez(path, x=x, y=y)


def identity_key(home: DeviceHome) -> bytes:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return cast("Any", load_pem_private_key(home.identity_key.read_bytes(), None)).private_bytes_raw()


def planned(federation: Federation, **training: float) -> RunPlan:
    plan = federation.plan(rounds=1, clip=2.0, noise_multiplier=2.0)
    return replace(plan, training=replace(plan.training, **training))  # type: ignore[arg-type]


def everything(federation: Federation, temporary: Path) -> Iterator[tuple[str, bytes]]:
    """Every file that devices and fleet left, but for those that are there to hold a secret.

    Nor the package as long as it is as it was published, before there was anything private: some of its many numbers
    begin like a metric by chance.
    """
    for root in (federation.root, temporary):
        for path in root.rglob("*"):
            # The identity key has a file of its own, and the shards are the users' data itself.
            if not path.is_file() or path.name == "identity.key" or path in federation.data:
                continue
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != federation.package.sha256:
                yield str(path.relative_to(federation.root.parent)), data


def assert_nothing_private(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    said: list[str],
) -> None:
    out, err = capfd.readouterr()
    places = dict(everything(federation, temporary))
    places |= {"log": caplog.text.encode(), "output": (out + err).encode(), "reprs": "\n".join(said).encode()}
    assert {name: found for name, data in places.items() if (found := private.found_in(data))} == {}
    assert {"example", "labels", "identity key"} <= set(private.needles.values())


def test_rounds_that_go_well_leave_nothing_private_behind(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    link = Watch(federation, private)
    plan = replace(federation.plan(rounds=2, clip=2.0, noise_multiplier=2.0))
    record, rounds = federation.run(link, plan)
    assert record.state == "finished"
    assert all(part.outcome == "summed" for each in rounds for part in each.participations)
    assert_nothing_private(federation, temporary, private, caplog, capfd, [*link.said, repr(rounds)])
    made = {
        "update",
        "metrics",
        "seed",
        "mask key",
        "share key",
        "own share",
        "held seed share",
        "held key share",
        "train_locally of a device",
        "evaluate of a device",
        "norm_of of a device",
    }
    assert made | {"drawn key", "key of a mask", "unmasked words", "revealed share"} <= set(
        private.needles.values()
    )


@pytest.mark.parametrize("kind", [TRAIN, SHARE, MASK, CONFIRM, UNMASK])
def test_refusals_leave_nothing_private_behind(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    link = Watch(
        federation, private, {kind: lambda payload: replace(payload, body=payload.body + b"\x78\x01")}
    )
    federation.run(link, planned(federation))
    assert any("not in canonical form" in text for text in link.said)
    assert_nothing_private(federation, temporary, private, caplog, capfd, link.said)


def bad_values(federation: Federation, private: Secrets) -> None:
    archive = dict(np.load(federation.data[0]))
    archive["x"][3, 0, 2, :4] = [99.12345, np.nan, -7.654321, np.inf]
    private.note_numbers("bad example", archive["x"][3, 0, 2, :5])
    private.needles[b"99.1234"] = private.needles[b"7.65432"] = "bad example"
    np.savez(federation.data[0], **archive)


def bad_label(federation: Federation, private: Secrets) -> None:
    archive = dict(np.load(federation.data[0]))
    archive["y"][5] = 918273
    private.needles[b"918273"] = "bad label"
    np.savez(federation.data[0], **archive)


def no_labels(federation: Federation, private: Secrets) -> None:
    np.savez(federation.data[0], x=np.load(federation.data[0])["x"])


def damaged_data(federation: Federation, private: Secrets) -> None:
    """An .npz whose array headers hold data: where numpy's own message quotes it."""
    raw = federation.data[0].read_bytes()
    secret = b"{'descr': 'patient Alice, 1950'"
    assert raw.count(b"{'descr': ") == 2
    private.needles[b"patient Alice"] = "damaged data"
    header = raw.index(b"{'descr': ")
    federation.data[0].write_bytes(raw[:header] + secret + raw[header + len(secret) :])


def text_data(federation: Federation, private: Secrets) -> None:
    private.needles[b"patient Alice"] = "text data"
    np.savez(federation.data[0], x=np.array([["patient Alice", "1950"]]), y=np.array([1]))


def ragged_data(federation: Federation, private: Secrets) -> None:
    private.needles[b"patient Alice"] = "object data"
    np.savez(federation.data[0], x=np.array([{"patient Alice": 1950}], object), y=np.array([1]))


def no_ledger(federation: Federation, private: Secrets) -> None:
    federation.homes[0].ledger.unlink()


def broken_ledger(federation: Federation, private: Secrets) -> None:
    federation.homes[0].ledger.write_bytes(b"SQLite format 3\x00" + bytes(5000))


def no_package(federation: Federation, private: Secrets) -> None:
    shutil.rmtree(federation.homes[0].shelf)
    federation.homes[0].make()


FAULTS: list[Callable[[Federation, Secrets], None]] = [
    bad_values,
    bad_label,
    no_labels,
    damaged_data,
    text_data,
    ragged_data,
    no_ledger,
    broken_ledger,
    no_package,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_leave_nothing_private_behind(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: Callable[[Federation, Secrets], None],
) -> None:
    caplog.set_level(logging.DEBUG)
    fault(federation, private)
    link = Watch(federation, private)
    _, (only,) = federation.run(link, planned(federation))
    assert any(part.device == "dev-0" and part.outcome != "summed" for part in only.participations)
    assert any("Error: " in text for text in link.said)
    assert_nothing_private(federation, temporary, private, caplog, capfd, link.said)


def test_training_that_diverges_leaves_nothing_private_behind(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    link = Watch(federation, private)
    federation.run(link, replace(planned(federation, learning_rate=1e38), attempts=1))
    assert "Training diverged" in caplog.text
    assert_nothing_private(federation, temporary, private, caplog, capfd, link.said)


def test_a_full_disk_leaves_nothing_private_behind(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)

    class Full(Watch):
        def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            full = node == VICTIM and kind == MASK
            resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else soft, hard))
            try:
                return super().answer(node, kind, payload)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    link = Full(federation, private)
    federation.run(link, planned(federation))
    assert any("StorageError" in text for text in link.said)
    assert_nothing_private(federation, temporary, private, caplog, capfd, link.said)


def test_a_kept_session_that_is_damaged_leaves_nothing_private_behind(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    link = Watch(federation, private)
    federation.run(link, planned(federation))
    participant = federation.participants()[VICTIM]
    masked = Watch(federation, private)
    masked.spoil = {MASK: lambda payload: replace(payload, body=b"")}
    federation.run(masked, planned(federation), "r2")
    kept = masked.saved[VICTIM]
    assert kept is not None
    said = []
    for place in range(0, len(kept.state), 7):
        for state in (kept.state[:place], kept.state[:place] + b"\xff\xff" + kept.state[place + 2 :]):
            try:
                participant.answer(MASK, b"", b"", replace(kept, state=state))
            except UmbelError as exc:
                said += ["".join(traceback.format_exception(exc)), repr(exc)]
    assert any("LocalProtocolError" in text for text in said)
    assert_nothing_private(federation, temporary, private, caplog, capfd, [*link.said, *masked.said, *said])


class Post:
    """Stands where the SuperLink is: hands in one message and takes the answer."""

    sent: Message | None = None

    def fetch(self, head: Message, tree: ObjectTree) -> Message:
        return head

    def send(self, reply: Message, seconds: float) -> None:
        self.sent = reply


def test_a_bug_of_ours_that_quotes_a_value_shows_where_it_is_and_not_the_value(
    federation: Federation,
    temporary: Path,
    private: Secrets,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    x = np.load(federation.data[0])["x"]

    def quoting(*_: object, **__: object) -> object:
        raise RuntimeError(f"cannot make sense of {x[0, 0, 0].tolist()}")

    recorded = Recorder(federation.participants())
    federation.run(recorded, planned(federation))
    request = recorded.moments[1, TRAIN, VICTIM].request
    record = ConfigRecord({"body": request.body, "vector": request.vector})
    metadata = Metadata(1, "message", 0, VICTIM, "", "1", time.time(), 60.0, TRAIN)
    message = make_message(metadata=metadata, content=RecordDict({"umbel": record}))
    node_config = {"home": str(federation.homes[0].path), "data": str(federation.data[0])}
    contexts = {1: Context(1, VICTIM, node_config, RecordDict(), {})}  # type: ignore[arg-type]
    post = Post()

    monkeypatch.setattr(np, "load", quoting)
    home, data, stop = federation.homes[0], federation.data[0], threading.Event()
    client = flower.client_app()
    flower._answer(post, message, ObjectTree(), client, contexts, home, data, stop)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert post.sent is not None
    assert post.sent.error.reason == "RuntimeError"
    assert "could not answer train: RuntimeError" in caplog.text
    assert "in read_examples" in caplog.text
    assert_nothing_private(federation, temporary, private, caplog, capfd, [post.sent.error.reason])


@pytest.mark.parametrize(
    "value", [0.8437521, -0.01251234, 3.2512341e-7, 2.5, 96.0, -222511.2634, 123456781.5]
)
@pytest.mark.parametrize("text", ["{0!r}", "[{0}]", "{0:.15f}", "{0:.9e}", "{0:.15g}"])
def test_a_number_is_found_however_it_is_written(value: float, text: str) -> None:
    written = text.format(value).encode()
    if len(written.strip(b"-[]0.").replace(b".", b"")) >= 6:
        assert any(needle in written for needle in decimals(value))


def test_spellings_are_found_where_they_are(
    federation: Federation, private: Secrets, temporary: Path
) -> None:
    """The search itself: each spelling of a planted value, in a file that a round might have left."""
    x = read_examples(federation.data[0]).x.astype(np.float32)
    spilled = [
        x.tobytes(),
        x.tobytes().hex().encode(),
        base64.b64encode(b"." + x.tobytes()),
        repr(x.tobytes()).encode(),
        str(x[0].tolist()).encode(),
        repr(x[0]).encode(),
    ]
    for number, text in enumerate(spilled):
        (federation.homes[0].path / f"spilled-{number}").write_bytes(text)
    (temporary / "spilled").write_bytes(identity_key(federation.homes[0]).hex().encode())
    found = {name: private.found_in(data) for name, data in everything(federation, temporary)}
    assert {name: what for name, what in found.items() if what} == {
        **{f"root/device-0/spilled-{number}": {"example"} for number in range(len(spilled))},
        "temporary/spilled": {"identity key"},
    }
