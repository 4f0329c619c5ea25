"""What a package's baseline tells of the data the model was made for."""

from __future__ import annotations

import json

from umbel_proto.errors import PackageError
from umbel_proto.manifest import BASELINE
from umbel_proto.package import Package


def baseline_edges(package: Package) -> dict[str, tuple[float, ...]]:
    """Return the edges of each histogram of the baseline, by name; none where there is no baseline.

    Those of ``feature.K`` and ``channel.K.mean`` divide the data itself into twentieths.

    Raises:
        PackageError: It cannot be read.
    """
    name = package.manifest.documents.get(BASELINE)
    if name is None:
        return {}
    try:
        return {
            str(each["name"]): tuple(float(edge) for edge in each["edges"])
            for each in json.loads(package.file(name))["histograms"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise PackageError(
            f"The baseline of model {package.manifest.model} cannot be read: build it anew."
        ) from exc
