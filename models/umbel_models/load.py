"""A task by name, or from the Python file of whoever brings one."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from umbel_models.own import guarded, where
from umbel_models.task import Task, find
from umbel_proto.errors import UsageError


def load_task(name: str) -> Task:
    """Return a task.

    Args:
        name: One of umbel's own, such as ``digits``; or a Python file that makes one ``Task``. The file is run, and
            what its functions raise later is a ``UsageError`` too.

    Raises:
        UsageError: There is no such task, the file fails, or it holds no task or several.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    return find(name)


def _from_file(path: Path) -> Task:
    if not path.is_file():
        raise UsageError(f"There is no file {path}: give a Python file that makes a Task, or a task's name.")
    # Two files of one name are two modules; a module must be importable while it runs, for dataclasses.
    name = f"umbel_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[name] = module
    sys.path.insert(0, folder)  # as `python task.py` does: the file may import its neighbors
    try:
        spec.loader.exec_module(module)
    except Exception as exc:  # whatever the file raises: it is not ours
        del sys.modules[name]
        raise UsageError(f"{path} cannot be run: {where(exc, path)}.") from exc
    finally:
        sys.path.remove(folder)
    tasks = {id(value): value for value in vars(module).values() if isinstance(value, Task)}
    if len(tasks) != 1:
        names = ", ".join(sorted(task.model for task in tasks.values()))
        found = f"{len(tasks)} tasks ({names})" if tasks else "no Task"
        # Who changes a task has imported it: its name counts as one of the file's.
        spare = ", and import the module of another, not its task" if tasks else ""
        raise UsageError(f"{path} holds {found}: give a file with one umbel_models.task.Task in it{spare}.")
    return guarded(next(iter(tasks.values())), path)
