"""``umbel predict``: ask a model about rows, and report on it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel._commands.options import PATH, Argument, Command, home_option, json_option
from umbel._commands.table import Table
from umbel._commands.terminal import device_home, print_json
from umbel_proto.errors import PackageError, UnavailableError, UsageError

if TYPE_CHECKING:
    from umbel._data.examples import Examples
    from umbel._device import Device
    from umbel._predict.graph import Graph
    from umbel._predict.model import Model


@click.command(cls=Command)
@click.argument("model", cls=Argument, required=False, help="The model's name; not with --file.")
@click.argument(
    "inputs",
    cls=Argument,
    required=False,
    type=PATH,
    metavar="INPUT",
    help="An .npz file: x, and y to compare with; or - for lines of JSON.",
)
@home_option
@click.option("--variant", default="auto", help="fp32, int8, or auto: the fastest here.")
@click.option("--offline", is_flag=True, help="Use what is installed; send nothing.")
@click.option("--file", type=PATH, metavar="FILE", help="Ask a local .umbel, .onnx or .tflite file instead.")
@click.option("--data", type=PATH, metavar="DATA", help="With --file: an .npz file, or - for lines of JSON.")
@click.option(
    "--release-key", type=PATH, metavar="FILE", help="With --file: the key that signed the package."
)
@click.option(
    "--labels",
    default="",
    show_default=False,
    help="With --file: names of a bare graph's classes, with commas.",
)
@click.option("--logits", is_flag=True, help="With --file: the bare graph gives logits.")
@click.option(
    "--at", metavar="WHEN", help="When it was measured: Unix seconds, or ISO 8601 with Z or an offset."
)
@json_option
def predict(
    *,
    model: str | None,
    inputs: Path | None,
    home: Path | None,
    variant: str,
    offline: bool,
    file: Path | None,
    data: Path | None,
    release_key: Path | None,
    labels: str,
    logits: bool,
    at: str | None,
    as_json: bool,
) -> None:
    """Ask a model about every row of a file, or about lines of JSON as they come, and report on it."""
    from umbel._commands.ask import answer_lines, moment, open_file
    from umbel._data.examples import read_examples

    at_s = None if at is None else moment(at)
    chosen = None if variant == "auto" else variant
    if file is not None or data is not None:
        if file is None or data is None or model is not None or offline:
            raise UsageError("A local model needs both:  umbel predict --file FILE --data DATA")
        local = open_file(file, release_key=release_key, variant=chosen, labels=labels, logits=logits)
        if str(data) == "-":
            answer_lines(local, sys.stdin, click.echo, at_s=at_s)
        else:
            _report(_predict(local, read_examples(data), at_s), as_json=as_json)
        return
    if model is None or inputs is None or release_key is not None or labels or logits:
        raise UsageError(
            "Name the model and its input:  umbel predict MODEL INPUT  (or --file FILE --data DATA)"
        )
    from umbel._device import Device

    path = device_home(home).path
    if str(inputs) == "-":
        # For as long as somebody asks: what is counted is reported meanwhile, and the rest when the device closes.
        with Device.open(path, online=not offline) as device:
            if not offline:
                _sync(device)
            answer_lines(device.model(model, variant=chosen), sys.stdin, click.echo, at_s=at_s)
        return
    examples = read_examples(inputs)
    with Device.open(path, online=False) as device:
        if not offline:
            _sync(device)
        result = _predict(device.model(model, variant=chosen), examples, at_s)
        if not offline:
            _sync(device)
    _report(result, as_json=as_json)


def _report(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    table = Table(f"{result['model']} {result['version']} ({result['variant']})", "", "")
    shown = result["labels"][:10] if "labels" in result else _numbers(result["values"])
    name = "labels" if "labels" in result else "values"
    table.add_row(name, " ".join(map(str, shown)) + (" ..." if result["n"] > len(shown) else ""))
    for figure in ("accuracy", "rmse"):
        if figure in result:
            table.add_row(figure, f"{result[figure]:.4f}")
    latency = result["latency_us"]
    table.add_row("latency", f"{latency['p50']:.0f} us median, {latency['p90']:.0f} us p90")
    table.add_row("predictions", str(result["n"]))
    table.print()


def _sync(device: Device) -> None:
    """Talk to the gateway; without it, or with a release that does not verify, go on with what is here."""
    try:
        device.sync()
    except (UnavailableError, PackageError) as exc:
        sys.stderr.write(f"Warning: {exc}\n")


def _predict(model: Model | Graph, examples: Examples, at_s: float | None) -> dict[str, Any]:
    import numpy as np

    from umbel._commands.ask import ask
    from umbel._predict.model import Estimate

    said: list[Any] = []
    latencies_us = []
    for index, row in enumerate(examples.x):
        begin = time.perf_counter_ns()
        try:
            answer = ask(model, row, at_s)
        except UsageError as exc:
            raise UsageError(f"Row {index}: {exc}") from exc
        latencies_us.append((time.perf_counter_ns() - begin) / 1000)
        assert not isinstance(answer, list)
        said.append(answer.values if isinstance(answer, Estimate) else answer.label)
    result: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "variant": model.variant,
        "labels" if model.labels else "values": said if model.labels else [each.tolist() for each in said],
        "latency_us": {
            "p50": float(np.quantile(latencies_us, 0.5)),
            "p90": float(np.quantile(latencies_us, 0.9)),
        },
        "n": len(said),
    }
    if examples.y is not None and model.labels:
        if examples.y.shape != (len(said),) or not np.isin(examples.y, np.arange(len(model.labels))).all():
            raise UsageError(
                f"The y of the rows are not their labels: give a whole number in 0..{len(model.labels) - 1} for each, "
                f"shape ({len(said)},)."
            )
        result["accuracy"] = float(np.mean(np.asarray(said) == examples.y))
    elif examples.y is not None:
        if examples.y.shape != np.shape(said):
            # A bare graph does not tell that it classifies: who leaves out its labels gets numbers.
            bare = ", or of a classifier the names of its classes: --labels" if model.version == 0 else ""
            raise UsageError(
                f"y has shape {examples.y.shape}, and the model's answers {np.shape(said)}: give alike{bare}."
            )
        result["rmse"] = float(np.sqrt(np.mean((np.asarray(said, np.float64) - examples.y) ** 2)))
    return result


def _numbers(values: list[Any]) -> list[str]:
    """Return the first answers in a line's width: one number each, or how many there are in each."""
    return [f"{each:.4g}" if isinstance(each, float) else _some(each) for each in values[:10]]


def _some(answer: list[Any]) -> str:
    flat = answer
    while isinstance(flat[0], list):
        flat = flat[0]
    return f"[{flat[0]:.4g}]" if len(answer) == len(flat) == 1 else f"[{flat[0]:.4g} ..]"
