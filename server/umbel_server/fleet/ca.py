"""The fleet's certificate authority: short-lived identities for devices and its own servers."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from umbel_proto.errors import CertificateError, StorageError, UsageError
from umbel_proto.ids import DeviceId, FleetId, check_name

CA_LIFE_S = 10 * 365 * 86400
SERVER_LIFE_S = 90 * 86400
DEVICE_LIFE_S = 86400
BACKDATE_S = 300  # A device's clock may lag behind ours by this much and still accept what we issue.
MAX_CSR_BYTES = 4096
_SCHEME = "umbel://"


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The one certificate that every member of a fleet trusts, and its key.

    Args:
        fleet: The fleet whose devices it names.
        certificate: Its self-signed certificate.
    """

    fleet: FleetId
    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, fleet: FleetId, *, now_s: float) -> CertificateAuthority:
        """Make a new authority from the operating system's randomness, valid for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"umbel fleet {fleet}")])
        certificate = (
            _builder(name, name, key.public_key(), now_s, CA_LIFE_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(fleet, certificate, key)

    @classmethod
    def from_pem(cls, fleet: FleetId, certificate: bytes, key: bytes) -> CertificateAuthority:
        """Read what ``certificate_pem`` and ``key_pem`` gave.

        Raises:
            StorageError: Either file holds something else, or they do not belong together.
        """
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
            private = serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError) as exc:
            raise StorageError("The fleet's CA is damaged: restore its directory from a backup.") from exc
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != parsed.public_key():
            raise StorageError("The fleet's CA key is not its certificate's: restore it from a backup.")
        return cls(fleet, parsed, private)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate that devices pin, PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The certificate that tokens carry, DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS#8 PEM, for a file only its owner can read."""
        return private_pem(self._key)

    def issue_device(self, key: ec.EllipticCurvePublicKey, device: DeviceId, *, now_s: float) -> bytes:
        """Return a device's certificate, then the CA's, PEM; valid for 24 hours.

        The subject alternative name ``umbel://<fleet>/<device>`` is the identity; the subject is empty.
        """
        uri = x509.UniformResourceIdentifier(device_uri(self.fleet, device))
        return self._issue(key, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now_s, DEVICE_LIFE_S)

    def issue_server(self, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], *, now_s: float) -> bytes:
        """Return a server certificate for these DNS names and IP addresses, then the CA's, PEM."""
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        return self._issue(key, names, ExtendedKeyUsageOID.SERVER_AUTH, now_s, SERVER_LIFE_S)

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now_s: float,
        life_s: float,
    ) -> bytes:
        leaf = (
            _builder(x509.Name([]), self.certificate.subject, key, now_s, life_s)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return leaf.public_bytes(serialization.Encoding.PEM) + self.certificate_pem


def device_uri(fleet: FleetId, device: DeviceId) -> str:
    """Return the name under which a certificate knows a device."""
    return f"{_SCHEME}{fleet}/{device}"


def device_of(certificate: x509.Certificate, *, fleet: FleetId, now_s: float) -> DeviceId:
    """Return the device a certificate names; its chain was checked by TLS.

    Raises:
        CertificateError: It names no device of this fleet, or has run out since the connection was made.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as exc:
        raise CertificateError("The certificate names no device.") from exc
    prefix = f"{_SCHEME}{fleet}/"
    if len(uris) != 1 or not uris[0].startswith(prefix):
        raise CertificateError(f"The certificate names no device of fleet {fleet}.")
    if now_s >= certificate.not_valid_after_utc.timestamp():
        raise CertificateError("The certificate has expired: renew it before its 24 hours are over.")
    try:
        return DeviceId(check_name(uris[0].removeprefix(prefix), "device"))
    except UsageError as exc:
        raise CertificateError(f"The certificate names no device of fleet {fleet}.") from exc


def read_csr(der: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key that a PKCS#10 request asks to certify; nothing else in it is used.

    Raises:
        UsageError: Malformed, too long, not signed by its own key, or not P-256.
    """
    if len(der) > MAX_CSR_BYTES:
        raise UsageError(f"The certificate request has {len(der)} bytes, more than {MAX_CSR_BYTES}.")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as exc:
        raise UsageError("The certificate request is malformed.") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError("The certificate request is not for a P-256 key.")
    if not signed:
        raise UsageError("The certificate request is not signed by the key it is for.")
    return key


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a request to certify a key, DER; nothing else is in it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def generate_key() -> ec.EllipticCurvePrivateKey:
    """Make a new P-256 key from the operating system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as unencrypted PKCS#8 PEM, for a file only its owner can read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now_s: float, life_s: float
) -> x509.CertificateBuilder:
    moment = datetime.datetime.fromtimestamp(int(now_s), datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - datetime.timedelta(seconds=BACKDATE_S))
        .not_valid_after(moment + datetime.timedelta(seconds=life_s))
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
