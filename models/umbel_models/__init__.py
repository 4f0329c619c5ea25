"""umbel's workbench: from a torch module to a signed model package.

The names here are the workbench for who writes Python; each is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umbel_models.built import BuiltPackage, export
    from umbel_models.task import About, Examples, Split, Task, cross_entropy, squared_error

__all__ = [
    "About",
    "BuiltPackage",
    "Examples",
    "Split",
    "Task",
    "cross_entropy",
    "export",
    "squared_error",
]

_BUILT = ("BuiltPackage", "export")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{'built' if name in _BUILT else 'task'}"), name)
    globals()[name] = value
    return value
