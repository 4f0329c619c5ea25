"""When a device trains: files as Linux writes them, the rules of its owner, and the sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from umbel._commands.run import ask_first
from umbel._data.consent import Consent
from umbel._home.directory import DeviceHome
from umbel._rounds.conditions import IDLE_LOAD, Conditions, NotNowError, Rules
from umbel._rounds.probes import LoadProbe, NetworkProbe, PowerProbe, Probe, Reading, linux_probes, read_all
from umbel_proto.errors import StorageError, UsageError

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
{0}\t00000000\t0102A8C0\t0003\t0\t0\t{1}\t00000000\t0\t0\t0
{0}\t0002A8C0\t00000000\t0001\t0\t0\t{1}\t00FFFFFF\t0\t0\t0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home = DeviceHome(tmp_path / "home")
    home.make()
    return home


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def battery(status: str = "Discharging", capacity: str = "35", **other: str) -> dict[str, str]:
    facts = {"type": "Battery", "status": status, "capacity": capacity} | other
    return {f"sys/class/power_supply/BAT0/{name}": f"{value}\n" for name, value in facts.items()}


def mains(online: str, name: str = "AC") -> dict[str, str]:
    return {
        f"sys/class/power_supply/{name}/type": "Mains\n",
        f"sys/class/power_supply/{name}/online": f"{online}\n",
    }


@pytest.mark.parametrize(
    ("files", "reading"),
    [
        ({}, Reading()),
        ({"sys/class/power_supply/.keep": ""}, Reading(charging=True, battery=1.0)),
        (mains("1"), Reading(charging=True, battery=1.0)),
        (battery(), Reading(charging=False, battery=0.35)),
        (battery() | mains("0"), Reading(charging=False, battery=0.35)),
        (battery("Not charging", "80") | mains("1"), Reading(charging=True, battery=0.8)),
        (battery("Charging", "5"), Reading(charging=True, battery=0.05)),
        (battery("Full", "100"), Reading(charging=True, battery=1.0)),
        (battery("Unknown", "50"), Reading(charging=None, battery=0.5)),
        (battery("Discharging", "nonsense"), Reading(charging=False, battery=None)),
        (battery("Discharging", "9", scope="Device"), Reading(charging=True, battery=1.0)),
        (battery("Discharging", "250"), Reading(charging=False, battery=1.0)),
    ],
)
def test_power_is_read_from_what_linux_says(root: Path, files: dict[str, str], reading: Reading) -> None:
    write(root, files)
    assert PowerProbe(root)() == reading


@pytest.mark.parametrize(
    ("text", "load"),
    [("2.00 1.37 1.11 2/104 28374\n", 0.5), ("0.00 0.00 0.00 1/2 3\n", 0.0), ("", None), ("busy", None)],
)
def test_load_is_counted_per_core(root: Path, text: str, load: float | None) -> None:
    write(root, {"proc/loadavg": text})
    assert LoadProbe(root, cores=4)() == Reading(load=load)


@pytest.mark.parametrize(
    ("files", "metered"),
    [
        ({}, None),
        ({"proc/net/route": "Iface\tDestination\n"}, None),
        ({"proc/net/route": ROUTES.format("eth0", 100)}, None),
        ({"proc/net/route": ROUTES.format("ppp0", 0)}, True),
        (
            {
                "proc/net/route": ROUTES.format("usb0", 700),
                "sys/class/net/usb0/uevent": "DEVTYPE=wwan\nINTERFACE=usb0\n",
            },
            True,
        ),
        (
            {"proc/net/route": ROUTES.format("wlan0", 600), "sys/class/net/wlan0/uevent": "DEVTYPE=wlan\n"},
            None,
        ),
        (
            {
                "proc/net/route": ROUTES.format("wwan0", 700) + ROUTES.format("eth0", 100).partition("\n")[2],
                "sys/class/net/wwan0/uevent": "DEVTYPE=wwan\n",
            },
            None,
        ),
        ({"proc/net/route": "garbage\nmore garbage\n"}, None),
    ],
)
def test_only_a_mobile_network_that_is_the_way_out_is_known_to_be_metered(
    root: Path, files: dict[str, str], metered: bool | None
) -> None:
    write(root, files)
    assert NetworkProbe(root)() == Reading(metered=metered)


def test_a_later_probe_is_believed_where_it_knows(root: Path) -> None:
    write(root, battery())
    probes: list[Probe] = [*linux_probes(root, cores=2), lambda: Reading(metered=False, charging=True)]
    assert read_all(probes) == (Reading(charging=True, battery=0.35, metered=False), ())


def test_the_probes_of_this_machine_say_what_can_be() -> None:
    reading, failed = read_all(linux_probes())
    assert not failed
    assert reading.load is None or reading.load >= 0
    assert reading.battery is None or 0 <= reading.battery <= 1


def broken() -> Reading:
    raise ValueError("not for anybody's eyes")


@pytest.mark.parametrize(
    "probe", [broken, lambda: 0.5], ids=["one that raises", "one that says something else"]
)
def test_a_probe_that_fails_forbids_training_and_is_named(home: DeviceHome, probe: Probe) -> None:
    """What it would have said may forbid it; and a device whose application has a fault still tells its status."""
    held = Conditions(home, probes=[lambda: Reading(charging=True)])
    held.add_probe(probe)
    verdict = held.now()
    assert (verdict.trains, verdict.by, verdict.reading.charging) == (False, ("device",), True)
    kind = "ValueError" if probe is broken else "TypeError"
    assert verdict.reasons == (f"the probe {probe.__name__} failed ({kind})",)
    assert "eyes" not in str(held)
    with pytest.raises(NotNowError):
        held.check()


def test_what_cannot_be_called_is_no_probe(home: DeviceHome) -> None:
    with pytest.raises(UsageError, match="A Reading is no probe: give what returns a Reading"):
        Conditions(home).add_probe(Reading(metered=True))  # type: ignore[arg-type]


def conditions(home: DeviceHome, **known: float | bool) -> Conditions:
    return Conditions(home, probes=[lambda: Reading(**known)])  # type: ignore[arg-type]


def test_without_rules_a_device_trains_whatever_is_known(home: DeviceHome) -> None:
    found = conditions(home, load=9.0, charging=False, battery=0.01, metered=True)
    assert found.now().trains
    assert str(found.now()) == "This device trains whenever a round asks."
    assert str(found).startswith("This device trains once ")  # Nobody was asked yet.
    Consent(home).grant()
    assert str(found) == "This device trains whenever a round asks."
    found.check()


@pytest.mark.parametrize(
    ("rule", "bad", "good", "why"),
    [
        ({"idle": True}, {"load": IDLE_LOAD}, {"load": IDLE_LOAD - 0.01}, "it is busy"),
        ({"charging": True}, {"charging": False}, {"charging": True}, "runs on its battery"),
        ({"unmetered": True}, {"metered": True}, {"metered": False}, "network is metered"),
        ({"min_battery": 0.5}, {"battery": 0.49}, {"battery": 0.5}, "battery is at 49%, below 50%"),
    ],
)
def test_each_rule_stops_training_by_itself_and_says_so(
    home: DeviceHome,
    rule: dict[str, float | bool],
    bad: dict[str, float | bool],
    good: dict[str, float | bool],
    why: str,
) -> None:
    conditions(home).require(**rule)  # type: ignore[arg-type]
    assert conditions(home, **good).now().trains
    verdict = conditions(home, **bad).now()
    assert (verdict.trains, len(verdict.reasons)) == (False, 1)
    assert str(verdict).startswith("This device does not train now: ")
    assert why in str(verdict)
    with pytest.raises(NotNowError, match=r"^Not now\.$"):
        conditions(home, **bad).check()
    # What is not known is let pass, unless the owner says otherwise.
    assert conditions(home).now().trains
    conditions(home).require(unknown="refuse")
    (reason,) = conditions(home).now().reasons
    assert reason.startswith("nobody knows")
    assert conditions(home, **good).now().trains


def test_all_reasons_are_said_at_once(home: DeviceHome) -> None:
    found = conditions(home, load=2.0, charging=False, battery=0.1, metered=True)
    found.require(idle=True, charging=True, unmetered=True, min_battery=0.2)
    Consent(home).revoke()
    assert len(found.now().reasons) == 5
    assert "took back consent" in str(found)


def test_consent_that_was_not_given_counts_only_where_it_is_demanded(home: DeviceHome) -> None:
    found = conditions(home)
    assert found.now().trains
    found.require(consent=True)
    assert found.now().reasons == (
        "the user was not asked for consent to training (against this device's conditions)",
    )
    Consent(home).grant()
    assert found.now().trains
    Consent(home).revoke()
    assert not found.now().trains
    found.require(consent=False)
    assert not found.now().trains


def test_rules_are_kept_and_changed_one_by_one(home: DeviceHome) -> None:
    conditions(home).require(idle=True, min_battery=1)
    assert conditions(home).require(charging=True) == Rules(idle=True, charging=True, min_battery=1.0)
    conditions(home).require(idle=False, min_battery=np.float32(1))
    assert conditions(home).rules == Rules(charging=True, min_battery=1.0)
    for wrong in (
        *({"min_battery": 1.5}, {"min_battery": float("nan")}, {"unknown": "perhaps"}),
        *({"min_battery": "half"}, {"min_battery": "0.5"}, {"min_battery": True}, {"min_battery": [0.5]}),
        *(
            {"idle": "yes"},
            {"consent": 1},
            {"unknown": True},
        ),  # What is kept is read again, and must be of its kind.
    ):
        with pytest.raises(UsageError, match=r"min_battery|unknown|idle|consent"):
            conditions(home).require(**wrong)  # type: ignore[arg-type]
    assert conditions(home).rules == Rules(charging=True, min_battery=1.0)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"idle": 1}', '{"other": true}', '{"min_battery": 7.0}', '{"unknown": "maybe"}', "null"],
)
def test_damaged_rules_are_one_clear_sentence_and_no_training(home: DeviceHome, text: str) -> None:
    home.conditions.write_text(text)
    with pytest.raises(StorageError, match="is damaged: delete it, and set the conditions again"):
        conditions(home).now()


def test_what_nobody_decided_is_told_from_what_the_owner_took_back(home: DeviceHome) -> None:
    assert conditions(home).decided == frozenset()
    conditions(home).require(idle=True)
    conditions(home).require(consent=False)
    assert conditions(home).decided == {"idle", "consent"}
    assert conditions(home).rules == Rules(idle=True)


def test_an_agent_asks_for_consent_unless_the_owner_has_decided_that(home: DeviceHome) -> None:
    ask_first(home)
    assert conditions(home).rules == Rules(consent=True)


def test_an_agent_keeps_to_an_owner_who_demands_no_consent(home: DeviceHome) -> None:
    conditions(home).require(consent=False)
    ask_first(home)
    assert conditions(home).rules == Rules()


def test_an_agent_asks_for_consent_also_where_the_owner_demands_something_else(home: DeviceHome) -> None:
    conditions(home).require(charging=True)
    ask_first(home)
    assert conditions(home).rules == Rules(charging=True, consent=True)
