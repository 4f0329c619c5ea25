"""``umbel train``: train on this machine, to compare a fleet with."""

from __future__ import annotations

from pathlib import Path

import click

from umbel._commands.options import PATH, Argument, Command, json_option
from umbel._commands.terminal import print_json
from umbel._words import as_number
from umbel_proto.errors import UsageError

OWN_TRAINER = "umbel.train.onnx:OnnxTrainer"


@click.command(cls=Command)
@click.argument("package", cls=Argument, type=PATH, help="A package with a gradient graph.")
@click.option(
    "--release-key", type=PATH, metavar="FILE", required=True, help="The fleet's public release key."
)
@click.option(
    "--data",
    type=PATH,
    metavar="FILE",
    multiple=True,
    required=True,
    help="A device's examples, .npz with x and y; give it once a device.",
)
@click.option(
    "--heldout", type=PATH, metavar="FILE", required=True, help="Examples to judge by, .npz with x and y."
)
@click.option("--rounds", type=click.IntRange(min=1), default=10, help="Rounds of federated averaging.")
@click.option("--epochs", type=click.IntRange(min=1), default=1, help="Passes over the data in a round.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, help="Examples in a step.")
@click.option("--learning-rate", type=float, default=0.1, help="Length of a step.")
@click.option("--momentum", type=float, default=0.0, help="How much of the last step goes into the next.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Order of the examples.")
@click.option(
    "--example-clip",
    type=float,
    default=0.0,
    help="Largest norm of an example's gradient; 0: no example is protected.",
)
@click.option("--example-noise", type=float, default=0.0, help="Noise in a step over --example-clip.")
@click.option("--optimizer", default="sgd", help="sgd, or adam with --momentum as its beta_1.")
@click.option("--gradient-clip", type=float, default=0.0, help="Largest norm of a step's gradient; 0: any.")
@click.option(
    "--fedprox-mu", type=float, default=0.0, help="Pull towards the parameters a round begins with."
)
@click.option("--scaffold", is_flag=True, help="Correct steps by control variates.")
@click.option(
    "--trainer",
    metavar="MODULE:NAME",
    default=OWN_TRAINER,
    help="Makes the trainer of a package: code of this machine's.",
)
@click.option("--delta", type=float, default=1e-6, help="The delta of one example's epsilon.")
@click.option("--out", type=PATH, metavar="FILE", help="Keep the parameters here, for umbel model pack.")
@json_option
def train(
    *,
    package: Path,
    release_key: Path,
    data: tuple[Path, ...],
    heldout: Path,
    rounds: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    seed: int,
    example_clip: float,
    example_noise: float,
    optimizer: str,
    gradient_clip: float,
    fedprox_mu: float,
    scaffold: bool,
    trainer: str,
    delta: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train on this machine, without a fleet and without noise in sums, to see what a model can reach.

    With one --data it trains centrally, with several it averages as a fleet's rounds do.
    """
    from umbel._data.examples import read_examples
    from umbel._home.files import read_file, write_atomically
    from umbel._releases.package import load_package
    from umbel.train import ExamplePrivacy, TrainPlan
    from umbel.train.load import load_trainer
    from umbel.train.local import example_epsilon, federated_averaging, figure_on
    from umbel_proto.ids import DeviceId
    from umbel_proto.keys import VerifyKey
    from umbel_proto.update import write_update

    loaded = load_package(package, release_key=VerifyKey(read_file(release_key)))
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"There is no directory {out.parent} to write {out.name} to: make it first.")
    figure, judge = figure_on(loaded, read_examples(heldout))
    shards = {DeviceId(f"dev-{number}"): read_examples(path) for number, path in enumerate(data, 1)}
    private = ExamplePrivacy(example_clip, example_noise) if example_clip or example_noise else None
    plan = TrainPlan(
        epochs,
        batch_size,
        learning_rate,
        momentum,
        seed,
        private,
        optimizer=optimizer,
        gradient_clip=gradient_clip,
        fedprox_mu=fedprox_mu,
    )
    spent = example_epsilon(shards, plan, rounds=rounds, delta=delta)
    parameters = loaded.parameters()
    reached = [judge(parameters)]
    own = load_trainer(trainer)(loaded)
    steps = federated_averaging(own, parameters, shards, rounds=rounds, plan=plan, scaffold=scaffold)
    for number, trained in enumerate(steps, 1):
        reached.append(judge(trained))
        if not as_json:
            click.echo(f"round {number:3d}  {figure} {reached[-1]:.4f}")
        parameters = trained
    if out is not None:
        write_atomically(out, write_update(loaded, parameters))
    if as_json:
        print_json({figure: reached, "example_epsilon": spent, "delta": delta})
    elif private is not None:
        click.echo(f"one example: epsilon {as_number(spent)} at delta {delta:g}")
