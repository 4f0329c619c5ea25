"""Every kind of signer signs alike, and one that goes wrong never yields a signature.

A new kind joins with one line in ``make``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from security_module import MODULE, PIN, TOKEN, SecurityModule
from service_fleet import DAY_S, PlainDevice, make_csr, make_fleet
from umbel_proto.credentials import open_policy
from umbel_proto.errors import StorageError, UnavailableError, UsageError
from umbel_server.ca import signer as signers
from umbel_server.ca.held import HeldEcKey, HeldEdKey
from umbel_server.ca.pin import read_pin
from umbel_server.ca.pkcs11 import Pkcs11Signer, TokenPlace
from umbel_server.ca.registrar import Registrar
from umbel_server.ca.settings import Ca
from umbel_server.ca.signer import CommandSigner, FileSigner, Signer, check_signature
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.policy_command import change_training

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Make = Callable[[Key], Signer]

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


def by_module(path: Path, key: Key, module: SecurityModule) -> Pkcs11Signer:
    """Sign with a key that was put into the token under a label of its own."""
    (path / "key.pem").write_bytes(pem(key))
    module.import_key(path / "key.pem", str(path))
    (path / "key.pem").unlink()
    return Pkcs11Signer(TokenPlace(MODULE, TOKEN, PIN), str(path), key.public_key())


@pytest.fixture(params=["file", "command", "pkcs11"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def made(key: Key) -> Signer:
        match request.param:
            case "file":
                return by_file(tmp_path, key)
            case "command":
                return by_command(tmp_path, key)
        return by_module(tmp_path, key, request.getfixturevalue("security_module"))

    return made


KEYS: dict[str, Callable[[], Key]] = {
    "ca": lambda: ec.generate_private_key(ec.SECP256R1()),
    "authority": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
def test_what_it_signs_verifies_by_its_public_key_and_no_other(make: Make, kind: str) -> None:
    signer = make(KEYS[kind]())
    for data in (b"", b"statement", bytes(5000)):
        signature = signer.sign(data)
        check_signature(signer.public, signature, data)
        for other, told in ((KEYS[kind]().public_key(), data), (signer.public, data + b"!")):
            with pytest.raises(InvalidSignature):
                check_signature(other, signature, told)


@pytest.mark.parametrize("kind", KEYS)
def test_a_held_key_signs_and_does_nothing_else(make: Make, kind: str) -> None:
    signer = make(KEYS[kind]())
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
    command = f"command = '\"{sys.executable}\" {vault}/sign.py'"
    lets_devices_in_and_signs_policies(changed(made, ('"file"', '"command"'), ('command = ""', command)))


def changed(made: FleetDir, *edits: tuple[str, str]) -> FleetDir:
    """Return a fleet after edits of its settings, each of the first line where it fits."""
    path = made.path / "fleet.toml"
    text = path.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return FleetDir.open(made.path)


def lets_devices_in_and_signs_policies(fleet: FleetDir) -> None:
    with fleet.open_store() as store:
        registrar = Registrar.open(fleet, store, clock=store.clock)
        device = PlainDevice()
        papers = registrar.enroll(device.enroll_request(store.tokens.issue(valid_s=60), name="rose"))
        again = registrar.renew(papers.certificate, make_csr(device.tls))
        assert again.not_after_s - store.clock() == pytest.approx(DAY_S, abs=60)
    after = change_training(fleet, {"idle": True})
    opened = open_policy(fleet.signed_policy(), authority=fleet.authority_public(), fleet=fleet.name)
    assert (opened, opened.training.idle, opened.version) == (after, True, 2)


@pytest.mark.parametrize("kept", ["ca authority", "ca"])
def test_a_fleet_whose_keys_a_security_module_has_lets_devices_in_and_signs_policies(
    tmp_path: Path, module_fleet: FleetDir, kept: str
) -> None:
    """With both keys there, and with the CA's alone, as where a module knows no Ed25519."""
    made = module_fleet
    for name in kept.split():
        (made.ca_key if name == "ca" else made.authority_key).unlink()
    (made.path / "ca" / "pin").write_text(PIN + "\n")
    settings = (
        ('signer = "file"', 'signer = "pkcs11"'),
        ('module = ""', f'module = "{MODULE}"'),
        ('module_keys = "ca authority"', f'module_keys = "{kept}"'),
        ('pin_file = ""', 'pin_file = "ca/pin"'),
    )
    lets_devices_in_and_signs_policies(changed(made, *settings))


@pytest.fixture
def module_fleet(tmp_path: Path, security_module: SecurityModule) -> FleetDir:
    """Return a fleet whose keys are in the token under the labels that the authority looks for."""
    made = make_fleet(tmp_path / "garden")
    token = tmp_path.name[-30:]
    security_module.make_token(token)
    security_module.import_key(made.ca_key, "ca", token)
    security_module.import_key(made.authority_key, "authority", token)
    return changed(made, ('token = ""', f'token = "{token}"'))


def test_many_threads_sign_with_two_keys_of_one_token(
    tmp_path: Path, security_module: SecurityModule
) -> None:
    """The authority answers each gateway in a thread, and a module takes one call at a time."""
    signers = []
    for kind, make_key in KEYS.items():
        (tmp_path / kind).mkdir()
        signers.append(by_module(tmp_path / kind, make_key(), security_module))
    told = [bytes([n]) * 100 for n in range(100)]
    with ThreadPoolExecutor(8) as threads:
        signed = list(threads.map(lambda data: [signer.sign(data) for signer in signers], told))
    for data, signatures in zip(told, signed, strict=True):
        for signer, signature in zip(signers, signatures, strict=True):
            check_signature(signer.public, signature, data)


def test_a_module_that_was_restarted_is_entered_again(
    tmp_path: Path, security_module: SecurityModule
) -> None:
    signer = by_module(tmp_path, KEYS["ca"](), security_module)
    library = pkcs11.lib(str(MODULE))
    library.reinitialize()
    check_signature(signer.public, signer.sign(b"statement"), b"statement")


def test_a_key_under_a_wrong_label_is_refused_when_the_authority_starts(
    tmp_path: Path, security_module: SecurityModule
) -> None:
    by_module(tmp_path, KEYS["ca"](), security_module)
    place = TokenPlace(MODULE, TOKEN, PIN)
    with pytest.raises(UsageError, match="is not the fleet's"):
        Pkcs11Signer(place, str(tmp_path), KEYS["ca"]().public_key())
    with pytest.raises(UsageError, match="has not one private Ed25519 key with the label"):
        Pkcs11Signer(place, str(tmp_path), KEYS["authority"]().public_key())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (TokenPlace(Path("/no/such/module.so"), TOKEN, PIN), "cannot be loaded: see module of"),
        (TokenPlace(MODULE, "another", PIN), "has not one token 'another'"),
        (TokenPlace(MODULE, TOKEN, PIN), "has not one private P-256 key with the label 'nobody'"),
    ],
)
def test_a_module_token_or_key_that_is_not_there_is_one_sentence(
    security_module: SecurityModule, place: TokenPlace, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as told:
        Pkcs11Signer(place, "nobody", KEYS["ca"]().public_key())
    assert "\n" not in str(told.value)


def test_a_wrong_pin_is_one_sentence_that_does_not_tell_it(security_module: SecurityModule) -> None:
    """In a process of its own: in this one the token is open already."""
    program = (
        "from pathlib import Path\n"
        "from cryptography.hazmat.primitives.asymmetric import ec\n"
        "from umbel_server.ca.pkcs11 import Pkcs11Signer, TokenPlace\n"
        "public = ec.generate_private_key(ec.SECP256R1()).public_key()\n"
        f"place = TokenPlace(Path('{MODULE}'), '{TOKEN}', '0000-1111')\n"
        "assert '0000' not in repr(place)\n"
        "try:\n    Pkcs11Signer(place, 'ca', public)\n"
        "except Exception as exc:\n    print(type(exc).__name__, exc)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"UsageError The PIN is not that of token '{TOKEN}': correct it before")
    assert "0000-1111" not in said


def test_the_pin_comes_from_the_environment_a_file_or_a_program(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("12 34\n")
    by_file_, by_program = Ca(pin_file="pin"), Ca(pin_command=f'"{sys.executable}" -c "print(5678)"')
    assert read_pin(tmp_path, by_file_, {}) == "12 34"
    assert read_pin(tmp_path, by_program, {}) == "5678"
    assert read_pin(tmp_path, by_file_, {"UMBEL_CA_PIN": "9"}) == "9"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Ca(), "Nothing tells the token's PIN: set pin_file or pin_command"),
        (Ca(pin_file="nowhere"), "nowhere"),
        (Ca(pin_file="empty"), "is no PIN: it is empty"),
        (Ca(pin_file="lines"), "is no PIN"),
        (Ca(pin_file="binary"), "is no PIN: it is not text"),
        (Ca(pin_command="/no/such/program"), "cannot be run: No such file"),
        (Ca(pin_command=f'"{sys.executable}" -c "import sys; sys.exit(\'4321\')"'), "ended with 1"),
    ],
)
def test_a_pin_that_nobody_tells_is_one_sentence(tmp_path: Path, settings: Ca, said: str) -> None:
    for name, content in (("empty", b"\n"), ("lines", b"12\n34\n"), ("binary", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises((UsageError, StorageError, UnavailableError), match=said) as told:
        read_pin(tmp_path, settings, {})
    assert "4321" not in str(told.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"signer": "pkcs11", "module": "x.so"}, "no module or no token"),
        ({"signer": "pkcs11", "token": "x"}, "no module or no token"),
        ({"pin_file": "a", "pin_command": "b"}, "keep one of them"),
        ({"pin_command": "'"}, "pin_command of"),
        ({"module_keys": "authority ca"}, "module_keys of"),
    ],
)
def test_settings_that_leave_it_open_are_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Ca(**wrong)
