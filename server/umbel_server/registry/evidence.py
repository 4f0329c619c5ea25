"""What there is to judge a version by, bound by one hash: an approval is of exactly this."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from umbel_proto.encoding import digest
from umbel_proto.ids import RunId
from umbel_proto.package import Package
from umbel_server.registry.figures import COHORT, contract_sha256, figures_of, variants_of
from umbel_server.store.attempts import Attempts, Reached
from umbel_server.store.audit import canonical
from umbel_server.store.runs import RunRecord, Runs

LABEL = "umbel/1/registry/evidence"
_PRIVACY = ("epsilon_server", "epsilon_release", "participations")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is to judge a version by.

    Args:
        text: All of it, canonical JSON.
        sha256: Hash that binds it, 32 bytes.
    """

    text: str
    sha256: bytes

    @property
    def body(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return dict(json.loads(self.text))


def gather(package: Package, run: RunId | None, runs: Runs, attempts: Attempts) -> Evidence:
    """Return the evidence for a package, as it is now.

    What the package says of itself is beside what the fleet's own records say of the run that trained it: the one is
    signed by whoever released it, the other written by the coordinator.

    Args:
        package: The package.
        run: The run that trained it; None where none is known.
        runs: The fleet's records of runs.
        attempts: And of the attempts at their rounds.

    Raises:
        PackageError: Its card is no model card.
    """
    manifest, figures = package.manifest, figures_of(package)
    record = None if run is None else runs.get(run)
    body = {
        "package": {"sha256": package.sha256, "size": package.size},
        "contract_sha256": contract_sha256(manifest).hex(),
        "variants": variants_of(manifest),
        "evaluation": [each.to_json() for each in figures.metrics if not each.part.startswith(COHORT)],
        "cohorts": [each.to_json() for each in figures.metrics if each.part.startswith(COHORT)],
        "fairness": dict(figures.sections.get("fairness", {})),
        "quantization": dict(figures.sections.get("quantization", {})),
        "privacy": {
            "claimed": dict(figures.sections.get("privacy", {})),
            "run": None if record is None else _of_run(record, attempts.reached(record.id)),
        },
        "lineage": dict(manifest.lineage),
    }
    text = canonical(body)
    return Evidence(text, digest(LABEL, text))


def _of_run(record: RunRecord, reached: Reached) -> dict[str, Any]:
    plan = json.loads(record.plan)
    return {
        "run": record.id,
        "state": record.state,
        "rounds": reached.opened,
        "attempts": reached.attempts,
        "delta": plan.get("privacy", {}).get("delta"),
        **{name: _finite(reached.learned.get(name)) for name in _PRIVACY},
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
