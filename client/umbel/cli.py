"""The ``umbel`` command.

Exit codes are those of ``umbel_proto.errors``; 130 after Ctrl-C.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # Said before anything that an older Python cannot read.
    sys.stderr.write("umbel needs Python 3.11 or newer: install one, and umbel in it.\n")
    sys.exit(2)

import contextlib
import datetime
import errno
import json
import logging
import math
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel._commands import UmbelGroup
from umbel._home import HOME_VARIABLE, DeviceHome
from umbel._planning import plan_privacy
from umbel._uplink import POLL_S
from umbel_proto.errors import (
    MissingExtraError,
    PackageError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from rich.table import Table

    from umbel._data import Examples
    from umbel._device import Device
    from umbel._model import Model
    from umbel_proto.privacy.examples import ExampleCharge
    from umbel_proto.privacy.ledger import Charge

log: logging.Logger = logging.getLogger("umbel")

TOKEN_VARIABLE = "UMBEL_TOKEN"  # noqa: S105  # The variable's name, not a secret.
"""Where a token may stand instead of on the command line, which everyone on a machine can read."""

app: typer.Typer = typer.Typer(
    name="umbel",
    cls=UmbelGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run models on devices you do not control, and let them learn together without their data leaving.",
)

privacy_app: typer.Typer = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
privacy_app.command("plan")(plan_privacy)
app.add_typer(privacy_app, name="privacy")

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar=HOME_VARIABLE, help="The device's directory.", show_default="~/.umbel"),
]
OWN_TRAINER = "umbel.train.onnx:OnnxTrainer"
TrainerOption = Annotated[
    str, typer.Option(help="Makes the trainer of a package: code of this machine's.", metavar="MODULE:NAME")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"umbel {importlib.metadata.version('umbel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print umbel's version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
def enroll(
    token: Annotated[
        str,
        typer.Argument(
            envvar=TOKEN_VARIABLE, help="The one-time token of `umbel fleet token`.", metavar="TOKEN"
        ),
    ],
    home: HomeOption = None,
    name: Annotated[str, typer.Option(help="What the operator will see this device called.")] = "",
    gateway: Annotated[
        str | None, typer.Option(help="Enroll at this host:port instead of the token's.", metavar="ADDRESS")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Replace an identity that has expired; the privacy ledger stays.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make this machine a device of a fleet."""
    from umbel._enroll import enroll as enroll_device

    where = _home(home)
    identity = enroll_device(where, token, gateway, name=name, again=again, now_s=time.time())
    if as_json:
        _print_json({"fleet": identity.fleet, "device": identity.device, "home": str(where.path)})
    else:
        typer.echo(f"Enrolled as {identity.device} in fleet {identity.fleet}, at {where.path}.")


@app.command()
def run(
    home: HomeOption = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN_VARIABLE, help="Enroll with this token first, if that was not done.", metavar="TOKEN"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Training data: an .npz file with x and y.", metavar="FILE"),
    ] = None,
    name: Annotated[str, typer.Option(help="What the operator will see this device called.")] = "",
    poll: Annotated[float, typer.Option(help="Seconds between questions for releases.", min=0.1)] = POLL_S,
    trainer: TrainerOption = OWN_TRAINER,
) -> None:
    """Be the device: fetch releases, report, and take part in rounds, until stopped."""
    from umbel._device import Device

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("flwr", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    where = _home(home)
    if data is not None:
        from umbel._data import read_examples

        read_examples(data)  # A wrong file is said now, not in the middle of a round.
    if trainer != OWN_TRAINER:
        from umbel.train.load import load_trainer

        load_trainer(trainer)  # So is a wrong name.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if token is None:
        _ = where.identity  # Not enrolled, and no way to: said before anything is made.
    where.make()
    with where.lock():
        if token is not None and not where.enrolled:
            from umbel._enroll import enroll as enroll_device

            enroll_device(where, token, name=name, now_s=time.time())
        where.require_valid_certificate(time.time())
        with Device.open(where.path, poll_s=poll) as device:
            typer.echo(f"ready {device.id}")
            _take_part(where, data, stop, trainer)
    log.info("stopped")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="The model's name.", metavar="MODEL")],
    inputs: Annotated[Path, typer.Argument(help="An .npz file: x, and y to compare with.", metavar="INPUT")],
    home: HomeOption = None,
    variant: Annotated[str, typer.Option(help="fp32, int8, or auto: the fastest here.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Use what is installed; send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a model about every row of a file, one at a time, and report on it."""
    from umbel._data import read_examples
    from umbel._device import Device

    examples = read_examples(inputs)
    with Device.open(_home(home).path, online=False) as device:
        if not offline:
            _sync(device)
        loaded = device.model(model, variant=None if variant == "auto" else variant)
        result = _predict(loaded, examples)
        if not offline:
            _sync(device)
    if as_json:
        _print_json(result)
        return
    table = _table(f"{result['model']} {result['version']} ({result['variant']})", "", "")
    shown = result["labels"][:10]
    table.add_row("labels", " ".join(map(str, shown)) + (" ..." if result["n"] > len(shown) else ""))
    if "accuracy" in result:
        table.add_row("accuracy", f"{result['accuracy']:.4f}")
    latency = result["latency_us"]
    table.add_row("latency", f"{latency['p50']:.0f} us median, {latency['p90']:.0f} us p90")
    table.add_row("predictions", str(result["n"]))
    _print(table)


@app.command()
def train(
    package: Annotated[Path, typer.Argument(help="A package with a gradient graph.", metavar="PACKAGE")],
    release_key: Annotated[Path, typer.Option(help="The fleet's public release key.", metavar="FILE")],
    data: Annotated[
        list[Path], typer.Option(help="A device's examples, .npz with x and y; give it once a device.")
    ],
    heldout: Annotated[Path, typer.Option(help="Examples to judge by, .npz with x and y.", metavar="FILE")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federated averaging.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data in a round.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Length of a step.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="How much of the last step goes into the next.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Order of the examples.")] = 0,
    example_clip: Annotated[
        float, typer.Option(help="Largest norm of an example's gradient; 0: no example is protected.")
    ] = 0.0,
    example_noise: Annotated[float, typer.Option(help="Noise in a step over --example-clip.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="sgd, or adam with --momentum as its beta_1.")] = "sgd",
    gradient_clip: Annotated[float, typer.Option(help="Largest norm of a step's gradient; 0: any.")] = 0.0,
    fedprox_mu: Annotated[float, typer.Option(help="Pull towards the parameters a round begins with.")] = 0.0,
    scaffold: Annotated[bool, typer.Option("--scaffold", help="Correct steps by control variates.")] = False,
    trainer: TrainerOption = OWN_TRAINER,
    delta: Annotated[float, typer.Option(help="The delta of one example's epsilon.")] = 1e-6,
    as_json: JsonOption = False,
) -> None:
    """Train on this machine, without a fleet and without noise in sums, to see what a model can reach.

    With one --data it trains centrally, with several it averages as a fleet's rounds do.
    """
    from umbel._data import read_examples
    from umbel._files import read_file
    from umbel._package import load_package
    from umbel.train import ExamplePrivacy, TrainPlan
    from umbel.train.load import load_trainer
    from umbel.train.local import accuracy_on, example_epsilon, federated_averaging
    from umbel_proto.ids import DeviceId
    from umbel_proto.keys import VerifyKey

    loaded = load_package(package, release_key=VerifyKey(read_file(release_key)))
    judge = accuracy_on(loaded, read_examples(heldout))
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
    accuracy = [judge(parameters)]
    own = load_trainer(trainer)(loaded)
    steps = federated_averaging(own, parameters, shards, rounds=rounds, plan=plan, scaffold=scaffold)
    for number, trained in enumerate(steps, 1):
        accuracy.append(judge(trained))
        if not as_json:
            typer.echo(f"round {number:3d}  accuracy {accuracy[-1]:.4f}")
    if as_json:
        _print_json({"accuracy": accuracy, "example_epsilon": spent, "delta": delta})
    elif private is not None:
        typer.echo(f"one example: epsilon {_number(spent)} at delta {delta:g}")


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show who the device is, what it runs, what it has still to send and what privacy it has spent."""
    from umbel._device import Device

    with Device.open(_home(home).path, online=False) as device:
        now = device.status()
    if as_json:
        _print_json(asdict(now))
        return
    left_s = now.certificate_ends_s - time.time()
    table = _table(f"{now.device} of fleet {now.fleet}", "", "")
    table.add_row("gateway", now.gateway)
    table.add_row("last contact", _when(now.last_contact_s))
    table.add_row("agent", "running" if now.agent_runs else "not running")
    table.add_row("certificate", f"{'expires' if left_s > 0 else 'EXPIRED'} {_when(now.certificate_ends_s)}")
    for release in now.models:
        table.add_row("model", f"{release.model} {release.version} ({release.variant})")
    if not now.models:
        table.add_row("model", "none yet")
    dropped = f", {now.dropped_batches} dropped" if now.dropped_batches else ""
    table.add_row("to send", f"{now.spooled_batches} reports, {now.spooled_bytes} bytes{dropped}")
    table.add_row(
        "privacy",
        f"epsilon {_number(now.epsilon)} of {_number(now.budget_epsilon)} at delta {now.budget_delta:g}, "
        f"{now.rounds} rounds",
    )
    _print(table)


@privacy_app.callback(invoke_without_command=True)
def privacy(ctx: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show every charge to the device's budgets; or, with ``plan``, what a run would cost."""
    if ctx.invoked_subcommand is not None:
        return
    from umbel._spending import noise_multiplier, spending

    where = _home(home)
    found = spending(where)
    if as_json:
        _print_json({"device": where.identity.device, **found.to_json()})
        return
    title = (
        f"the device: epsilon {_number(found.epsilon)} of {_number(found.budget)} at delta {found.delta:g}"
    )
    table = _table(title, "when", "run", "round", "attempt", "noise multiplier", "epsilon after")
    for charge, after in found.charges:
        noise = noise_multiplier(charge)
        table.add_row(*_session(charge), _number(noise), _number(after))
    _print(table)
    title = (
        f"one example: epsilon {_number(found.example_epsilon)} of {_number(found.example_budget)} at delta "
        f"{found.delta:g}"
    )
    if found.unprotected:
        title += f"; rounds that did not protect examples: {found.unprotected} of {len(found.charges)}"
    if not found.trainings:
        typer.echo(title)
        return
    columns = ("when", "run", "round", "attempt", "rate", "steps", "noise multiplier", "epsilon after")
    table = _table(title, *columns)
    for training, after in found.trainings:
        release = training.release
        figures = (_number(release.rate), str(release.steps), _number(release.noise), _number(after))
        table.add_row(*_session(training), *figures)
    _print(table)


def main() -> None:
    """Run the command; every error of umbel's is one sentence and its exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # What gRPC has to say, our sentences say.
    try:
        app()
    except UmbelError as exc:
        _fail(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = exc.filename or "this machine"
        _fail(f"No space is left on the disk of {where}: free some and try again.", StorageError.exit_code)


def _fail(sentence: str, code: int) -> None:
    sys.stderr.write(f"Error: {sentence}\n")
    sys.exit(code)


def _home(path: Path | None) -> DeviceHome:
    return DeviceHome.default() if path is None else DeviceHome(path)


def _take_part(home: DeviceHome, data: Path | None, stop: threading.Event, trainer: str) -> None:
    """Join the fleet's rounds, or wait, until told to stop."""
    if home.identity.superlink:
        try:
            from umbel.flower import run_node
        except ImportError as exc:
            if (exc.name or "").startswith("umbel"):
                raise
            if data is not None:
                raise MissingExtraError("learn", "Taking part in rounds") from exc
            log.info("taking part in no rounds: flwr is not installed")
        else:
            from umbel.train.load import load_trainer

            run_node(home, data, stop=stop, trainer=load_trainer(trainer))
    stop.wait()


def _sync(device: Device) -> None:
    """Talk to the gateway; without it, or with a release that does not verify, go on with what is here."""
    try:
        device.sync()
    except (UnavailableError, PackageError) as exc:
        sys.stderr.write(f"Warning: {exc}\n")


def _predict(model: Model, examples: Examples) -> dict[str, Any]:
    import numpy as np

    labels, latencies_us = [], []
    for index, row in enumerate(examples.x):
        begin = time.perf_counter_ns()
        try:
            prediction = model.predict(row)
        except UsageError as exc:
            raise UsageError(f"Row {index}: {exc}") from exc
        latencies_us.append((time.perf_counter_ns() - begin) / 1000)
        assert not isinstance(prediction, list)
        labels.append(prediction.label)
    result: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "variant": model.variant,
        "labels": labels,
        "latency_us": {
            "p50": float(np.quantile(latencies_us, 0.5)),
            "p90": float(np.quantile(latencies_us, 0.9)),
        },
        "n": len(labels),
    }
    if examples.y is not None:
        result["accuracy"] = float(np.mean(np.asarray(labels) == examples.y))
    return result


def _session(charge: Charge | ExampleCharge) -> tuple[str, str, str, str]:
    return _when(charge.at_s), charge.run, str(charge.round), str(charge.attempt)


def _when(at_s: float | None) -> str:
    if at_s is None:
        return "never"
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.4g}"


def _print_json(value: object) -> None:
    # JSON has no infinity; null stands for it.
    text = json.dumps(value, default=str, allow_nan=True)
    typer.echo(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column)
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    with contextlib.suppress(BrokenPipeError):
        Console().print(table)
