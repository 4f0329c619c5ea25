"""The registry at a fleet's service, as commands read and change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.keys import SigningKey
from umbel_server.registry.approval import Verdict
from umbel_server.registry.stages import Event
from umbel_server.remote.client import Client, MissingError, path
from umbel_server.remote.place import needed

_SAID = ("owner", "purpose", "risk", "review_date", "decommission")
_VERDICTS = {Verdict.APPROVE: "approve", Verdict.REJECT: "reject"}
_EVENTS = {Event.DEPRECATE: "deprecate", Event.REINSTATE: "reinstate"}


class RegistryFar:
    """The registry at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def add(self, package: bytes, *, run: str, code: str) -> dict[str, Any]:
        """Put a package into the registry, and return its version."""
        made: dict[str, Any] = self._client.post(
            "/versions", content=package, run=run or None, code=code or None
        )
        return made

    def line(self, model: str) -> dict[str, Any] | None:
        """Return what is said of a model; None: nobody has heard of it."""
        try:
            found: dict[str, Any] = self._client.get(path("models", model))
        except MissingError:
            return None
        return {"model": found["model"], **{name: found[name] for name in _SAID}}

    def describe(self, model: str, news: dict[str, str], reason: str) -> dict[str, Any]:
        """Say something of a model, and return all that is said of it then."""
        before = self.line(model) or {}
        said = {name: before[name] for name in _SAID if name in before} | news
        made: dict[str, Any] = self._client.replace(path("models", model), {**said, "reason": reason})
        return {"model": made["model"], **{name: made[name] for name in _SAID}}

    def all(self, model: str | None) -> list[dict[str, Any]]:
        """Return the versions of a model or of all, by model and number."""
        return list(self._client.pages("/versions", model=model))

    def newest(self, model: str) -> int:
        """Return the highest version of a model."""
        found = [each["version"] for each in self._client.pages(path("models", model, "versions"))]
        if not found:
            raise UsageError(
                f"There is no version of {model[:80]} in the registry: see  umbel registry list."
            )
        return int(found[-1])

    def show(self, model: str, version: int) -> dict[str, Any]:
        """Return a version in full."""
        found: dict[str, Any] = self._client.get(path("models", model, "versions", version))
        return found

    def request(self, model: str, version: int, comment: str) -> dict[str, Any]:
        """Ask that a version be approved."""
        asked: dict[str, Any] = self._do(model, version, "request", {"comment": comment})
        return asked

    def decide(self, model: str, version: int, verdict: Verdict, comment: str) -> tuple[str, dict[str, Any]]:
        """Approve or reject a version; return who did, and the version with how many approvals it still needs."""
        made = self._do(model, version, _VERDICTS[verdict], {"comment": comment})
        return str(made.pop("decided_by")), made

    def comment(self, model: str, version: int, text: str) -> dict[str, Any]:
        """Say something about a version."""
        author = self._client.get("/me")["name"]
        self._do(model, version, "comments", {"comment": text})
        return {"author": author, "text": text.strip()}

    def move(self, model: str, version: int, event: Event, reason: str) -> dict[str, Any]:
        """Deprecate a released version, or reinstate a deprecated one."""
        return self._do(model, version, _EVENTS[event], {"reason": needed(reason)})

    def retire(self, model: str, version: int, reason: str, key: SigningKey | None) -> dict[str, Any]:
        """Let no device fetch a version any more; the release key is the service's own."""
        if key is not None:
            raise UsageError("A release key is not sent to a service: sign where the fleet's directory is.")
        return self._do(model, version, "retire", {"reason": needed(reason)})

    def compare(self, one: tuple[str, int], other: tuple[str, int], plot: Path | None) -> dict[str, Any]:
        """Return two versions of a model beside each other."""
        if plot is not None:
            raise UsageError("--plot draws where the fleet's directory is: leave out --plot, or say --fleet.")
        if one[0] != other[0]:
            raise UsageError(
                "A service compares versions of one model: compare others where its directory is."
            )
        found: dict[str, Any] = self._client.get(
            path("models", one[0], "versions", one[1], "compare", other[1])
        )
        return found

    def card(self, model: str, version: int, *, as_json: bool) -> str:
        """Return a version's model card."""
        return self._client.text(path("models", model, "versions", version, "card" if as_json else "card.md"))

    def datasheet(self, model: str, version: int) -> str:
        """Return a version's data sheet."""
        return self._client.text(path("models", model, "versions", version, "datasheet.md"))

    def package(self, sha256: str) -> str:
        """Return what stands for a package, which lies where whoever made it has it."""
        return "PACKAGE"

    def _do(self, model: str, version: int, what: str, body: dict[str, str]) -> dict[str, Any]:
        made: dict[str, Any] = self._client.post(path("models", model, "versions", version, what), body)
        return made
