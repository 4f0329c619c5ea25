"""``umbel privacy``: what the device shared, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel._commands.options import Group, home_option, json_option
from umbel._commands.plan import plan
from umbel._commands.table import Table
from umbel._commands.terminal import device_home, print_json
from umbel._words import as_number, as_time

if TYPE_CHECKING:
    from umbel_proto.privacy.examples import ExampleCharge
    from umbel_proto.privacy.ledger import Charge


@click.group(cls=Group, invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def privacy(ctx: click.Context, *, home: Path | None, as_json: bool) -> None:
    """Say what this device shared and what it cost, charge by charge; or, with plan, what a run would cost."""
    if ctx.invoked_subcommand is not None:
        return
    from umbel._privacy import account
    from umbel._rounds.spending import noise_multiplier

    where = device_home(home)
    told = account(where)
    if as_json:
        print_json({"device": where.identity.device, **told.to_json()})
        return
    click.echo(f"{told}\n")
    found = told.spending
    title = f"the device: epsilon {as_number(found.epsilon)} of {as_number(found.budget)} at delta {found.delta:g}"
    table = Table(title, "when", "run", "round", "attempt", "noise multiplier", "epsilon after")
    for charge, after in found.charges:
        noise = noise_multiplier(charge)
        table.add_row(*_session(charge), as_number(noise), as_number(after))
    table.print()
    if told.queries:
        table = Table("queries", "when", "query", "asked by", "asks", "answer", "epsilon after")
        for asked, spent in told.queries:
            said = "given" if spent is not None else "refused" if asked.state == "refused" else "not needed"
            after_it = "" if spent is None else as_number(spent)
            table.add_row(as_time(asked.at_s), asked.id, asked.asked_by, asked.sentence, said, after_it)
        table.print()
    title = (
        f"one example: epsilon {as_number(found.example_epsilon)} of {as_number(found.example_budget)} at delta "
        f"{found.delta:g}"
    )
    if found.unprotected:
        title += f"; rounds that did not protect examples: {found.unprotected} of {len(found.charges)}"
    if not found.trainings:
        click.echo(title)
        return
    columns = ("when", "run", "round", "attempt", "rate", "steps", "noise multiplier", "epsilon after")
    table = Table(title, *columns)
    for training, after in found.trainings:
        release = training.release
        figures = (as_number(release.rate), str(release.steps), as_number(release.noise), as_number(after))
        table.add_row(*_session(training), *figures)
    table.print()


privacy.add_command(plan)


def _session(charge: Charge | ExampleCharge) -> tuple[str, str, str, str]:
    return as_time(charge.at_s), charge.run, str(charge.round), str(charge.attempt)
