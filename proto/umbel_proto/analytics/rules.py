"""Whether a device may answer a query: what its session, its fleet's policy and the model say.

Source: docs/spec/queries.md, section 2.
"""

from __future__ import annotations

import math
from fractions import Fraction

from umbel_proto.analytics.query import CONFIDENCE, LABEL, OWN_FIELDS, PREDICTION, Query
from umbel_proto.contract import Column
from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLASSIFICATION, Manifest
from umbel_proto.secagg.session import Descriptor


def session_objection(query: Query, descriptor: Descriptor, policy: FleetPolicy) -> str | None:
    """Return why a session does not hold what its query promises, or None.

    Integers and exact fractions only, so a rounding never lets a session pass.
    """
    d, encoding = descriptor, descriptor.encoding
    if (d.fleet, d.run) != (query.fleet, query.id):
        return f"the session is run {d.run} of fleet {d.fleet}, not query {query.id}"
    if d.task != query.kind:
        return f"the session's task is {d.task!r}, not {query.kind!r}"
    if encoding.dim != query.dim or encoding.auxiliary:
        return f"the session sums {encoding.coordinates} numbers, and the query has {query.dim}"
    if encoding.clip != query.bound:
        return f"the session bounds answers by {encoding.clip:g}, the query by {query.bound:g}"
    if d.min_cohort < query.min_cohort:
        return f"a sum over {d.min_cohort} devices is below the query's smallest cohort, {query.min_cohort}"
    variance = policy.honest(d.min_cohort) * encoding.noise
    if variance < Fraction(query.noise_multiplier) ** 2 * encoding.bound_sq:
        return f"the noise is below the {query.noise_multiplier:g} times the bound that the query promises"
    if math.isfinite(policy.example_budget_epsilon):
        return "the fleet bounds what is spent on one example, and a query's noise protects whole devices"
    return None


def check_fields(query: Query, manifest: Manifest) -> None:
    """Check that a model has what a query asks about.

    Raises:
        UsageError: It has not; the sentence says what it has.
    """
    if manifest.model != query.model:
        raise UsageError(f"The query is about model {query.model}, not {manifest.model}.")
    labels = len(manifest.labels) if manifest.kind == CLASSIFICATION else 0
    if query.field in (LABEL, PREDICTION):
        if query.categories != labels:
            raise UsageError(
                f"Model {query.model} has {labels} labels, and the query counts {query.categories}."
            )
        if not labels and math.prod(manifest.answer_shape) != 1:
            raise UsageError(
                f"An answer of model {query.model} has several numbers: none can be asked about."
            )
    elif query.categories:
        raise UsageError(f"{query.field} is a number, and the query counts labels.")
    elif query.field == CONFIDENCE and not labels:
        raise UsageError(f"Model {query.model} answers with numbers, and has no confidence.")
    elif query.field != CONFIDENCE:
        place_of(query.field, manifest)
    if query.cohort:
        place_of(query.cohort, manifest)


def place_of(column: str, manifest: Manifest) -> int:
    """Return the place of a column in an example, by its name.

    Raises:
        UsageError: There is none of that name; the sentence names those there are.
    """
    names = [each.name for each in columns_of(manifest)]
    if column in OWN_FIELDS or column not in names:
        known = [*OWN_FIELDS, *(name for name in names if name not in OWN_FIELDS)]
        raise UsageError(
            f"Model {manifest.model} has no field {column[:40]!r}: ask about {', '.join(known)}."
        )
    return names.index(column)


def columns_of(manifest: Manifest) -> tuple[Column, ...]:
    """Return the columns that can be asked about: of examples that are one row of them."""
    only = manifest.contract.fields[0]
    return only.columns if len(only.shape) == 1 else ()
