"""Notices on their way: real HTTPS with a signed body, real mail with TLS, and what happens where it fails."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alert_receivers import PASSWORD, USER, Mailbox, Received, https_receiver, mail_server
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import UnavailableError, UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.channels import Alertmanager, Channel, Mail, Webhook
from umbel_server.monitor.alerts.command import app
from umbel_server.monitor.alerts.deliver import FIRST_AGAIN_S, GIVE_UP_S, HOLD_S, Deliverer, again_in_s
from umbel_server.monitor.alerts.evaluate import rules_path
from umbel_server.monitor.alerts.rules import Rules
from umbel_server.monitor.alerts.secret import Secret
from umbel_server.monitor.alerts.send import DELIVERY, SIGNATURE, Sender
from umbel_server.store.notices import enqueue
from umbel_server.store.store import Store, open_store

NOW_S = 1_800_000_000.0
SECRET = "between us"
BODY: dict[str, Any] = {
    "version": 1,
    "fleet": "garden",
    "kind": "firing",
    "rule": "errors",
    "severity": "critical",
    "runbook": "https://wiki.example.org/errors",
    "alerts": [
        {
            "fingerprint": "9f" * 16,
            "labels": {"model": "digits", "version": "3"},
            "state": "firing",
            "since_s": NOW_S - 60,
            "ended_s": None,
            "value": 0.12,
            "why": "12 % of 1,000 inputs failed\r\nBcc: eve@example.org",
        }
    ],
    "more": 2,
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    made = make_fleet(tmp_path_factory.mktemp("channels"))
    (made.path / "keys" / "ops.secret").write_text(SECRET)
    (made.path / "keys" / "mail.password").write_text(PASSWORD)
    return made


@pytest.fixture
def received(fleet: FleetDir) -> Iterator[Received]:
    with https_receiver(fleet) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=ManualClock(NOW_S)) as opened:
        yield opened


def webhook(received: Received, **other: Any) -> Webhook:
    return Webhook("ops", received.url + "/hook", None, Secret(file="keys/ops.secret"), "ca/ca.pem", **other)


def mail(mailbox: Mailbox, **other: Any) -> Mail:
    told = {
        "tls": "starttls",
        "user": USER,
        "password": Secret(file="keys/mail.password"),
        "ca_file": "ca/ca.pem",
        **other,
    }
    to = ("ann@example.org", "bob@example.org")
    return Mail("mail", "localhost", mailbox.port, sender="umbel@example.org", to=to, **told)


def send(fleet: FleetDir, channel: Channel, body: dict[str, Any] = BODY) -> None:
    Sender(fleet.path, {}).send(channel, 7, body, now_s=NOW_S)


def test_a_webhook_gets_json_that_is_signed_with_its_time(fleet: FleetDir, received: Received) -> None:
    send(fleet, webhook(received))
    (path, headers, body), *others = received.requests
    assert others == []
    assert (path, headers[DELIVERY], headers["Content-Type"]) == ("/hook", "7", "application/json")
    assert json.loads(body) == {"id": 7, **BODY}
    # As docs/how-to/be-alerted.md shows it.
    at, mac = (part.split("=", 1)[1] for part in headers[SIGNATURE].split(","))
    expected = hmac.new(SECRET.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert (mac, int(at)) == (expected, NOW_S)


def test_a_receiver_with_another_certificate_gets_nothing(fleet: FleetDir, received: Received) -> None:
    with pytest.raises(UnavailableError, match=r"Channel ops does not answer: .*certificate"):
        send(fleet, replace(webhook(received), ca_file=""))
    assert received.requests == []


@pytest.mark.parametrize("status", [301, 307, 404, 500])
def test_whatever_is_no_success_is_a_failure_and_nobody_is_sent_elsewhere(
    fleet: FleetDir, received: Received, status: int
) -> None:
    received.answers = [status]
    with pytest.raises(UnavailableError, match=f"Channel ops answers with {status}"):
        send(fleet, webhook(received))
    assert len(received.requests) == 1


def test_an_url_that_is_a_secret_is_in_no_sentence(fleet: FleetDir) -> None:
    (fleet.path / "keys" / "url").write_text("https://127.0.0.1:1/T0KEN")
    channel = Webhook("ops", "", Secret(file="keys/url"), None, "ca/ca.pem")
    with pytest.raises(UnavailableError) as caught:
        send(fleet, channel)
    assert "T0KEN" not in str(caught.value)


@pytest.mark.parametrize("token", ["T0KEN\nmore", "T0KEN\x00", "T0KEN\u00f6"])
def test_a_token_that_no_header_takes_is_in_no_sentence(
    fleet: FleetDir, received: Received, token: str
) -> None:
    (fleet.path / "keys" / "token").write_text(token, "utf-8")
    channel = Alertmanager("am", received.url, Secret(file="keys/token"), "ca/ca.pem")
    with pytest.raises(UsageError, match="Channel am: its token is not one line") as caught:
        send(fleet, channel)
    assert "T0KEN" not in str(caught.value)
    assert received.requests == []


def test_a_password_that_mail_servers_do_not_take_is_in_no_sentence(fleet: FleetDir) -> None:
    (fleet.path / "keys" / "odd").write_text("h\u00fcsh", "utf-8")
    with mail_server(fleet) as mailbox:
        with pytest.raises(UsageError, match="Channel mail: its password is not ASCII") as caught:
            send(fleet, mail(mailbox, password=Secret(file="keys/odd")))
        assert "h\u00fcsh" not in str(caught.value)
    assert mailbox.messages == []


def test_alertmanager_gets_postable_alerts_and_when_to_forget_them(
    fleet: FleetDir, received: Received
) -> None:
    channel = Alertmanager("am", received.url, Secret(file="keys/ops.secret"), "ca/ca.pem")
    send(fleet, channel)
    ended = {**BODY["alerts"][0], "state": "resolved", "ended_s": NOW_S}
    send(fleet, channel, {**BODY, "kind": "resolved", "alerts": [ended]})
    (path, headers, first), (_, _, second) = received.requests
    assert (path, headers["Authorization"]) == ("/api/v2/alerts", f"Bearer {SECRET}")
    (alert,) = json.loads(first)
    assert alert["labels"] == {
        "alertname": "errors",
        "severity": "critical",
        "fleet": "garden",
        "model": "digits",
        "version": "3",
    }
    assert alert["annotations"]["runbook_url"] == BODY["runbook"]
    assert (alert["startsAt"], alert["endsAt"]) == ("2027-01-15T07:59:00.000Z", "2027-01-15T08:15:00.000Z")
    assert json.loads(second)[0]["endsAt"] == "2027-01-15T08:00:00.000Z"


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_mail_goes_over_tls_from_who_signed_in(fleet: FleetDir, tls: str) -> None:
    with mail_server(fleet, implicit=tls == "implicit") as mailbox:
        send(fleet, mail(mailbox, tls=tls))
    ((sender, to, message),) = mailbox.messages
    assert (mailbox.secure, mailbox.signed_in) == ([True], [USER])
    assert (sender, to) == ("umbel@example.org", ["ann@example.org", "bob@example.org"])
    assert message["Subject"] == "[garden] firing: errors (3), critical"
    assert "Bcc" not in message
    text = message.get_content()
    assert "model digits, version 3: 12 % of 1,000 inputs failed" in text
    assert "and 2 more:  umbel alert list --rule errors" in text
    assert "What to do: https://wiki.example.org/errors" in text


def test_a_mail_server_with_another_certificate_or_that_refuses_gets_no_mail(fleet: FleetDir) -> None:
    with mail_server(fleet) as mailbox:
        with pytest.raises(UnavailableError, match=r"Channel mail cannot send mail: .*certificate"):
            send(fleet, mail(mailbox, ca_file=""))
        with pytest.raises(UnavailableError, match="localhost refuses its password"):
            send(fleet, mail(mailbox, user="eve"))
    assert mailbox.messages == []


def deliverer(store: Store, fleet: FleetDir, *channels: Channel) -> Deliverer:
    rules = Rules({}, {channel.name: channel for channel in channels}, fleet.path)
    return Deliverer(store.notices, lambda: rules, Sender(fleet.path, {}), store.clock)


def put(store: Store, channel: str = "ops") -> None:
    with store.database.write() as connection:
        enqueue(connection, channel, "errors", "firing", BODY, store.clock())


def test_what_does_not_arrive_is_tried_again_with_the_same_number(
    store: Store, fleet: FleetDir, received: Received
) -> None:
    clock = store.clock
    assert isinstance(clock, ManualClock)
    sender = deliverer(store, fleet, webhook(received))
    received.answers = [500, 503]
    put(store)
    assert sender.run_once() == 0
    assert sender.run_once() == 0  # It is not due yet.
    clock.advance(FIRST_AGAIN_S)
    assert sender.run_once() == 0
    clock.advance(2 * FIRST_AGAIN_S)
    assert sender.run_once() == 1
    assert [headers[DELIVERY] for _, headers, _ in received.requests] == ["1", "1", "1"]
    (notice,) = store.notices.recent()
    assert (notice.state, notice.tries) == ("sent", 3)


def test_a_service_killed_after_a_receiver_took_a_notice_sends_it_again(
    store: Store, fleet: FleetDir, received: Received
) -> None:
    clock = store.clock
    assert isinstance(clock, ManualClock)
    put(store)
    taken = store.notices.take(hold_s=HOLD_S)
    assert taken is not None
    Sender(fleet.path, {}).send(webhook(received), taken.id, taken.body, now_s=NOW_S)  # And killed here.
    sender = deliverer(store, fleet, webhook(received))
    assert sender.run_once() == 0
    clock.advance(HOLD_S)
    assert sender.run_once() == 1
    assert [headers[DELIVERY] for _, headers, _ in received.requests] == ["1", "1"]


def test_a_channel_that_does_not_answer_keeps_no_other_one_from_hearing(
    store: Store, fleet: FleetDir, received: Received
) -> None:
    dead = Webhook("dead", "https://127.0.0.1:1/", None, None, "ca/ca.pem")
    put(store, "dead")
    put(store)
    assert deliverer(store, fleet, dead, webhook(received)).run_once() == 1
    assert len(received.requests) == 1


def test_what_could_not_be_told_for_two_days_or_to_nobody_is_given_up_and_says_why(
    store: Store, fleet: FleetDir, received: Received
) -> None:
    clock = store.clock
    assert isinstance(clock, ManualClock)
    put(store)
    put(store, "gone")
    received.answers = [500]
    clock.advance(GIVE_UP_S)
    deliverer(store, fleet, webhook(received)).run_once()
    said = {each.channel: (each.state, each.said) for each in store.notices.recent()}
    assert said == {
        "ops": ("given-up", "Channel ops answers with 500: see its own log."),
        "gone": ("given-up", "there is no channel gone any more"),
    }


def test_it_waits_twice_as_long_each_time_to_an_hour() -> None:
    assert [again_in_s(tries) for tries in (1, 2, 3, 9, 500)] == [15.0, 30.0, 60.0, 3600.0, 3600.0]


def test_a_channel_is_tried_by_hand(fleet: FleetDir, received: Received) -> None:
    rules_path(fleet).write_text(
        f'[[channel]]\nname = "ops"\nkind = "webhook"\nurl = "{received.url}/hook"\nca_file = "ca/ca.pem"\n'
    )
    ran = CliRunner().invoke(app, ["test", "ops", "--fleet", str(fleet.path)])
    assert (ran.exit_code, ran.output) == (0, "Channel ops took it.\n")
    assert json.loads(received.requests[0][2])["kind"] == "test"
