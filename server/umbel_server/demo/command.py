"""The ``umbel demo`` command."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel_proto.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

DEFAULT_OUT = Path("umbel-demo")
CONSOLE_PORT = 8481
MARK = ".umbel-demo"
"""The file that tells a directory of ours, which the next demo may replace, from someone's work."""


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Where everything goes; a former demo there is replaced.", metavar="DIR")
    ] = DEFAULT_OUT,
    rounds: Annotated[int, typer.Option(min=4, max=100, help="Rounds to complete.")] = 8,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the fleet running until Ctrl-C, and open its console.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The console's port, with --keep; 0: a free one.")
    ] = CONSOLE_PORT,
) -> None:
    """Bring up a fleet on this machine, train it privately, deliver the result and watch it."""
    # Looked for and not imported: that takes seconds, and only the commands that the demo starts need them.
    if not all(map(importlib.util.find_spec, ("flwr", "matplotlib", "onnx", "sklearn", "umbel_models"))):
        raise MissingExtraError("demo", "The demo")
    try:
        from umbel_server.demo.story import Story
    except ImportError as exc:
        raise MissingExtraError("demo", "The demo") from exc
    from rich.console import Console

    from umbel_server.demo.report import show, write
    from umbel_server.demo.supervisor import Supervisor

    console = Console()
    if keep:
        require_free(port)
    make_room(out)
    home = out.resolve()
    (home / "log").mkdir(mode=0o700)
    with Supervisor(home / "log") as supervisor:
        story = Story(home, supervisor, console, rounds=rounds, console_port=port if keep else 0)
        summary = story.tell()
        write(summary, home)
        show(summary, console)
        console.print(f"Figures: {out}/summary.json   picture: {out}/rounds.png   logs: {out}/log")
        _say_next(console, out)
        if keep:
            from umbel_server.demo.kept import Kept

            with contextlib.suppress(KeyboardInterrupt):
                Kept(story, supervisor, console, out).stay()


def require_free(port: int) -> None:
    """Check that the console could listen on a port; 0 stands for any.

    Raises:
        UsageError: Something listens there.
    """
    from umbel_server.fleet.ports import is_free

    if not is_free(port):
        raise UsageError(
            f"Port {port} is taken, perhaps by another demo that runs: choose another one for the console with --port, "
            "or --port 0 for any."
        )


def make_room(out: Path) -> None:
    """Make an empty directory, replacing a former demo that no longer runs.

    Raises:
        UsageError: It holds something else, or a demo runs in it.
    """
    if out.exists():
        if not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is not empty and no demo: choose another directory with --out.")
        if (out / MARK).is_file() and _runs((out / MARK).read_text()):
            raise UsageError(
                f"A demo runs in {out}: end it with Ctrl-C, or choose another directory with --out."
            )
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True)
        (out / MARK).write_text(f"{os.getpid()} {_started(os.getpid())}\n")
    except OSError as exc:
        raise UsageError(
            f"{out} cannot be made ({exc.strerror}): choose another directory with --out."
        ) from exc


def _runs(mark: str) -> bool:
    """Whether the demo that left this mark still runs; process numbers are used again, so the start time counts."""
    fields = mark.split()
    return len(fields) == 2 and fields[0].isdigit() and _started(int(fields[0])) == fields[1] != ""


def _started(pid: int) -> str:
    """Return when a process was started, in the kernel's ticks; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _say_next(console: Console, out: Path) -> None:
    console.print("\nGo on with:")
    lines = [
        (
            f"umbel rounds show demo-run --fleet {out}/fleet",
            "each round: who was in it, what it taught and cost",
        ),
        (f"umbel fleet devices --fleet {out}/fleet", "who is in the fleet"),
        (f"umbel fleet telemetry --fleet {out}/fleet", "what they reported"),
        (f"umbel status --home {out}/devices/dev-1", "one device: identity, model, spool, privacy"),
        (f"umbel privacy --home {out}/devices/dev-1", "what its data has cost"),
        (f"umbel predict digits {out}/data/heldout.npz --home {out}/devices/dev-1 --offline", "predict"),
    ]
    for command, what in lines:
        console.print(f"  [bold]{command}[/]   {what}", highlight=False, soft_wrap=True)
