"""The ``umbel`` command.

Exit codes are those of ``umbel_proto.errors``; 130 after Ctrl-C.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # Said before anything that an older Python cannot read.
    sys.stderr.write("umbel needs Python 3.11 or newer: install one, and umbel in it.\n")
    sys.exit(2)

import errno
import os

import click

from umbel._commands import data, model, review
from umbel._commands.doctor import doctor
from umbel._commands.enroll import enroll
from umbel._commands.predict import predict
from umbel._commands.privacy import privacy
from umbel._commands.rooms import UmbelGroup
from umbel._commands.run import run
from umbel._commands.status import status
from umbel._commands.train import train
from umbel_proto.errors import StorageError, UmbelError


@click.group(
    cls=UmbelGroup,
    context_settings={"show_default": True, "max_content_width": 110},
)
@click.version_option(package_name="umbel", message="umbel %(version)s", help="Print umbel's version.")
def app() -> None:
    """Run models on devices you do not control, and let them learn together without their data leaving."""


_OWN: tuple[click.Command, ...] = (
    enroll,
    run,
    predict,
    status,
    doctor,
    model.app,
    data.app,
    review.app,
    privacy,
    train,
)
for _command in _OWN:
    app.add_command(_command)


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
