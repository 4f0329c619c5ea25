"""Send a notice through a channel: HTTPS with a signed body, mail with TLS, or Alertmanager's API v2."""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx

from umbel_proto.errors import StorageError, UmbelError, UnavailableError, UsageError
from umbel_server.monitor.alerts.channels import Alertmanager, Channel, Mail, Webhook, check_url
from umbel_server.monitor.alerts.secret import fits_header

PATIENCE_S = 10.0
MAX_ANSWER = 64 * 1024
SIGNATURE = "Umbel-Signature"
"""Header: ``t=UNIX,v1=HEX``, HMAC-SHA256 of ``UNIX.BODY``."""
DELIVERY = "Umbel-Delivery"
"""Header: the notice's number. The same number twice is the same notice."""


class Sender:
    """Sends notices.

    Args:
        directory: Where files that channels name are relative to.
        environment: Environment variables, for secrets.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = environment

    def send(self, channel: Channel, number: int, body: Mapping[str, Any], *, now_s: float) -> None:
        """Send a notice; it has arrived when this returns.

        Args:
            channel: Where to.
            number: The notice's number.
            body: What it says.
            now_s: The time, Unix seconds.

        Raises:
            UnavailableError: The receiver does not answer, or refuses.
            StorageError: A secret or certificate cannot be read.
            UsageError: A URL or a secret in a file cannot be used.
        """
        match channel:
            case Webhook():
                self._webhook(channel, number, body, now_s)
            case Mail():
                self._mail(channel, number, body, now_s)
            case Alertmanager():
                self._alertmanager(channel, number, body, now_s)

    def _webhook(self, channel: Webhook, number: int, body: Mapping[str, Any], now_s: float) -> None:
        url = channel.url
        if channel.url_in is not None:
            url = channel.url_in.read(self._directory, self._environment)
            if wrong := check_url(url):
                raise UsageError(f"Channel {channel.name}: the URL in its file {wrong}.")
        data = json.dumps({"id": number, **body}, ensure_ascii=False, allow_nan=False).encode()
        headers = {DELIVERY: str(number)}
        if channel.secret is not None:
            secret = channel.secret.read(self._directory, self._environment)
            headers[SIGNATURE] = signature(secret.encode(), data, at_s=int(now_s))
        self._post(channel.name, url, data, headers, channel.ca_file)

    def _alertmanager(
        self, channel: Alertmanager, number: int, body: Mapping[str, Any], now_s: float
    ) -> None:
        headers = {DELIVERY: str(number)}
        if channel.token is not None:
            token = channel.token.read(self._directory, self._environment)
            if not fits_header(token):
                raise UsageError(f"Channel {channel.name}: its token is not one line of visible ASCII.")
            headers["Authorization"] = f"Bearer {token}"
        told = postable(body, until_s=now_s + 3 * channel.remind_s)
        data = json.dumps(told, ensure_ascii=False).encode()
        self._post(channel.name, channel.url.rstrip("/") + "/api/v2/alerts", data, headers, channel.ca_file)

    def _post(self, name: str, url: str, data: bytes, headers: Mapping[str, str], ca_file: str) -> None:
        # The environment's proxies would see what is told; and a URL may be a secret, so no sentence has it.
        client = httpx.Client(
            verify=self._trust(name, ca_file), timeout=PATIENCE_S, follow_redirects=False, trust_env=False
        )
        try:
            with (
                client,
                client.stream(
                    "POST", url, content=data, headers={"Content-Type": "application/json", **headers}
                ) as answer,
            ):
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise UnavailableError(f"Channel {name} does not answer: {cause(exc)}.") from None
        if not 200 <= status < 300:
            raise UnavailableError(f"Channel {name} answers with {status}: see its own log.")

    def _mail(self, channel: Mail, number: int, body: Mapping[str, Any], now_s: float) -> None:
        message = letter(channel, number, body, now_s=now_s)
        trust = self._trust(channel.name, channel.ca_file)
        password = (
            "" if channel.password is None else channel.password.read(self._directory, self._environment)
        )
        if not password.isascii():
            raise UsageError(f"Channel {channel.name}: its password is not ASCII, which mail servers take.")
        try:
            if channel.tls == "implicit":
                server: smtplib.SMTP = smtplib.SMTP_SSL(
                    channel.host, channel.port, timeout=PATIENCE_S, context=trust
                )
            else:
                server = smtplib.SMTP(channel.host, channel.port, timeout=PATIENCE_S)
            with server:
                if channel.tls == "starttls":
                    server.starttls(context=trust)
                if channel.user:
                    server.login(channel.user, password)
                server.send_message(message)
        except smtplib.SMTPAuthenticationError:
            raise UnavailableError(f"Channel {channel.name}: {channel.host} refuses its password.") from None
        except (smtplib.SMTPException, OSError) as exc:
            raise UnavailableError(f"Channel {channel.name} cannot send mail: {cause(exc)}.") from exc

    def _trust(self, name: str, ca_file: str) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=str(self._directory / ca_file) if ca_file else None)
        except (OSError, ssl.SSLError) as exc:
            raise StorageError(f"Channel {name}: its ca_file {ca_file} cannot be read.") from exc


def signature(secret: bytes, body: bytes, *, at_s: int) -> str:
    """Return the header that says that a body is from this fleet, and of when.

    Args:
        secret: What sender and receiver share.
        body: The bytes that are sent.
        at_s: When, Unix seconds: a receiver refuses what is old, so that nobody sends it again.
    """
    mac = hmac.new(secret, b"%d." % at_s + body, hashlib.sha256)
    return f"t={at_s},v1={mac.hexdigest()}"


def postable(body: Mapping[str, Any], *, until_s: float) -> list[dict[str, Any]]:
    """Return a notice as Alertmanager's API v2 takes it: a list of ``postableAlert``.

    Args:
        body: The notice.
        until_s: When it may forget what still fires, unless it hears of it again.
    """
    resolved = body["kind"] == "resolved"
    return [
        {
            "labels": {
                "alertname": body["rule"],
                "severity": body["severity"],
                "fleet": body["fleet"],
                **{name: str(value) for name, value in alert["labels"].items()},
            },
            "annotations": {
                "summary": alert["why"],
                **({"runbook_url": body["runbook"]} if body["runbook"] else {}),
            },
            "startsAt": _utc(alert["since_s"]),
            "endsAt": _utc(alert["ended_s"] if resolved else until_s),
        }
        for alert in body["alerts"]
    ]


def letter(channel: Mail, number: int, body: Mapping[str, Any], *, now_s: float) -> EmailMessage:
    """Return a notice as mail: plain text, one subject for all of a rule."""
    message = EmailMessage()
    count = len(body["alerts"]) + body["more"]
    of = f" ({count})" if count > 1 else ""
    message["Subject"] = f"[{body['fleet']}] {body['kind']}: {body['rule']}{of}, {body['severity']}"
    message["From"], message["To"] = channel.sender, ", ".join(channel.to)
    message["Date"] = format_datetime(datetime.fromtimestamp(now_s, UTC))
    message["Message-ID"] = f"<alert-{number}@{body['fleet']}.umbel.invalid>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text_of(body))
    return message


def text_of(body: Mapping[str, Any]) -> str:
    """Return a notice as text."""
    lines = []
    for alert in body["alerts"]:
        about = ", ".join(f"{name} {value}" for name, value in alert["labels"].items())
        lines.append(f"{about or 'the fleet'}: {alert['why']}")
        lines.append(f"  since {_utc(alert['since_s'])};  umbel alert show {alert['fingerprint']}")
    if body["more"]:
        lines.append(f"and {body['more']} more:  umbel alert list --rule {body['rule']}")
    if body["runbook"]:
        lines += ["", f"What to do: {body['runbook']}"]
    return "\n".join(lines) + "\n"


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def cause(exc: BaseException) -> str:
    """Return why, without what was asked for: httpx names the host, and never the path."""
    text = " ".join(str(exc).split())[:200].rstrip(".")
    return text or type(exc).__name__


def sentence(exc: UmbelError) -> str:
    """Return a failure as it is kept."""
    return " ".join(str(exc).split())[:500]
