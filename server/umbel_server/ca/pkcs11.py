"""Keys in a security module, used from this process through PKCS#11.

The one file that imports python-pkcs11 (extra ``pkcs11``).

Source: OASIS PKCS #11 v3.0, sections 2.3.6 (CKM_ECDSA: the hash in, r and s out) and 2.3.14 (CKM_EDDSA: without
parameters it is Ed25519 of RFC 8032).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import KeyType, Mechanism, ObjectClass, Session
from pkcs11 import exceptions as failures
from pkcs11.types import SignMixin

from umbel_proto.errors import UnavailableError, UsageError
from umbel_server.ca.signer import PublicKey, check_signature

_PROBE = b"umbel: is this the fleet's key?"
"""No certificate, credential or policy begins so."""
_CONVERSATION = threading.Lock()
"""A module is told at its start that one thread calls it at a time, so that it need not bring locks of its own."""
_GONE = (
    failures.SessionClosed,
    failures.SessionHandleInvalid,
    failures.KeyHandleInvalid,
    failures.ObjectHandleInvalid,
    failures.UserNotLoggedIn,
    failures.DeviceRemoved,
    failures.TokenNotPresent,
)
"""What a module says that was restarted, or whose token was away: a new session may do."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """A token, and how it is entered.

    Args:
        module: The module's library.
        token: The token's label.
        pin: The user's PIN.
    """

    module: Path
    token: str
    pin: str = field(repr=False)


class Pkcs11Signer:
    """A key of a token, found by its label.

    Each signature is verified before it leaves, and one is made at once: a mix-up of keys is known when the
    authority starts.

    Args:
        place: The token.
        label: The private key's label; its kind is that of ``public``.
        public: The key that it must be.

    Raises:
        UsageError: The module, the token or the key is not there, the PIN is wrong, or the key is another.
        UnavailableError: The module does not sign.
    """

    def __init__(self, place: TokenPlace, label: str, public: PublicKey) -> None:
        self._place, self._label, self.public = place, label, public
        with _CONVERSATION:
            self._key = self._find()
        self.sign(_PROBE)

    def sign(self, data: bytes) -> bytes:
        """Return the signature over ``data``."""
        with _CONVERSATION:
            try:
                signature = self._sign(data)
            except _GONE as exc:
                log.info("the security module is entered again: %s", type(exc).__name__)
                self._key = self._find()
                signature = self._sign(data)
        try:
            check_signature(self.public, signature, data)
        except InvalidSignature as exc:
            raise UsageError(
                f"The key {self._label!r} of token {self._place.token!r} is not the fleet's: "
                "see which one was imported under this label."
            ) from exc
        return signature

    def _sign(self, data: bytes) -> bytes:
        """Return what the module answers; the caller converses with it alone."""
        try:
            if isinstance(self.public, ec.EllipticCurvePublicKey):
                raw = self._key.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA)
                half = len(raw) // 2
                return encode_dss_signature(
                    int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
                )
            return self._key.sign(data, mechanism=Mechanism.EDDSA)
        except _GONE:
            raise
        except (failures.MechanismInvalid, failures.MechanismParamInvalid) as exc:
            raise UsageError(
                f"The module {self._place.module} does not sign with {self._label!r}: it lacks the mechanism. "
                "Name the keys that it can have in module_keys of [ca]."
            ) from exc
        except pkcs11.PKCS11Error as exc:
            raise self._failed(exc) from exc

    def _find(self) -> SignMixin:
        """Return the key, in a session in which it may be used; the caller converses with the module alone."""
        place = self._place
        kind = KeyType.EC if isinstance(self.public, ec.EllipticCurvePublicKey) else KeyType.EC_EDWARDS
        try:
            module = pkcs11.lib(str(place.module))
        except RuntimeError as exc:
            raise UsageError(
                f"The PKCS#11 module {place.module} cannot be loaded: see module of [ca] in fleet.toml."
            ) from exc
        try:
            key = self._enter(module.get_token(token_label=place.token)).get_key(
                label=self._label, object_class=ObjectClass.PRIVATE_KEY, key_type=kind
            )
        except (failures.NoSuchToken, failures.MultipleTokensReturned) as exc:
            raise UsageError(f"The module {place.module} has not one token {place.token!r}.") from exc
        except (failures.NoSuchKey, failures.MultipleObjectsReturned) as exc:
            curve = "P-256" if kind is KeyType.EC else "Ed25519"
            raise UsageError(
                f"Token {place.token!r} has not one private {curve} key with the label {self._label!r}."
            ) from exc
        except (failures.PinIncorrect, failures.PinInvalid, failures.PinLenRange) as exc:
            raise UsageError(
                f"The PIN is not that of token {place.token!r}: correct it before you start again, as tokens lock "
                "themselves after a few."
            ) from exc
        except pkcs11.PKCS11Error as exc:
            raise self._failed(exc) from exc
        if not isinstance(key, SignMixin):
            raise UsageError(
                f"Token {place.token!r} does not let its key {self._label!r} sign: import it for signing."
            )
        return key

    def _enter(self, token: pkcs11.Token) -> Session:
        try:
            return token.open(user_pin=self._place.pin)
        except failures.UserAlreadyLoggedIn:
            return token.open()  # Who entered for the other key, entered for the whole process.

    def _failed(self, exc: pkcs11.PKCS11Error) -> UnavailableError:
        words = " ".join(str(exc).split())
        reason = type(exc).__name__ + (f", {words}" if words else "")
        return UnavailableError(f"The security module {self._place.module} failed: {reason}.")
