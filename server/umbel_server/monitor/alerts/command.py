"""``umbel alert``: what fires, what people do about it, and whom it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_proto.errors import UmbelError, UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.remote.place import DirectoryOption, FleetOption, ServerOption, chosen
from umbel_server.remote.subjects import alerts_at
from umbel_server.terminal import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from umbel_server.monitor.alerts.at_hand import AlertsAtHand
    from umbel_server.remote.alerts import AlertsFar
    from umbel_server.store.alerts import Reading

# Typer would print local variables with a traceback.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See what the fleet's rules found, acknowledge it, and say whom to tell.",
)

ReasonOption = Annotated[str, typer.Option(help="Why; it is kept for good.", show_default=False)]
AlertArgument = Annotated[
    str, typer.Argument(help="The alert's fingerprint, or its beginning, as umbel alert list shows it.")
]
NumberArgument = Annotated[int, typer.Argument(help="Its number, as umbel alert proposals shows it.", min=1)]


@app.command("list")
def list_(
    directory: FleetOption = None,
    server: ServerOption = None,
    rule: Annotated[str | None, typer.Option(help="Of this rule only.", show_default=False)] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are pending or resolved.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the alerts that fire, or are acknowledged or silenced."""
    from umbel_server.store.alerts import OPEN, STATES

    with alerts_at(directory, server) as alerts:
        found = alerts.all(STATES if all_ else OPEN, rule)
        if not found and rule is not None:
            _require_rule(alerts, rule)
    if as_json:
        print_json(found)
        return
    if not found:
        of_rule, word = ("", "") if rule is None else (f" of rule {rule}", f" --rule {rule}")
        more = "" if all_ else f"  umbel alert list --all{word}  also shows what did."
        typer.echo(f"Nothing{of_rule} fires.{more}")
        return
    print_table(
        ("alert", "severity", "state", "since", "rule", "about", "why"),
        [
            (
                each["fingerprint"][:8],
                each["severity"],
                each["state"] + (f" until {_utc(each['until_s'])}" if each["until_s"] else ""),
                _utc(each["since_s"]),
                each["rule"],
                _about(each["labels"]),
                each["why"],
            )
            for each in found
        ],
    )


@app.command()
def show(
    name: AlertArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an alert: what was found, what to do, and what happened to it."""
    with alerts_at(directory, server) as alerts:
        found = alerts.show(name)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['rule']} ({found['severity']}), {_about(found['labels']) or 'the fleet'}")
    typer.echo(f"  {found['state']} since {_utc(found['since_s'])}: {found['why']}")
    if found["who"]:
        until = f", until {_utc(found['until_s'])}" if found["until_s"] else ""
        typer.echo(f"  by {found['who']}{until}: {found['reason']}")
    if found["runbook"]:
        typer.echo(f"  what to do: {found['runbook']}")
    print_table(
        ("when", "who", "what", "why"),
        [(_utc(each["at_s"]), each["actor"], each["event"], each["reason"]) for each in found["events"]],
    )


@app.command()
def ack(
    name: AlertArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Say that you take care of an alert: nobody is reminded of it."""
    with alerts_at(directory, server) as alerts:
        found = alerts.acknowledge(name, _needed(reason))
    _said(found, as_json)


@app.command()
def silence(
    name: AlertArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    for_: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 7d.")] = "2h",
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Hear nothing of an alert for some time; its actions are not done meanwhile either."""
    from umbel_server.learning.schedule import parse_duration

    seconds = parse_duration(for_)
    with alerts_at(directory, server) as alerts:
        found = alerts.silence(name, seconds, _needed(reason))
    _said(found, as_json)


@app.command()
def unsilence(
    name: AlertArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """End a silence: if the alert still holds, it fires at the next look."""
    with alerts_at(directory, server) as alerts:
        found = alerts.unsilence(name, _needed(reason))
    _said(found, as_json)


@app.command()
def rules(
    directory: FleetOption = None,
    server: ServerOption = None,
    init: Annotated[
        bool,
        typer.Option("--init", help="Write a file of sensible rules, with comments, where there is none."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the rules, and show them and whom they tell."""
    if init:
        _init(directory)
        return
    where = chosen(directory, server)
    if isinstance(where, Path):  # Plans are files: they are looked at where they are.
        from umbel_server.monitor.alerts.act import check_plans
        from umbel_server.monitor.alerts.evaluate import rules_of

        check_plans(rules_of(FleetDir.open(where)))
    with alerts_at(directory, server) as alerts:
        found = alerts.rules()
    if as_json:
        print_json(found)
        return
    if not found["rules"]:
        typer.echo("There are no rules:  umbel alert rules --init  writes some.")
        return
    print_table(
        ("rule", "figure", "of", "limit", "severity", "does", "tells"),
        [
            (
                each["rule"] + ("" if each["enabled"] else " (off)"),
                each["what"],
                each["model"] or "the fleet",
                f"{each['threshold']:g}",
                each["severity"],
                ", ".join(each["actions"]) or "-",
                ", ".join(each["channels"]) or "nobody",
            )
            for each in found["rules"]
        ],
    )


@app.command()
def look(
    rule: Annotated[str, typer.Argument(help="The rule, as umbel alert rules shows it.")],
    directory: DirectoryOption,
    as_json: JsonOption = False,
) -> None:
    """Say what a rule finds now, and change nothing."""
    from umbel_server.monitor.alerts.evaluate import measure, rules_of
    from umbel_server.monitor.alerts.scene import Scene

    fleet = FleetDir.open(directory)
    found = rules_of(fleet).rules.get(rule)
    if found is None:
        raise UsageError(f"There is no rule {rule[:40]!r}:  umbel alert rules  shows those there are.")
    with fleet.open_store() as store:
        readings = measure(Scene(fleet, store, store.clock()), found)
    if as_json:
        print_json([_reading_json(each) for each in readings])
        return
    if not readings:
        typer.echo("Nothing was told that this rule looks at.")
        return
    print_table(
        ("about", "alerts", "found"),
        [(_about(each.labels) or "the fleet", _HOLDS[each.holds], each.why) for each in readings],
    )


@app.command("test")
def try_channel(
    channel: Annotated[str, typer.Argument(help="The channel, as alerts.toml names it.")],
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell a channel something, to see whether it works."""
    with alerts_at(directory, server) as alerts:
        came = alerts.test(channel)
    if as_json:
        print_json({"channel": channel, "said": came})
    else:
        typer.echo(came)


@app.command()
def notices(
    directory: FleetOption = None,
    server: ServerOption = None,
    limit: Annotated[int, typer.Option(help="So many, the newest.", min=1, max=500)] = 50,
    as_json: JsonOption = False,
) -> None:
    """List what channels were told, and what could not be told and why."""
    with alerts_at(directory, server) as alerts:
        found = alerts.notices(limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("notice", "made", "channel", "what", "state", "tries", "why"),
        [
            (
                str(each["id"]),
                _utc(each["made_s"]),
                each["channel"],
                f"{each['rule']} {each['kind']}" if each["rule"] else each["kind"],
                each["state"],
                str(each["tries"]),
                each["said"] or "-",
            )
            for each in found
        ],
    )


@app.command()
def proposals(
    directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False
) -> None:
    """List the runs that alerts propose."""
    with alerts_at(directory, server) as alerts:
        found = alerts.proposals()
    if as_json:
        print_json(found)
        return
    print_table(
        ("number", "made", "model", "rule", "state", "run", "why"),
        [
            (
                str(each["id"]),
                _utc(each["made_s"]),
                each["model"],
                each["rule"],
                each["state"] + (f" by {each['decided_by']}" if each["decided_by"] else ""),
                each["run"] or "-",
                each["said"] if each["state"] == "failed" else each["why"],
            )
            for each in found
        ],
    )


@app.command()
def accept(
    number: NumberArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a proposed run begin, where umbel serve alerts and umbel serve runs are running."""
    with alerts_at(directory, server) as alerts:
        found = alerts.accept(number, _needed(reason))
    _decided(found, as_json)


@app.command()
def decline(
    number: NumberArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a proposed run be."""
    with alerts_at(directory, server) as alerts:
        found = alerts.decline(number, _needed(reason))
    _decided(found, as_json)


def serve_alerts(
    directory: DirectoryOption,
    poll_s: Annotated[
        float, typer.Option(help="How often to see which rules are due, seconds.", min=0.01)
    ] = 10.0,
) -> None:
    """Look at the rules of alerts.toml, tell people, and act as rules say. Prints `ready alerts`."""
    from umbel_server.signals import StopSignals

    with StopSignals() as signals:
        from umbel_server.services.logs import configure_logs
        from umbel_server.services.metrics import count_into
        from umbel_server.services.ready import ready

        opened = FleetDir.open(directory)
        configure_logs(opened.settings.log)
        count_into(opened.metrics)
        from umbel_server.monitor.alerts.service import run_alerts

        with opened.open_store() as store:
            run_alerts(opened, store, signals.came, poll_s=poll_s, on_ready=lambda: ready("alerts"))


_HOLDS = {True: "YES", False: "no", None: "cannot tell"}


def _init(directory: Path | None) -> None:
    from umbel_server.files import write_atomically
    from umbel_server.monitor.alerts.defaults import DEFAULT_TOML
    from umbel_server.monitor.alerts.evaluate import rules_path

    if directory is None:
        raise UsageError("Rules are written into the fleet's directory: name it with --fleet.")
    path = rules_path(FleetDir.open(directory))
    if path.exists():
        raise UsageError(f"{path} is there already: edit it, or move it away first.")
    write_atomically(path, DEFAULT_TOML.encode())
    typer.echo(f"Rules are in {path}: give them a channel, and run  umbel serve alerts.")


def _require_rule(alerts: AlertsAtHand | AlertsFar, rule: str) -> None:
    """Check that there is a rule, or was one whose alerts are still kept.

    Raises:
        UsageError: There is none.
    """
    from umbel_server.store.alerts import STATES

    try:
        known = {each["rule"] for each in alerts.rules()["rules"]}
    except UmbelError:  # Somebody mends the rules meanwhile: alerts are listed all the same.
        return
    if rule not in known and not alerts.all(STATES, rule):
        raise UsageError(f"There is no rule {rule[:40]!r}: see  umbel alert rules.")


def _said(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    until = f" until {_utc(found['until_s'])}" if found["until_s"] else ""
    typer.echo(f"Alert {found['fingerprint'][:8]} ({found['rule']}) is {found['state']}{until}.")


def _decided(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    run = f": run {found['run']} begins" if found["run"] else ""
    typer.echo(f"Proposed run {found['id']} of {found['model']} is {found['state']}{run}.")


def _reading_json(reading: Reading) -> dict[str, Any]:
    return {
        "labels": dict(reading.labels),
        "holds": reading.holds,
        "value": reading.value,
        "why": reading.why,
    }


def _needed(reason: str) -> str:
    if not reason.strip():
        raise UsageError("Say why with --reason: it is kept with what happened.")
    return reason.strip()


def _about(labels: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in labels.items())


def _utc(at_s: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%MZ")
