"""A trainer that the device's owner brings, by name: their code, from their machine, and never from a server."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from umbel.train import Trainer
from umbel_proto.errors import UmbelError, UsageError
from umbel_proto.package import Package


def load_trainer(name: str) -> Callable[[Package], Trainer]:
    """Return what makes trainers, by its name.

    Args:
        name: ``MODULE:NAME``; a function or class in a module that Python finds, which takes a package that
            this device has verified and returns its trainer.

    Raises:
        UsageError: There is none of that name.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute.isidentifier()):
        raise UsageError(f"--trainer is {name!r}: write MODULE:NAME, such as clinic.training:trainer.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except UmbelError:
        raise
    except (ImportError, AttributeError, TypeError) as exc:
        raise UsageError(f"There is no trainer {name}: {exc}. Is it installed, or on PYTHONPATH?") from exc
    if not callable(found):
        raise UsageError(f"{name} makes no trainers: name a function that takes a package and returns one.")
    return cast(Callable[[Package], Trainer], found)
