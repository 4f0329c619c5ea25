"""The registry where the fleet's directory is at hand, as commands read and change it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel_proto.errors import MissingExtraError
from umbel_proto.ids import ModelName, RunId
from umbel_proto.keys import SigningKey
from umbel_server.access.acting import acting_as
from umbel_server.access.actor import Actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.access.permissions import Permission
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry import asking, overview, releasing, versions
from umbel_server.registry.approval import Verdict
from umbel_server.registry.stages import Event
from umbel_server.store.registry import Line, line_of, version_of
from umbel_server.store.store import Store

if TYPE_CHECKING:
    from umbel_server.registry.compare import Comparison


class RegistryAtHand:
    """The registry of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Holds the token of the account that acts; None: the variable's, or nobody's.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store
        self._token_file = token_file

    def add(self, package: bytes, *, run: str, code: str) -> dict[str, Any]:
        """Put a package into the registry, and return its version."""
        actor = self._actor(Permission.REGISTRY_WRITE)
        made = versions.add(
            self._fleet, self._store, package, actor, run=RunId(run) if run else None, code=code
        )
        return self._changed(overview.version_json(made))

    def line(self, model: str) -> dict[str, Any] | None:
        """Return what is said of a model; None: nobody has heard of it."""
        self._actor(Permission.REGISTRY_READ)
        with self._store.database.read() as connection:
            line = line_of(connection, model)
        return None if line is None else asdict(line)

    def describe(self, model: str, news: dict[str, Any], reason: str) -> dict[str, Any]:
        """Say something of a model, and return all that is said of it then."""
        actor = self._actor(Permission.REGISTRY_WRITE)
        with self._store.database.read() as connection:
            line = line_of(connection, model)
        said = replace(line or Line(ModelName(model)), **news)
        versions.describe(self._store, said, actor, reason=reason)
        return self._changed(asdict(said))

    def all(self, model: str | None) -> list[dict[str, Any]]:
        """Return the versions of a model or of all, by model and number."""
        rules = asking.rules_of(self._fleet)
        return [each.to_json() for each in overview.overview(self._store, rules, model)]

    def newest(self, model: str) -> int:
        """Return the highest version of a model."""
        return overview.newest(self._store, model)

    def show(self, model: str, version: int) -> dict[str, Any]:
        """Return a version in full."""
        return overview.detail(self._fleet, self._store, model, version).to_json()

    def request(self, model: str, version: int, comment: str) -> dict[str, Any]:
        """Ask that a version be approved."""
        actor = self._actor(Permission.REGISTRY_WRITE)
        asked = asking.request(self._fleet, self._store, model, version, actor, comment=comment)
        return self._changed(
            {
                "requested_by": asked.requested_by,
                "request": asked.number,
                "sha256": asked.package_sha256.hex(),
                "evidence_sha256": asked.evidence_sha256.hex(),
                "approvals_needed": asking.rules_of(self._fleet).approvals,
            }
        )

    def decide(self, model: str, version: int, verdict: Verdict, comment: str) -> tuple[str, dict[str, Any]]:
        """Approve or reject a version; return who did, and the version with how many approvals it still needs."""
        actor = self._actor(Permission.REGISTRY_APPROVE)
        now, left = asking.decide(self._fleet, self._store, model, version, actor, verdict, comment=comment)
        return actor.name, self._changed({**overview.version_json(now), "approvals_missing": left})

    def comment(self, model: str, version: int, text: str) -> dict[str, Any]:
        """Say something about a version."""
        actor = self._actor(Permission.REGISTRY_READ)
        said = versions.comment(self._store, model, version, actor, text)
        return {"author": said.author, "text": said.text}

    def move(self, model: str, version: int, event: Event, reason: str) -> dict[str, Any]:
        """Deprecate a released version, or reinstate a deprecated one."""
        actor = self._actor(Permission.RELEASES_WRITE)
        moved = releasing.move(self._store, model, version, event, actor, reason=reason)
        return self._changed(overview.version_json(moved))

    def retire(self, model: str, version: int, reason: str, key: SigningKey | None) -> dict[str, Any]:
        """Let no device fetch a version any more."""
        actor = self._actor(Permission.RELEASES_WRITE)
        moved = releasing.retire(self._fleet, self._store, model, version, actor, reason=reason, key=key)
        return self._changed(overview.version_json(moved))

    def compare(self, one: tuple[str, int], other: tuple[str, int], plot: Path | None) -> dict[str, Any]:
        """Return two versions beside each other, and draw them if they are to be drawn."""
        from umbel_server.registry.compare import compare

        with self._store.database.read() as connection:
            both = [versions.required(version_of(connection, *each), *each) for each in (one, other)]
            first, second = ((each, versions.package_of(self._fleet, each)) for each in both)
        found = compare(first, second)
        if plot is not None:
            _draw(found, plot)
        return found.to_json()

    def card(self, model: str, version: int, *, as_json: bool) -> str:
        """Return a version's model card."""
        from umbel_server.registry.card import complete, to_markdown

        subject = overview.subject_of(self._fleet, self._store, model, version)
        return complete(subject).decode() if as_json else to_markdown(subject)

    def datasheet(self, model: str, version: int) -> str:
        """Return a version's data sheet."""
        from umbel_server.registry.datasheet import to_markdown

        return to_markdown(overview.subject_of(self._fleet, self._store, model, version))

    def package(self, sha256: str) -> str:
        """Return where a package lies."""
        return str(self._fleet.package(bytes.fromhex(sha256)))

    def _actor(self, permission: Permission) -> Actor:
        return acting_as(self._store, self._token_file, permission)

    def _changed(self, value: dict[str, Any]) -> dict[str, Any]:
        keep_checkpoint(self._fleet, self._store)
        return value


def _draw(found: Comparison, plot: Path) -> None:
    try:
        from umbel_server.registry.plot import draw
    except ModuleNotFoundError as exc:
        raise MissingExtraError("demo", "Drawing a plot") from exc
    draw(found, plot)
