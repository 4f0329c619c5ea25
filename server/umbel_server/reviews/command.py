"""``umbel fleet review``: predictions that wait for a person on devices, answered from afar."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import reviews_at
from umbel_server.terminal import JsonOption, duration, print_json, print_table

# Typer would print local variables with a traceback.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See predictions that wait for a person on devices, and answer them from here.",
)

NumberArgument = Annotated[
    int, typer.Argument(help="The review's number, as list shows it.", metavar="REVIEW", min=1)
]

STATE_WORDS = {
    "open": "waits",
    "answered": "answered, on its way",
    "applied": "done on the device",
    "here": "decided on the device itself",
    "gone": "the device has it no more",
    "withdrawn": "withdrawn by the device",
    "refused": "the device cannot take it",
}


@app.command("list")
def list_reviews(
    directory: FleetOption = None,
    server: ServerOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that wait no more.")] = False,
    model: Annotated[str | None, typer.Option(help="Of this model.", show_default="any")] = None,
    device: Annotated[str | None, typer.Option(help="Of this device.", show_default="any")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 100,
    as_json: JsonOption = False,
) -> None:
    """List what devices announced, those that came last first."""
    from umbel_server.clock import system_clock

    with reviews_at(directory, server) as reviews:
        if as_json:
            reviews.export()
        found = reviews.page(waiting=None if every else True, model=model, device=device, limit=limit)
    if as_json:
        print_json(found)
        return
    now_s = system_clock()
    print_table(
        ("review", "model", "said", "confidence", "because", "device", "since", "state"),
        [
            (
                str(each["review"]),
                f"{each['model']} {each['version']}",
                each["name"] or "-",
                "-" if each["percent"] is None else f"{each['percent']} %",
                _because(each),
                each["device"],
                duration(now_s - each["announced_s"]),
                state_of(each),
            )
            for each in found
        ],
    )


@app.command()
def show(
    number: NumberArgument,
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a review, and the labels that it may be answered with."""
    with reviews_at(directory, server) as reviews:
        each = reviews.show(number)
    if as_json:
        print_json(each)
        return
    rows = [
        ("device", each["device"]),
        ("model", f"{each['model']} {each['version']}"),
        ("said", each["name"] or "-"),
        ("confidence", "-" if each["percent"] is None else f"{each['percent']} %"),
        ("because", _because(each)),
        ("state", state_of(each)),
        ("labels", ", ".join(each["labels"])),
    ]
    if each["answered_by"]:
        rows.append(("answer", f"{each['answer_name']}, by {each['answered_by']}: {each['reason']}"))
    print_table((f"review {number}", ""), rows)


@app.command()
def answer(
    number: NumberArgument,
    label: Annotated[str, typer.Argument(help="The label that holds, by name or number.")],
    reason: Annotated[str, typer.Option(help="Why: for the device and the audit log.", show_default=False)],
    directory: FleetOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what holds for a prediction that waits on a device. It is told when it next asks for releases."""
    with reviews_at(directory, server) as reviews:
        done = reviews.answer(number, label, reason)
    if as_json:
        print_json(done)
        return
    typer.echo(f"Review {number}: {done['answer_name']}. Device {done['device']} is told when it next asks.")


@app.command()
def agreement(
    directory: FleetOption = None, server: ServerOption = None, as_json: JsonOption = False
) -> None:
    """Say how often answers given from here were what each version had said."""
    with reviews_at(directory, server) as reviews:
        found = reviews.agreement()
    if as_json:
        print_json(found)
        return
    print_table(
        ("version", "waiting", "answered", "agreed", "95 % interval"),
        [
            (
                f"{each['model']} {each['version']}",
                str(each["waiting"]),
                str(each["answered"]),
                "-" if each["rate"] is None else f"{each['rate']:.1%}",
                "-" if each["rate"] is None else f"{each['low']:.1%}..{each['high']:.1%}",
            )
            for each in found
        ],
    )


def state_of(each: dict[str, Any]) -> str:
    """Return what a review's state is called."""
    if each["state"] == "open" and not each["waits"]:
        return "nobody answered in time"
    return STATE_WORDS[each["state"]]


def _because(each: dict[str, Any]) -> str:
    words = [
        word for word, holds in (("unsure", each["unsure"]), ("unusual value", each["flagged"])) if holds
    ]
    return ", ".join(words) or "-"
