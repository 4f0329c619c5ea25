"""``alerts.toml``: what can be written, and the sentence for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from umbel_proto.errors import StorageError, UsageError
from umbel_server.monitor.alerts.channels import Alertmanager, Mail, Webhook
from umbel_server.monitor.alerts.defaults import DEFAULT_TOML
from umbel_server.monitor.alerts.kinds import KINDS
from umbel_server.monitor.alerts.rules import Rules, parse_rules, read_rules
from umbel_server.monitor.alerts.secret import Secret
from umbel_server.monitor.alerts.state import Timing

PATH = Path("/fleet/alerts.toml")
WEBHOOK = '[[channel]]\nname = "ops"\nkind = "webhook"\nurl = "https://hooks.example.org/x"\n'
MAIL = (
    '[[channel]]\nname = "mail"\nkind = "email"\nhost = "mail.example.org"\nfrom = "umbel@example.org"\n'
    'to = ["ann@example.org"]\n'
)


def parse(text: str) -> Rules:
    return parse_rules(text, PATH)


def rule(*lines: str, what: str = "error_rate") -> str:
    return "\n".join(['[[rule]]\nname = "r"', f'what = "{what}"', *lines]) + "\n"


def test_the_default_rules_can_be_read_and_look_at_every_figure_but_those_that_need_a_choice() -> None:
    found = parse(DEFAULT_TOML)
    assert set(KINDS) - {each.what for each in found.rules.values()} == {"fairness_gap", "new_labels"}


def test_what_the_default_rules_show_in_comments_can_be_read_as_well() -> None:
    found = parse(re.sub(r"(?m)^# (\[\[|\w+ = )", r"\1", DEFAULT_TOML))
    assert set(found.channels) == {"ops", "mail", "alertmanager"}
    assert {"fairness", "enough-labels"} <= set(found.rules)


def test_a_rule_says_everything() -> None:
    text = WEBHOOK + rule(
        'model = "digits"',
        "version = 3",
        'tag = "west"',
        "threshold = 0.1",
        'for = "5m"',
        'clear = "1h"',
        'quiet = "2h"',
        'every = "5m"',
        'severity = "critical"',
        'runbook = "https://wiki.example.org/errors"',
        'actions = ["pause_rollout"]',
        'channels = ["ops"]',
    )
    found = parse(text).rules["r"]
    assert (found.model, found.version, found.tag, found.threshold) == ("digits", 3, "west", 0.1)
    assert found.timing == Timing(300.0, 3600.0, 7200.0)
    assert (found.every_s, found.severity, found.actions) == (300.0, "critical", ("pause_rollout",))


def test_a_rule_that_names_no_channel_tells_those_that_hear_of_its_severity() -> None:
    quiet, loud = rule().replace('"r"', '"quiet"'), rule('severity = "critical"')
    found = parse(WEBHOOK + MAIL + 'severities = ["critical"]\n' + quiet + loud)
    told = {name: [channel.name for channel in found.told(each)] for name, each in found.rules.items()}
    assert told == {"quiet": ["ops"], "r": ["ops", "mail"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[rule]", "alerts.toml is not TOML"),
        ("[other]", "'other' is nothing it has"),
        ("rule = 3", r"each rule as a table of its own, \[\[rule\]\]"),
        ("[[rule]]\nwhat = 'drift'", "A rule of alerts.toml has no name"),
        ("[[rule]]\nname = 'r'", "Rule r: what is missing"),
        (rule(what="luck"), "Rule r: what is 'luck': choose of devices_offline, "),
        (rule(what="latency_ms"), "Rule r: threshold is missing"),
        (rule("threshold = 2"), "Rule r: threshold is 2: choose 0 to 1"),
        (rule("threshold = nan"), "Rule r: threshold is nan"),
        (rule("threshold = true"), "Rule r: threshold must be a number"),
        (rule("treshold = 1"), "Rule r: treshold is not a field of a rule; there are name, what, "),
        (rule("for = 5"), "Rule r: for must be text"),
        (rule('for = "soon"'), "Rule r: for is no time: 'soon' is not a time: write 90m"),
        (rule('every = "0m"'), "Rule r: every is 0m: choose 1m or more"),
        (rule('window = "5m"'), "Rule r: window is 5m: choose 1h or more"),
        (rule('severity = "bad"'), "Rule r: severity is 'bad': choose of critical, warning, info"),
        (rule('channels = ["ops"]'), "Rule r: channels names 'ops'; there is no channel"),
        (rule('actions = ["explode"]'), "Rule r: actions has 'explode': choose of pause_rollout, "),
        (
            rule('actions = ["propose_run"]'),
            "Rule r: plan and an action propose_run or start_run go together",
        ),
        (rule('plan = "p.toml"'), "Rule r: plan and an action"),
        (rule('actions = ["roll_back"]', what="opener_lag"), "Rule r: actions is of a model's figures"),
        (
            rule('model = "digits"', what="opener_lag"),
            "Rule r: model, version or tag says nothing of opener_lag",
        ),
        (
            rule("version = 3", what="candidate_errors"),
            "Rule r: version or tag says nothing of candidate_errors",
        ),
        (rule("version = 0"), "Rule r: version is a number from 1"),
        (rule('model = "../x"'), "Rule r: model is no name"),
        (rule(what="fairness_gap"), "Rule r: label is the label that rates are of"),
        (
            rule("threshold = 9", "percentile = 95", what="latency_ms"),
            "Rule r: percentile of latency_ms is 95",
        ),
        (rule() + rule(), "There are two rules r"),
        (WEBHOOK + WEBHOOK, "There are two channels ops"),
        (WEBHOOK.replace("https", "http"), "Channel ops: url must begin with https://"),
        (WEBHOOK.replace("https://", "https://ann:secret@"), "Channel ops: url holds a user or password"),
        (WEBHOOK + 'url_file = "x"\n', "Channel ops: url or, if it is a secret itself, url_file"),
        (WEBHOOK + 'secret = "hush"\n', "Channel ops: secret is not a field of a channel"),
        (WEBHOOK + 'secret_file = "x"\nsecret_env = "Y"\n', "Channel ops: secret_file secret_env and"),
        (WEBHOOK + 'secret_command = "a \'b"\n', "Channel ops: secret_command has an open quote"),
        (WEBHOOK + 'severities = ["loud"]\n', "Channel ops: severities has 'loud'"),
        (MAIL.replace("ann@example.org", "ann"), "Channel mail: to has 'ann', which is no address"),
        (MAIL + 'tls = "none"\n', "Channel mail: tls is 'none': choose of starttls, implicit"),
        (MAIL + 'user = "umbel"\n', "Channel mail: user and password_file"),
        (MAIL + "port = 0\n", "Channel mail: port is 0"),
        ('[[channel]]\nname = "c"\nkind = "pigeon"', "Channel c: kind is 'pigeon': choose of webhook, email"),
        (
            '[[channel]]\nname = "a"\nkind = "alertmanager"\nurl = "http://10.0.0.1:9093"',
            "Channel a: url must begin with https://, or http:// on this machine",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_names_rule_and_field(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "secret@" not in str(caught.value)


def test_channels_of_each_kind() -> None:
    text = WEBHOOK + 'secret_env = "HOOK"\n' + MAIL + 'tls = "implicit"\nremind = "4h"\n'
    text += '[[channel]]\nname = "am"\nkind = "alertmanager"\nurl = "http://127.0.0.1:9093"\n'
    found = parse(text).channels
    assert found["ops"] == Webhook("ops", "https://hooks.example.org/x", None, Secret(environment="HOOK"))
    mail, manager = found["mail"], found["am"]
    assert isinstance(mail, Mail)
    assert (mail.port, mail.tls, mail.remind_s) == (465, "implicit", 14400.0)
    assert isinstance(manager, Alertmanager)
    assert manager.remind_s == 300.0  # It forgets what it does not hear of.


def test_without_a_file_there_are_no_rules(tmp_path: Path) -> None:
    assert read_rules(tmp_path / "alerts.toml").rules == {}


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "alerts.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError, match="see that the file is text"):
        read_rules(tmp_path / "alerts.toml")


def test_a_secret_comes_from_a_file_the_environment_or_a_program(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("from a file\n")
    assert Secret(file="s").read(tmp_path, {}) == "from a file"
    assert Secret(environment="S").read(tmp_path, {"S": "from around"}) == "from around"
    assert Secret(command=("printf", "from a program")).read(tmp_path, {}) == "from a program"
    for missing in (Secret(file="none"), Secret(environment="NONE"), Secret(command=("true",))):
        with pytest.raises(StorageError):
            missing.read(tmp_path, {})
