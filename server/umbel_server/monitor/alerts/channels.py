"""Channels: where people hear of alerts, as ``alerts.toml`` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from umbel_proto.errors import UsageError
from umbel_server.learning.schedule import parse_duration
from umbel_server.monitor.alerts.fields import Fields
from umbel_server.monitor.alerts.secret import Secret, read_secret

ALL = ("critical", "warning", "info")
KINDS = ("webhook", "email", "alertmanager")
RESEND_S = 300.0
"""How often Alertmanager is told of what still fires: it forgets what it does not hear of."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
Tls = Literal["starttls", "implicit"]


@dataclass(frozen=True, slots=True)
class Webhook:
    """A program of yours that takes JSON.

    Args:
        name: Its name.
        url: Its https URL; empty: ``url_in`` has it.
        url_in: Where its URL is, if that is a secret itself.
        secret: What bodies are signed with; None: they are not.
        ca_file: Certificates that its own is checked against; empty: the system's.
        severities: Of which severities it hears where rules do not name channels.
        remind_s: How often it hears of what still fires; 0: once.
    """

    name: str
    url: str
    url_in: Secret | None
    secret: Secret | None
    ca_file: str = ""
    severities: tuple[str, ...] = ALL
    remind_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Mail:
    """People's mail.

    Args:
        name: Its name.
        host: The mail server.
        port: Its port.
        tls: ``starttls`` or ``implicit``: there is no mail in the clear.
        sender: Who it is from.
        to: Whom it goes to.
        user: The account there; empty: none is asked for.
        password: Its password.
        ca_file: As of a webhook.
        severities: As of a webhook.
        remind_s: As of a webhook.
    """

    name: str
    host: str
    port: int
    tls: Tls
    sender: str
    to: tuple[str, ...]
    user: str = ""
    password: Secret | None = None
    ca_file: str = ""
    severities: tuple[str, ...] = ALL
    remind_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """A Prometheus Alertmanager, by its API v2.

    Args:
        name: Its name.
        url: Its URL, without ``/api/v2``: https, or http on this machine.
        token: A bearer token; None: it asks for none.
        ca_file: As of a webhook.
        severities: As of a webhook.
        remind_s: How often it hears of what still fires.
    """

    name: str
    url: str
    token: Secret | None = None
    ca_file: str = ""
    severities: tuple[str, ...] = ALL
    remind_s: float = RESEND_S


Channel: TypeAlias = Webhook | Mail | Alertmanager


def kind_of(channel: Channel) -> str:
    """Return what kind a channel is of, as ``alerts.toml`` has it."""
    return {Webhook: "webhook", Mail: "email", Alertmanager: "alertmanager"}[type(channel)]


def read_channel(fields: Fields) -> Channel:
    """Return the channel of a table.

    Raises:
        UsageError: A field is missing, unknown, of the wrong type or out of range; the sentence names it.
    """
    kind = fields.one_of("kind", KINDS)
    ca_file = fields.text("ca_file", "")
    severities = fields.texts("severities", ALL) or ()
    for severity in severities:
        if severity not in ALL:
            raise fields.error("severities", f"has {severity[:40]!r}: choose of {', '.join(ALL)}")
    remind_s = _remind_s(fields, RESEND_S if kind == "alertmanager" else 0.0)
    channel: Channel
    if kind == "webhook":
        channel = _webhook(fields, ca_file, severities, remind_s)
    elif kind == "email":
        channel = _mail(fields, ca_file, severities, remind_s)
    else:
        url = _url(fields, "url", loopback=True)
        channel = Alertmanager(
            fields.name, url, read_secret(fields, "token"), ca_file, severities, remind_s or RESEND_S
        )
    fields.finish()
    return channel


def _webhook(fields: Fields, ca_file: str, severities: tuple[str, ...], remind_s: float) -> Webhook:
    url_in = read_secret(fields, "url")
    if (url_in is None) != ("url" in fields):
        raise fields.error("url", "or, if it is a secret itself, url_file: give one of them")
    url = _url(fields, "url") if url_in is None else ""
    return Webhook(fields.name, url, url_in, read_secret(fields, "secret"), ca_file, severities, remind_s)


def _mail(fields: Fields, ca_file: str, severities: tuple[str, ...], remind_s: float) -> Mail:
    tls: Tls = (
        "implicit" if fields.one_of("tls", ("starttls", "implicit"), "starttls") == "implicit" else "starttls"
    )
    port = int(fields.number("port", 465 if tls == "implicit" else 587, between=(1, 65535)))
    sender, to = fields.text("from"), fields.texts("to", ()) or ()
    if not to:
        raise fields.error("to", 'is missing: write  to = ["ops@example.org"]')
    for name, address in (("from", sender), *(("to", each) for each in to)):
        if "@" not in address or not address.isprintable() or " " in address or "," in address:
            raise fields.error(name, f"has {address[:60]!r}, which is no address: write  name@example.org")
    user, password = fields.text("user", ""), read_secret(fields, "password")
    if bool(user) != (password is not None):
        raise fields.error("user", "and password_file, password_env or password_command go together")
    return Mail(
        fields.name,
        fields.text("host"),
        port,
        tls,
        sender,
        tuple(to),
        user,
        password,
        ca_file,
        severities,
        remind_s,
    )


def check_url(url: str, *, loopback: bool = False) -> str:
    """Return what is wrong with a URL; empty: nothing. The URL may be a secret, and is not told."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if not host or port == 0:
        return "is no URL: write  https://HOST/PATH"
    if parts.username is not None or parts.password is not None:
        return "holds a user or password: put those into a file"
    if parts.scheme == "https" or (loopback and parts.scheme == "http" and host in _LOOPBACK):
        return ""
    return "must begin with https://" + (", or http:// on this machine" if loopback else "")


def _url(fields: Fields, name: str, *, loopback: bool = False) -> str:
    url = fields.text(name)
    if wrong := check_url(url, loopback=loopback):
        raise fields.error(name, wrong)
    return url


def _remind_s(fields: Fields, default_s: float) -> float:
    text = fields.text("remind", "")
    if not text:
        return default_s
    try:
        return parse_duration(text)
    except UsageError as exc:
        raise fields.error("remind", f"is no time: {exc}".rstrip(".")) from exc
