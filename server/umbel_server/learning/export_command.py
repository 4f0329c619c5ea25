"""``umbel rounds export``: a run in MLflow or TensorBoard."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated

import typer

from umbel_proto.errors import MissingExtraError, UsageError
from umbel_server.remote.place import FleetOption, ServerOption
from umbel_server.remote.subjects import runs_at
from umbel_server.terminal import print_json


class To(enum.StrEnum):
    """Where a run is told of."""

    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"


def export(
    run: Annotated[
        str, typer.Argument(help="The run's name, as umbel rounds list shows it.", show_default=False)
    ],
    to: Annotated[To, typer.Option(help="Where the run is to be seen.", show_default=False)],
    directory: FleetOption = None,
    server: ServerOption = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            metavar="URL",
            help="With mlflow: its tracking server, https, or http on this machine.",
            show_default=False,
        ),
    ] = None,
    experiment: Annotated[
        str,
        typer.Option(help="With mlflow: the experiment; by default the model's name.", show_default=False),
    ] = "",
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_SERVER_CERT_PATH",
            help="With mlflow: the certificates that vouch for it; by default the system's.",
            show_default=False,
        ),
    ] = None,
    logdir: Annotated[
        Path | None,
        typer.Option(help="With tensorboard: the directory that it is pointed at.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Write a run's plan, state and figures, round by round, to MLflow or TensorBoard; again, what is new."""
    from umbel_server.learning.exported import exported

    if to is To.MLFLOW and not tracking_uri:
        raise UsageError("Say where MLflow is: --tracking-uri URL.")
    if to is To.TENSORBOARD and logdir is None:
        raise UsageError("Say where TensorBoard looks: --logdir DIR.")
    with runs_at(directory, server) as runs:
        told = exported(runs.show(run), runs.attempts(run))
    if to is To.MLFLOW:
        from umbel_server.learning.to_mlflow import Mlflow

        assert tracking_uri is not None
        with Mlflow(tracking_uri, os.environ, ca=ca) as mlflow:
            where, new = mlflow.write(told, experiment=experiment or told.model)
    else:
        try:
            from umbel_server.learning.to_tensorboard import write
        except ModuleNotFoundError as exc:
            if not (exc.name or "").startswith("tensorboard"):
                raise
            raise MissingExtraError("tensorboard", "Writing for TensorBoard") from exc
        assert logdir is not None
        path, new = write(told, logdir)
        where = str(path)
    if as_json:
        print_json({"run": told.run, "state": told.state, "to": str(to), "where": where, "new": new})
    else:
        at = f"MLflow's run {where}" if to is To.MLFLOW else where
        typer.echo(f"Run {told.run} is {told.state}; {new} figures are new in {at}.")
