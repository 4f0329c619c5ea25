"""Everything that a device needs, looked at once, with what to do about each thing that is wrong.

Nothing is changed, but for the tables of databases that are made where they are missing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import secrets
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from umbel._data.consent import Consent
from umbel._data.store import Store
from umbel._fleet.trust import trusted_until_s
from umbel._home.directory import DeviceHome, Validity
from umbel._home.files import write_atomically
from umbel._review.store import ReviewStore
from umbel._rounds.conditions import Conditions
from umbel._rounds.ledger import Ledger
from umbel._telemetry.spool import MAX_BYTES, Spool
from umbel._words import as_number, as_time
from umbel_proto.errors import CertificateError, UmbelError

State = Literal["ok", "warning", "wrong"]

SKEW_S = 300.0
"""A clock this far off is nobody's concern."""
LATE = 5 / 6
"""The share of a certificate's life by which the agent has renewed it long ago."""
SMALL_DISK = 256 * 1024 * 1024
FULL_DISK = 32 * 1024 * 1024
RETURN_S = 30 * 86400.0
"""How long after its certificate a device comes back by itself, unless its fleet chose otherwise."""
CONNECT_S = 5.0
CALL_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Args:
        check: What was looked at.
        state: ``ok``; ``warning``: it works, but not for long; ``wrong``: something does not.
        found: What there is, and what to do if it is not ok.
    """

    check: str
    state: State
    found: str


def examine(home: DeviceHome, *, now_s: float, online: bool = True) -> Iterator[Finding]:
    """Yield what is found, one check after the other.

    Args:
        home: The device's files.
        now_s: What the device's clock says, Unix seconds.
        online: Whether to ask the gateway and the SuperLink.
    """
    first = _enrolled(home)
    yield first
    if first.state == "wrong":
        return  # Nothing else can be there.
    yield from _permissions(home)
    answered, connection = _gateway(home) if online else (False, None)
    shown = _shown_by_the_gateway(home) if online else None
    yield _looked("clock", lambda: _clock(home, now_s, accepted=answered, shown=shown))
    yield _looked("certificate", lambda: _certificate(home, now_s, accepted=answered))
    if connection is not None:
        yield (
            connection
            if answered or not _comes_back(home, now_s)
            else _looked("gateway", lambda: _way_back(home))
        )
        if home.identity.superlink:
            yield _superlink(home.identity.superlink)
    yield _looked("disk", lambda: _disk(home))
    yield _looked("ledger", lambda: _ledger(home))
    yield _looked("spool", lambda: _spool(home))
    yield _looked("releases", lambda: _releases(home, now_s))
    yield from _models(home)
    yield _engines()
    yield _looked("data", lambda: _data(home))
    yield _looked("reviews", lambda: _reviews(home))
    yield _looked("training", lambda: _training(home))
    yield _agent(home)


def _looked(check: str, look: Callable[[], Finding]) -> Finding:
    """Return what a look found; an error of ours says what is wrong and what to do."""
    try:
        return look()
    except UmbelError as exc:
        return Finding(check, "wrong", str(exc))


def _enrolled(home: DeviceHome) -> Finding:
    def look() -> Finding:
        identity = home.identity
        return Finding("enrolled", "ok", f"{identity.device} of fleet {identity.fleet}, at {home.path}")

    return _looked("enrolled", look)


def _permissions(home: DeviceHome) -> Iterator[Finding]:
    """Look at every file that enrolling made, and at whose eyes may see it."""
    secret = (home.tls_key, home.identity_key, home.node_key)
    public = (
        home.ca_certificate,
        home.tls_certificate,
        home.credential,
        home.policy,
        home.authority_key,
        home.release_key,
        home.telemetry_key,
        home.ledger,
    )
    wrong = 0
    for file in (
        home.path,
        *secret,
        *public,
        *(each for each in (home.examples_key, home.reviews_key) if each.exists()),
    ):
        if (problem := _problem(file, secret=file not in public)) is not None:
            wrong += 1
            yield problem
    if not wrong:
        yield Finding("permissions", "ok", "every file is there, and what is secret is its owner's only")


def _problem(file: Path, *, secret: bool) -> Finding | None:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as exc:
        return Finding(
            "permissions",
            "wrong",
            f"{file} cannot be looked at ({exc.strerror}): restore it, or enroll again with  umbel enroll TOKEN --again",
        )
    if secret and mode & 0o077:
        wanted = "700" if file.is_dir() else "600"
        return Finding(
            "permissions", "wrong", f"Others may use {file} (mode {mode:o}): run  chmod {wanted} {file}"
        )
    if not os.access(file, os.R_OK):
        return Finding("permissions", "wrong", f"{file} cannot be read: run umbel as the user who owns it.")
    return None


def _gateway(home: DeviceHome) -> tuple[bool, Finding]:
    """Ask the gateway for releases; return whether it knew the device, and what was found."""
    from umbel._fleet.channel import Gateway, call
    from umbel_proto.wire.delivery_pb2 import CheckReply, CheckRequest

    answered = False

    def look() -> Finding:
        nonlocal answered
        # Whether the certificate still holds is for the gateway's clock to say: ours may be wrong.
        with Gateway(home, now_s=home.certificate_validity().begins_s) as gateway:
            reply: CheckReply = call(
                gateway.delivery.Check, CheckRequest(), gateway.address, timeout_s=CALL_S
            )
        answered = True
        return Finding(
            "gateway", "ok", f"{home.identity.gateway} answers, and offers {len(reply.releases)} models"
        )

    found = _looked("gateway", look)
    return answered, found


def _way_back(home: DeviceHome) -> Finding:
    """Ask whether the fleet would take the device back: the gateway speaks to no expired certificate."""
    from umbel._fleet.channel import call, readmission
    from umbel._home.files import read_file
    from umbel_proto.wire.enrollment_pb2 import ChallengeReply, ChallengeRequest

    address = home.identity.enrollment
    with readmission(address, read_file(home.ca_certificate)) as stub:
        _: ChallengeReply = call(stub.Challenge, ChallengeRequest(), address, timeout_s=CALL_S)
    return Finding(
        "gateway",
        "warning",
        f"It takes no expired certificate, but {address} answers, where this device comes back: let  umbel run  reach it.",
    )


def _comes_back(home: DeviceHome, now_s: float) -> bool:
    """Whether the certificate has expired, and the fleet may still take the device back."""
    try:
        ends_s = home.certificate_validity().ends_s
    except UmbelError:  # It has its own line.
        return False
    return bool(home.identity.enrollment) and ends_s <= now_s < ends_s + RETURN_S


def _shown_by_the_gateway(home: DeviceHome) -> Validity | None:
    """Return when the gateway's certificate holds, whatever our clock says of that; None without one of this fleet."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    # Nothing is said over this connection: what it shows is judged below, by its signature.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(home.tls_certificate, home.tls_key)
        authority = x509.load_pem_x509_certificates(home.ca_certificate.read_bytes())[0]
        with (
            socket.create_connection(_split(home.identity.gateway), timeout=CONNECT_S) as plain,
            context.wrap_socket(plain) as secured,
        ):
            der = secured.getpeercert(binary_form=True)
        certificate = x509.load_der_x509_certificate(der or b"")
        certificate.verify_directly_issued_by(authority)
    except (OSError, ValueError, IndexError, TypeError, InvalidSignature, UmbelError):
        return None
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _superlink(address: str) -> Finding:
    try:
        with socket.create_connection(_split(address), timeout=CONNECT_S):
            pass
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        return Finding(
            "superlink",
            "warning",
            f"{address} does not answer ({why}): no rounds until it does. Check that it runs and is reachable.",
        )
    if importlib.util.find_spec("flwr") is None:
        return Finding(
            "superlink",
            "warning",
            "The fleet runs rounds, and flwr is missing: run  pip install 'umbel[learn]'",
        )
    return Finding("superlink", "ok", f"{address} listens")


def _clock(home: DeviceHome, now_s: float, *, accepted: bool, shown: Validity | None) -> Finding:
    life = home.certificate_validity()
    if now_s < life.begins_s - SKEW_S:
        return Finding(
            "clock",
            "wrong",
            f"The clock says {as_time(now_s)}, before this device's certificate was made, {as_time(life.begins_s)}: "
            "set the clock.",
        )
    if now_s >= life.ends_s and accepted:
        return Finding(
            "clock",
            "wrong",
            f"The clock says {as_time(now_s)}, and the gateway still accepts a certificate that ends "
            f"{as_time(life.ends_s)}: the clock is ahead; set it.",
        )
    if shown is not None and not shown.begins_s - SKEW_S <= now_s < shown.ends_s:
        return Finding(
            "clock",
            "wrong",
            f"The clock says {as_time(now_s)}, and the gateway's certificate holds from {as_time(shown.begins_s)} to "
            f"{as_time(shown.ends_s)}: set the clock; if it is right, the gateway needs a new certificate.",
        )
    with contextlib.suppress(UmbelError), Spool(home.spool) as spool:  # The spool has its own line.
        last_s = spool.last_contact_s()
        if last_s is not None and now_s < last_s - SKEW_S:
            return Finding(
                "clock",
                "warning",
                f"The clock says {as_time(now_s)}, and the gateway answered at {as_time(last_s)}: it went back, or was "
                "ahead then. Set the clock.",
            )
    return Finding("clock", "ok", as_time(now_s))


def _certificate(home: DeviceHome, now_s: float, *, accepted: bool) -> Finding:
    life = home.certificate_validity()
    if now_s >= life.ends_s and not accepted:
        try:
            home.require_valid_certificate(now_s)
        except CertificateError as exc:
            return Finding("certificate", "warning" if _comes_back(home, now_s) else "wrong", str(exc))
    if now_s >= _late_s(life) and not accepted:
        return Finding(
            "certificate",
            "warning",
            f"It ends {as_time(life.ends_s)} and was not renewed: let  umbel run  reach the gateway before that.",
        )
    return Finding("certificate", "ok", f"it ends {as_time(life.ends_s)}, and is renewed before")


def _late_s(life: Validity) -> float:
    return life.begins_s + LATE * (life.ends_s - life.begins_s)


def _disk(home: DeviceHome) -> Finding:
    try:
        free = os.statvfs(home.path)
    except OSError as exc:
        return Finding("disk", "wrong", f"{home.path} cannot be looked at ({exc.strerror}): check its disk.")
    probe = home.path / f".doctor-{secrets.token_hex(4)}"
    try:
        write_atomically(probe, b"\0" * 4096)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    left = free.f_bavail * free.f_frsize
    said = f"{left / 2**20:.0f} MiB are free at {home.path}"
    if left < FULL_DISK:
        return Finding("disk", "wrong", f"Only {said}: free some, or nothing new can be kept.")
    if left < SMALL_DISK:
        return Finding("disk", "warning", f"Only {said}: the next model may not fit.")
    return Finding("disk", "ok", said)


def _ledger(home: DeviceHome) -> Finding:
    policy = home.open_policy()
    with Ledger(home.ledger) as ledger:
        epsilon = ledger.spent(policy.budget_delta)
    said = f"epsilon {as_number(epsilon)} of {as_number(policy.budget_epsilon)} spent"
    if epsilon >= policy.budget_epsilon:
        return Finding("ledger", "warning", f"{said}: this device takes part in no more rounds.")
    return Finding("ledger", "ok", said)


def _spool(home: DeviceHome) -> Finding:
    with Spool(home.spool) as spool:
        depth, last_s = spool.depth(), spool.last_contact_s()
    waiting = "1 report waits" if depth.batches == 1 else f"{depth.batches} reports wait"
    said = f"{waiting} ({depth.bytes} bytes), {depth.dropped} were given up, last contact {as_time(last_s)}"
    if depth.bytes > MAX_BYTES / 2:
        return Finding(
            "spool", "warning", f"{said}: the oldest are dropped soon. Let the device reach its gateway."
        )
    return Finding("spool", "ok", said)


def _releases(home: DeviceHome, now_s: float) -> Finding:
    if not home.root.exists():
        return Finding(
            "releases",
            "warning",
            "Nothing new is installed before the next renewal says whom to trust with it.",
        )
    until_s = trusted_until_s(home)
    if until_s is None:
        return Finding("releases", "warning", "The device has not asked yet what the fleet has signed.")
    if until_s <= now_s:
        return Finding(
            "releases",
            "warning",
            f"What the fleet signed of its releases held until {as_time(until_s)}: what is installed goes on running, "
            "and nothing new is installed. Let  umbel run  reach the gateway, check the clock, and if it stays so, "
            "tell the fleet's operator.",
        )
    return Finding("releases", "ok", f"What the fleet signed of its releases holds until {as_time(until_s)}")


def _models(home: DeviceHome) -> Iterator[Finding]:
    """Run every installed model's golden vectors through every variant that this device can run."""
    from umbel._releases.shelf import Shelf

    try:
        shelf = Shelf(home.shelf, home.release_authority())
        names = sorted({each.model for each in shelf.installed()})
    except UmbelError as exc:
        yield Finding("models", "wrong", str(exc))
        return
    if not names:
        yield Finding("models", "warning", "No model is installed yet: let  umbel run  reach the gateway.")
    for name in names:
        yield _looked(f"model {name}", lambda name=name: _model(shelf, name))  # type: ignore[misc]


def _model(shelf: object, name: str) -> Finding:
    from umbel._releases.package import verify_golden
    from umbel._releases.shelf import Shelf
    from umbel.engines import load_engine

    assert isinstance(shelf, Shelf)
    installed = shelf.active(name)
    if installed is None:
        return Finding(f"model {name}", "warning", "It was fetched, and no version of it is active.")
    package = shelf.package(installed)
    engine = load_engine(package, installed.variant)
    verify_golden(package, engine)
    said = f"version {installed.version} ({installed.variant}, {engine.name}) is whole, and computes what it should"
    return Finding(f"model {name}", "ok", said)


def _engines() -> Finding:
    try:
        import onnxruntime
    except ImportError as exc:
        return Finding(
            "engines",
            "wrong",
            f"onnxruntime cannot be loaded ({exc}): run  pip install --force-reinstall umbel",
        )
    lite = "not installed, which is right where no model needs it"
    if importlib.util.find_spec("ai_edge_litert") is not None:
        lite = importlib.metadata.version("ai-edge-litert")
        try:
            from ai_edge_litert.interpreter import Interpreter  # noqa: F401
        except ImportError as exc:
            return Finding(
                "engines",
                "warning",
                f"LiteRT {lite} cannot be loaded ({exc}): run  pip install --force-reinstall 'umbel[tflite]'",
            )
    return Finding("engines", "ok", f"onnxruntime {onnxruntime.__version__}; LiteRT {lite}")


def _data(home: DeviceHome) -> Finding:
    if not home.examples.exists():
        return Finding("data", "ok", "no example was ever added")
    with Store(home.examples, home.examples_key) as store:
        held = store.held()
        for each in held:
            store.rows(each.model)  # Opens every row: an altered one is found here.
    return Finding(
        "data", "ok", ", ".join(f"{each.rows} of model {each.model}" for each in held) or "no example"
    )


def _reviews(home: DeviceHome) -> Finding:
    if not home.reviews.exists():
        return Finding("reviews", "ok", "no prediction ever waited for a person")
    with contextlib.closing(ReviewStore(home.reviews, home.reviews_key)) as store:
        waiting = store.waiting()
        for model in store.models():
            store.cases(model)  # Opens every row: an altered one is found here.
            store.records(model)
    said = ", ".join(f"{count} of model {model}" for model, count in waiting.items() if count)
    return Finding("reviews", "ok", f"waiting: {said or 'none'}")


def _training(home: DeviceHome) -> Finding:
    conditions = Conditions(home)
    said = conditions.said()
    demanded = conditions.rules.stricter(conditions.policy).consent
    if demanded and Consent(home).decision().state == "unasked":
        return Finding(
            "training",
            "warning",
            f"{said} Ask, and after a yes run  umbel data consent --grant --home {home.path}",
        )
    return Finding("training", "ok", said)


def _agent(home: DeviceHome) -> Finding:
    if home.agent_runs():
        return Finding("agent", "ok", "umbel run serves this device")
    return Finding("agent", "warning", "umbel run does not serve this device: start it, or its service.")
