"""Every kind of signer signs alike, and one that goes wrong never yields a signature.

A new kind joins with one line in ``SIGNERS``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from service_fleet import DAY_S, PlainDevice, make_csr, make_fleet
from umbel_proto.credentials import open_policy
from umbel_proto.errors import StorageError, UnavailableError
from umbel_server.ca import signer as signers
from umbel_server.ca.held import HeldEcKey, HeldEdKey
from umbel_server.ca.registrar import Registrar
from umbel_server.ca.signer import CommandSigner, FileSigner, Signer, check_signature
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.policy_command import change_training

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Make = Callable[[Path, Key], Signer]

PROGRAM = """\
import sys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key = serialization.load_pem_private_key(open(sys.argv[1], "rb").read(), None)
data = sys.stdin.buffer.read()
signature = key.sign(data, ec.ECDSA(hashes.SHA256())) if hasattr(key, "curve") else key.sign(data)
sys.stdout.buffer.write(signature)
"""
"""What an operator would write for a key service, here for a file."""


def pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def by_file(path: Path, key: Key) -> Signer:
    (path / "key.pem").write_bytes(pem(key))
    return FileSigner(path / "key.pem", key.public_key(), "test key")


def by_command(path: Path, key: Key) -> Signer:
    (path / "key.pem").write_bytes(pem(key))
    (path / "sign.py").write_text(PROGRAM)
    command = (sys.executable, str(path / "sign.py"), str(path / "key.pem"))
    return CommandSigner(command, key.public_key())


SIGNERS = (by_file, by_command)
KEYS: dict[str, Callable[[], Key]] = {
    "ca": lambda: ec.generate_private_key(ec.SECP256R1()),
    "authority": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("make", SIGNERS)
def test_what_it_signs_verifies_by_its_public_key_and_no_other(tmp_path: Path, make: Make, kind: str) -> None:
    signer = make(tmp_path, KEYS[kind]())
    for data in (b"", b"statement", bytes(5000)):
        signature = signer.sign(data)
        check_signature(signer.public, signature, data)
        for other, told in ((KEYS[kind]().public_key(), data), (signer.public, data + b"!")):
            with pytest.raises(InvalidSignature):
                check_signature(other, signature, told)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("make", SIGNERS)
def test_a_held_key_signs_and_does_nothing_else(tmp_path: Path, make: Make, kind: str) -> None:
    signer = make(tmp_path, KEYS[kind]())
    held = HeldEcKey(signer) if kind == "ca" else HeldEdKey(signer)
    assert held.public_key() == signer.public
    with pytest.raises(TypeError, match="elsewhere"):
        pem(held)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys; sys.exit(3)", "ended with 3: without a word"),
        ("import sys; sys.stderr.write('no such\\nslot'); sys.exit(1)", "ended with 1: no such slot"),
        ("", "wrote no signature"),
        ("print('AAAA')", "wrote no signature"),
        ("import sys; sys.stdout.buffer.write(bytes(64))", "wrote no signature"),
        ("import sys; sys.stdout.buffer.write(bytes(10**6))", "wrote no signature"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
    ],
)
@pytest.mark.parametrize("kind", KEYS)
def test_a_command_that_goes_wrong_is_one_sentence_and_no_signature(body: str, said: str, kind: str) -> None:
    signer = CommandSigner((sys.executable, "-c", body), KEYS[kind]().public_key())
    with pytest.raises(UnavailableError, match=said) as told:
        signer.sign(b"statement")
    assert "\n" not in str(told.value)


def test_a_command_that_signs_with_another_key_yields_no_signature(tmp_path: Path) -> None:
    """As where an operator's script mixes up two keys: no certificate is issued that nobody can verify."""
    right, wrong = KEYS["ca"](), KEYS["ca"]()
    by_command(tmp_path, wrong)
    command = (sys.executable, str(tmp_path / "sign.py"), str(tmp_path / "key.pem"))
    with pytest.raises(UnavailableError, match="wrote no signature"):
        CommandSigner(command, right.public_key()).sign(b"statement")


def test_a_command_that_hangs_or_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    public = KEYS["ca"]().public_key()
    with pytest.raises(UnavailableError, match="cannot be run: No such file"):
        CommandSigner(("/no/such/program",), public).sign(b"statement")
    monkeypatch.setattr(signers, "TIMEOUT_S", 0.2)
    with pytest.raises(UnavailableError, match=r"took over 0\.2 s"):
        CommandSigner((sys.executable, "-c", "import signal; signal.pause()"), public).sign(b"x")


@pytest.mark.parametrize("content", [b"", b"nonsense", pem(KEYS["ca"]()), pem(KEYS["authority"]())])
def test_a_file_with_another_key_or_none_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    for kind in KEYS:
        with pytest.raises(StorageError, match="restore it from a backup"):
            FileSigner(tmp_path / "key.pem", KEYS[kind]().public_key(), "test key")


def test_a_fleet_whose_keys_a_program_has_lets_devices_in_and_signs_policies(tmp_path: Path) -> None:
    """The keys of a new fleet moved out of its directory, as into a security module."""
    made = make_fleet(tmp_path / "garden")
    vault = tmp_path / "vault"
    vault.mkdir()
    for key in (made.ca_key, made.authority_key):
        key.rename(vault / key.name)
    (vault / "sign.py").write_text(PROGRAM.replace("sys.argv[1]", f"'{vault}/' + sys.argv[1] + '.key'"))
    path = made.path / "fleet.toml"
    text = path.read_text().replace('signer = "file"', 'signer = "command"')
    path.write_text(text.replace('command = ""', f"command = '\"{sys.executable}\" {vault}/sign.py'"))
    fleet = FleetDir.open(made.path)
    with fleet.open_store() as store:
        registrar = Registrar.open(fleet, store, clock=store.clock)
        device = PlainDevice()
        papers = registrar.enroll(device.enroll_request(store.tokens.issue(valid_s=60), name="rose"))
        again = registrar.renew(papers.certificate, make_csr(device.tls))
        assert again.not_after_s - store.clock() == pytest.approx(DAY_S, abs=60)
    changed = change_training(fleet, {"idle": True})
    opened = open_policy(fleet.signed_policy(), authority=made.authority_public(), fleet=fleet.name)
    assert (opened, opened.training.idle, opened.version) == (changed, True, 2)
