"""Loading a version that is to be asked beside the one that answers, where there is room for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel._predict.shadow import Candidate
from umbel._releases.package import verify_golden
from umbel._releases.turns import yielding
from umbel._telemetry.comparison import strictest
from umbel._telemetry.scope import Scope
from umbel.engines import load_engine
from umbel_proto.errors import PackageError

if TYPE_CHECKING:
    from umbel._releases.follow import Windows
    from umbel._releases.packages import Installed
    from umbel._releases.shelf import Shelf
    from umbel._releases.slots import Beside


def load_candidate(
    shelf: Shelf, installed: Installed, beside: Beside, windows: Windows, hidden: Scope
) -> Candidate | None:
    """Return a version that is ready to be asked; None if it cannot be run here, and the shelf knows why.

    Args:
        shelf: Where it is.
        installed: It.
        beside: How it is to be run.
        windows: Count how it compares.
        hidden: What the active version's package asks to be hidden.

    Raises:
        StorageError: The shelf's own files are damaged.
    """
    name, versions = installed.model, shelf.versions
    try:
        package = shelf.package(installed)
    except PackageError:
        shelf.leave_beside(name)  # It is fetched again if the fleet still wants it.
        return None
    try:
        with yielding():
            engine = load_engine(package, installed.variant)
            verify_golden(package, engine)
    except PackageError as exc:
        versions.refuse(name, versions.failure(installed.sha256, installed.version, f"failed beside: {exc}"))
        return None
    window = windows.comparison(
        model=name,
        version=installed.version,
        variant=engine.variant,
        engine=engine.name,
        scope=strictest(hidden, Scope.of(package)),
    )
    return Candidate(package, engine, window, beside.within)
