"""A query: all that is asked, of whom and under which privacy, declared and signed before a device hears of it.

Source: docs/spec/queries.md, sections 1 and 2.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from umbel_proto.encoding import digest
from umbel_proto.errors import CertificateError, RemoteProtocolError, UsageError, VerificationError
from umbel_proto.ids import FleetId, ModelName, RunId, check_name
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.secagg.canonical import parse, serialize
from umbel_proto.secagg.session import SERVER
from umbel_proto.wire import identity_pb2, queries_pb2

HISTOGRAM, MEAN, QUANTILE, FAIRNESS = "histogram", "mean", "quantile", "fairness"
KINDS = (HISTOGRAM, MEAN, QUANTILE, FAIRNESS)

LABEL, PREDICTION, CONFIDENCE = "label", "prediction", "confidence"
OWN_FIELDS = (LABEL, PREDICTION, CONFIDENCE)
"""What every model's examples have beside their columns; a column of such a name cannot be asked about."""

QUERY_LABEL = "umbel/1/query"
HASH_LABEL = "umbel/1/question"
MAX_QUERY_BYTES = 1792
"""Of a signed query: with its descriptor it fits an invitation."""
MAX_CELLS = 128
MAX_COHORTS = 16
MAX_QUANTILES = 9
MAX_PER_DEVICE = 10_000
MAX_WORDS = 200
COUNTS = 4
"""Of each cohort: by whether the label is right, and whether it was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A declared question.

    Args:
        fleet: The fleet.
        id: Its name, which is its session's run.
        kind: One of ``KINDS``.
        model: The model whose local data set is asked about.
        version: The version of the package.
        package_sha256: The package's hash, 64 hexadecimal digits: what the fields are, and what predicts.
        field: ``label``, ``prediction``, ``confidence``, or a column of the data contract.
        categories: How many labels a label or prediction may be; 0 where the field is a number.
        edges: Of numbers, the inner edges of the cells, ascending.
        low: Of a mean: smaller values count as this.
        high: Of a mean: larger values count as this.
        quantiles: Of a quantile: which, each in (0, 1), ascending.
        cohort: Of fairness: the column that says whom rates are compared of.
        cohort_edges: Of fairness: the inner edges of the cohorts, ascending.
        positive: Of fairness: the number of the label that rates are of.
        per_device: As how many examples a device counts at most, each then for less than one.
        min_cohort: Fewest devices in the sum, >= 3.
        noise_multiplier: Least ``sqrt(mu) / B`` over the devices whose noise may be counted; 0 for none.
        not_after_s: From when on no device answers, Unix seconds.
        asked_by: Who asks.
        why: What for: the device's user reads it.

    Raises:
        UsageError: It is no question that can be answered.
    """

    fleet: FleetId
    id: RunId
    kind: str
    model: ModelName
    version: int
    package_sha256: str
    field: str
    categories: int = 0
    edges: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    quantiles: tuple[float, ...] = ()
    cohort: str = ""
    cohort_edges: tuple[float, ...] = ()
    positive: int = 0
    per_device: int = 1
    min_cohort: int
    noise_multiplier: float
    not_after_s: int
    asked_by: str
    why: str

    def __post_init__(self) -> None:
        for name, what in ((self.fleet, "fleet"), (self.id, "query"), (self.model, "model")):
            check_name(name, what)
        if self.kind not in KINDS:
            raise UsageError(f"There is no kind of query {self.kind[:40]!r}: choose from {', '.join(KINDS)}.")
        if not 1 <= self.version < 1 << 31 or len(self.package_sha256) != 64:
            raise UsageError("A query names a package by its version and its hash, 64 hexadecimal digits.")
        for value, what in ((self.field, "field"), (self.cohort, "cohort"), (self.asked_by, "asked_by")):
            if len(value) > 80 or not value.isprintable():
                raise UsageError(f"The query's {what} is no name: give 1 to 80 printable characters.")
        if not (self.field and self.asked_by):
            raise UsageError("A query says what it asks about and who asks: give both.")
        if not self.why.strip() or len(self.why) > MAX_WORDS or not self.why.isprintable():
            raise UsageError(
                f"A query says what it is for, on one line of up to {MAX_WORDS} characters: the devices' users read it."
            )
        if not 1 <= self.per_device <= MAX_PER_DEVICE:
            raise UsageError(f"per_device is {self.per_device}: choose 1 to {MAX_PER_DEVICE} examples.")
        if not 3 <= self.min_cohort <= 1 << 14:
            raise UsageError(f"min_cohort is {self.min_cohort}: choose 3 to {1 << 14} devices.")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise UsageError(f"noise_multiplier is {self.noise_multiplier}: choose a number >= 0.")
        if not 0 <= self.not_after_s < 1 << 64:
            raise UsageError("not_after_s is no time: give Unix seconds.")
        self._check_kind()

    def _check_kind(self) -> None:
        _ascending("edges", self.edges)
        _ascending("cohort edges", self.cohort_edges)
        _ascending("quantiles", self.quantiles)
        if not 0 <= self.categories <= MAX_CELLS:
            raise UsageError(f"The field has {self.categories} labels: at most {MAX_CELLS} can be counted.")
        counted = self.kind in (HISTOGRAM, QUANTILE)
        if counted and bool(self.edges) == bool(self.categories):
            raise UsageError(f"A {self.kind} counts labels, or numbers between edges: give one of the two.")
        if not counted and self.edges:
            raise UsageError(f"A {self.kind} query has no edges: leave them out.")
        if len(self.edges) >= MAX_CELLS:
            raise UsageError(f"{len(self.edges)} edges: give up to {MAX_CELLS - 1}.")
        if (self.kind == QUANTILE) != bool(self.quantiles) or len(self.quantiles) > MAX_QUANTILES:
            raise UsageError(
                f"A quantile query, and no other, names 1 to {MAX_QUANTILES} quantiles, such as 0.5."
            )
        if self.quantiles and not 0 < self.quantiles[0] <= self.quantiles[-1] < 1:
            raise UsageError("A quantile is between 0 and 1, such as 0.5.")
        if self.kind == QUANTILE and (self.categories or len(self.edges) < 2):
            raise UsageError("A quantile is of numbers, found between two edges or more: give them.")
        bounded = math.isfinite(self.high - self.low) and self.low < self.high
        if bounded != (self.kind == MEAN) or (self.kind != MEAN and (self.low or self.high)):
            raise UsageError(
                "A mean query, and no other, is of values between low and high: give low < high."
            )
        if self.kind == MEAN and self.categories:
            raise UsageError("A mean is of numbers, and this field has labels: ask for a histogram.")
        self._check_fairness()

    def _check_fairness(self) -> None:
        if self.kind != FAIRNESS:
            if self.cohort or self.cohort_edges or self.positive:
                raise UsageError("Only a fairness query has a cohort and a positive label: leave them out.")
            return
        if self.field != PREDICTION or self.categories < 2 or not 0 <= self.positive < self.categories:
            raise UsageError("A fairness query is of predictions, for one of two labels or more: name it.")
        if not self.cohort or not 1 <= len(self.cohort_edges) < MAX_COHORTS:
            raise UsageError(
                f"A fairness query compares 2 to {MAX_COHORTS} cohorts of a column: give the edges between them."
            )

    @property
    def cells(self) -> int:
        """How many cells values fall into; none of a mean."""
        return self.categories or (len(self.edges) + 1 if self.edges else 0)

    @property
    def cohorts(self) -> int:
        """How many cohorts there are."""
        return len(self.cohort_edges) + 1 if self.cohort else 0

    @property
    def dim(self) -> int:
        """How many numbers a device answers with: docs/spec/queries.md, 3.2."""
        match self.kind:
            case "mean":
                return 3
            case "fairness":
                return COUNTS * self.cohorts
            case _:
                return self.cells + 1

    @property
    def bound(self) -> float:
        """C, the largest L2 norm of a device's answer, in examples."""
        return self.per_device * (math.sqrt(3) if self.kind == MEAN else 1.0)

    @property
    def sentence(self) -> str:
        """What it asks, in plain words."""
        what = {
            HISTOGRAM: f"how {self.field} is distributed",
            MEAN: f"the mean of {self.field}",
            QUANTILE: f"quantiles of {self.field}",
            FAIRNESS: f"how often predictions are right, by cohorts of {self.cohort}",
        }[self.kind]
        return f"{what}, in the examples of model {self.model}"


def _ascending(what: str, values: tuple[float, ...]) -> None:
    if not all(map(math.isfinite, values)) or any(a >= b for a, b in itertools.pairwise(values)):
        raise UsageError(f"The {what} do not ascend, or are no finite numbers: sort them, each once.")


def write_query(query: Query) -> bytes:
    """Return a query in canonical form: what is signed."""
    return serialize(
        queries_pb2.Query(
            fleet_id=query.fleet,
            query_id=query.id,
            kind=query.kind,
            model=query.model,
            package_version=query.version,
            package_sha256=bytes.fromhex(query.package_sha256),
            field=query.field,
            categories=query.categories,
            edges=query.edges,
            low=query.low,
            high=query.high,
            quantiles=query.quantiles,
            cohort=query.cohort,
            cohort_edges=query.cohort_edges,
            positive=query.positive,
            per_device=query.per_device,
            min_cohort=query.min_cohort,
            noise_multiplier=query.noise_multiplier,
            not_after_s=query.not_after_s,
            asked_by=query.asked_by,
            why=query.why,
        )
    )


def sign_query(key: SigningKey, query: Query) -> bytes:
    """Return the query as a serialized ``Signed`` message.

    Raises:
        UsageError: It is longer than an invitation holds.
    """
    body = write_query(query)
    signed: bytes = identity_pb2.Signed(body=body, signature=key.sign(QUERY_LABEL, body)).SerializeToString()
    if len(signed) > MAX_QUERY_BYTES:
        raise UsageError(
            f"The query has {len(signed)} bytes, more than {MAX_QUERY_BYTES}: give fewer edges or words."
        )
    return signed


def open_query(signed: bytes, *, authority: VerifyKey, fleet: FleetId, now_s: float) -> Query:
    """Return the query inside ``signed``, if it is this fleet's and still to be answered.

    Raises:
        CertificateError: It is not signed by ``authority``, another fleet's, or too old.
        RemoteProtocolError: It is malformed, or no question that can be answered.
    """
    outer = parse(identity_pb2.Signed, signed, limit=MAX_QUERY_BYTES, peer=SERVER)
    try:
        authority.verify(QUERY_LABEL, outer.body, outer.signature)
    except VerificationError as exc:
        raise CertificateError("The query is not signed by this fleet's authority.") from exc
    query = read_query(outer.body)
    if query.fleet != fleet:
        raise CertificateError(f"The query is of fleet {query.fleet}, not {fleet}.")
    if now_s >= query.not_after_s:
        raise CertificateError(f"Query {query.id} is too old to be answered: ask again.")
    return query


def read_query(body: bytes) -> Query:
    """Return the query that ``write_query`` wrote; nobody has vouched for it.

    Raises:
        RemoteProtocolError: It is malformed, or no question that can be answered.
    """
    m = parse(queries_pb2.Query, body, limit=MAX_QUERY_BYTES, peer=SERVER)
    try:
        return Query(
            fleet=FleetId(m.fleet_id),
            id=RunId(m.query_id),
            kind=m.kind,
            model=ModelName(m.model),
            version=m.package_version,
            package_sha256=m.package_sha256.hex(),
            field=m.field,
            categories=m.categories,
            edges=tuple(m.edges),
            low=m.low,
            high=m.high,
            quantiles=tuple(m.quantiles),
            cohort=m.cohort,
            cohort_edges=tuple(m.cohort_edges),
            positive=m.positive,
            per_device=m.per_device,
            min_cohort=m.min_cohort,
            noise_multiplier=m.noise_multiplier,
            not_after_s=m.not_after_s,
            asked_by=m.asked_by,
            why=m.why,
        )
    except UsageError as exc:
        raise RemoteProtocolError(SERVER, f"the query cannot be answered: {exc}") from exc


def query_hash(signed: bytes) -> bytes:
    """Return the hash of a signed query's bytes that stands in its session's descriptor, 32 bytes."""
    return digest(HASH_LABEL, signed)
