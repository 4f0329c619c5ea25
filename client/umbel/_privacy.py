"""What this device has shared, when, and what it cost: in plain words, with the numbers as they are."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from umbel._data.consent import QUERIES, REVIEWS, TRAINING, Consent
from umbel._data.store import Store
from umbel._home.directory import DeviceHome
from umbel._releases.shadows import ShadowRelease, bounds, shadows
from umbel._releases.versions import Versions
from umbel._review.store import ReviewStore
from umbel._rounds.asked import AskedQueries, AskedQuery
from umbel._rounds.conditions import Conditions
from umbel._rounds.spending import Spending, spending
from umbel._telemetry.spool import Spool
from umbel._words import as_number, as_time
from umbel_proto.errors import PackageError
from umbel_proto.ids import RunId
from umbel_proto.privacy.stated import CONFIDENCE, INPUT, LABELS, LATENCY

_T = TypeVar("_T")
_CERTAIN = 0.9995
_SHOWN = 3
_EVENTS = {LABELS: "label", CONFIDENCE: "confidence", LATENCY: "time", INPUT: "value of an input"}


@dataclass(frozen=True, slots=True)
class RunShare:
    """What went into one run. Times are Unix seconds.

    Args:
        run: Its name.
        rounds: How many rounds the device was charged for.
        first_s: When the first was.
        last_s: When the last was.
        epsilon_after: What the device had spent when the last was charged, runs before it included.
    """

    run: RunId
    rounds: int
    first_s: float
    last_s: float
    epsilon_after: float


@dataclass(frozen=True, slots=True)
class Privacy:
    """What a device has shared and what it cost. Printed, it is a few sentences for its user.

    Args:
        sentences: For its user.
        runs: What went into each run, in the order of their first rounds.
        spending: Every charge.
        queries: What the fleet asked of its examples, the oldest first, each with the epsilon after the answer; None:
            it gave none.
        shadows: Releases that a rollout tries on the device's examples, beside those that answer.
    """

    sentences: tuple[str, ...]
    runs: tuple[RunShare, ...]
    spending: Spending
    queries: tuple[tuple[AskedQuery, float | None], ...] = ()
    shadows: tuple[ShadowRelease, ...] = ()

    @property
    def epsilon(self) -> float:
        """Epsilon that the device has spent over its life."""
        return self.spending.epsilon

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def to_json(self) -> dict[str, Any]:
        """Return it as ``umbel privacy --json`` prints it."""
        runs = [
            {
                "run": each.run,
                "rounds": each.rounds,
                "first_s": each.first_s,
                "last_s": each.last_s,
                "epsilon_after": each.epsilon_after,
            }
            for each in self.runs
        ]
        queries = [asked.to_json(after) for asked, after in self.queries]
        return {
            "sentences": list(self.sentences),
            "runs": runs,
            "queries": queries,
            "shadows": [asdict(each) for each in self.shadows],
            **self.spending.to_json(),
        }


def account(home: DeviceHome, conditions: Conditions | None = None) -> Privacy:
    """Return what a device has shared.

    Args:
        home: Its files.
        conditions: When it trains; by default what its home and this machine say.

    Raises:
        UsageError: It is not enrolled.
        StorageError: The ledger is missing or damaged, or another of its files.
    """
    spent = spending(home)
    queries = _queries(home, spent)
    runs = _runs(spent, frozenset(asked.id for asked, _ in queries))
    tried = _tried(home)
    sentences = (
        _examples(home),
        *_reviews(home),
        *_announcements(home),
        _consent(home),
        (conditions or Conditions(home)).said(),
        _rounds(home, runs),
        *_answers(queries),
        *_query_consent(home),
        *_cost(spent),
        *_example_cost(spent),
        _reports(home),
        *_randomized(home),
        *(_trial(shadow) for shadow in tried if not shadow.why),
    )
    return Privacy(sentences, runs, spent, queries, tried)


def _queries(home: DeviceHome, spent: Spending) -> tuple[tuple[AskedQuery, float | None], ...]:
    if not home.queries.exists():
        return ()
    after: dict[str, float] = {charge.run: epsilon for charge, epsilon in spent.charges}
    with AskedQueries(home.queries) as kept:
        return tuple((asked, after.get(asked.id)) for asked in kept.all())


def _answers(queries: tuple[tuple[AskedQuery, float | None], ...]) -> tuple[str, ...]:
    """Return a sentence for what was answered, one for each of the last that were not, and what that means."""
    if not queries:
        return ()
    answered = [asked for asked, after in queries if after is not None]
    many = _count(len(queries), "question")
    first = (
        f"It was asked {many} about its examples, each signed by the fleet, and gave {len(answered)} of them an answer: "
        "counts with noise, masked, of which only the sum over many devices can be read."
    )
    told = [first]
    for asked in answered[-_SHOWN:]:
        told.append(
            f"{as_time(asked.at_s)}: {asked.asked_by} asked {asked.sentence}, for: {asked.why}. This device counts as "
            f"{_count(asked.per_device, 'example')} at most."
        )
    refused = [asked for asked, after in queries if after is None and asked.state == "refused"]
    for asked in refused[-_SHOWN:]:
        told.append(
            f"{as_time(asked.at_s)}: {asked.asked_by} asked {asked.sentence}. Refused: {asked.reason}"
        )
    return tuple(told)


def _query_consent(home: DeviceHome) -> tuple[str, ...]:
    decision = Consent(home).decision(QUERIES)
    match decision.state:
        case "granted":
            return (f"Consent to queries was given by {decision.by}, {as_time(decision.at_s)}.",)
        case "revoked":
            return (
                f"Consent to queries was taken back by {decision.by}, {as_time(decision.at_s)}: none is answered.",
            )
        case _:
            return ()


def _runs(spent: Spending, queries: frozenset[str]) -> tuple[RunShare, ...]:
    found: dict[RunId, RunShare] = {}
    for charge, after in spent.charges:
        if charge.run in queries:
            continue
        before = found.get(charge.run)
        found[charge.run] = RunShare(
            charge.run,
            1 if before is None else before.rounds + 1,
            charge.at_s if before is None else before.first_s,
            charge.at_s,
            after,
        )
    return tuple(found.values())


def _examples(home: DeviceHome) -> str:
    if not home.examples.exists():
        return "No example is kept on this device to learn from."
    with Store(home.examples, home.examples_key) as store:
        held = [f"{each.rows} of model {each.model}" for each in store.held() if each.rows]
    if not held:
        return "No example is kept on this device to learn from."
    return f"Examples kept on this device, encrypted: {', '.join(held)}. They do not leave it."


def _reviews(home: DeviceHome) -> tuple[str, ...]:
    if not home.reviews.exists():
        return ()
    waiting = [
        f"{count} of model {model}" for model, count in _review_store(home, ReviewStore.waiting).items()
    ]
    if not waiting:
        return ()
    told = f"Predictions that wait for a person, with their examples, encrypted: {', '.join(waiting)}."
    return (f"{told} The examples do not leave this device.",)


def _announcements(home: DeviceHome) -> tuple[str, ...]:
    """Return whether the fleet is told what waits for a person, and what it was told."""
    decision, asked = Consent(home).decision(REVIEWS), home.open_policy().announce_reviews
    told = []
    match decision.state:
        case "granted":
            told.append(
                f"Consent to tell the fleet which predictions wait for a person was given by {decision.by}, "
                f"{as_time(decision.at_s)}" + ("." if asked else "; the fleet does not ask for it.")
            )
        case "revoked":
            told.append(
                "Consent to tell the fleet which predictions wait for a person was taken back by "
                f"{decision.by}, {as_time(decision.at_s)}: it is told of none, and to forget those it was told of."
            )
        case _ if asked:
            told.append(
                "The fleet asks to be told which predictions wait for a person. Nobody here was asked for consent to "
                "that, so it is told of none."
            )
    announced, answered = _announced(home)
    if announced:
        told.append(
            f"The fleet was told of {_count(announced, 'prediction')} that waited for a person: the model and its "
            "version, the label it gave, how sure it was in percent, the minute, and whether it waited because of that or "
            f"because of an unusual value; no example. {_count(answered, 'decision')} came back from there."
        )
    return tuple(told)


def _announced(home: DeviceHome) -> tuple[int, int]:
    """Return of how many reviews the fleet was told, and how many of them it decided."""
    return _review_store(home, ReviewStore.shared) if home.reviews.exists() else (0, 0)


def _review_store(home: DeviceHome, look: Callable[[ReviewStore], _T]) -> _T:
    store = ReviewStore(home.reviews, home.reviews_key)
    try:
        return look(store)
    finally:
        store.close()


def _consent(home: DeviceHome) -> str:
    decision = Consent(home).decision(TRAINING)
    match decision.state:
        case "granted":
            return f"Consent to training was given by {decision.by}, {as_time(decision.at_s)}."
        case "revoked":
            return (
                f"Consent to training was taken back by {decision.by}, {as_time(decision.at_s)}: nothing is shared "
                "since. What was shared before cannot be called back."
            )
        case _:
            return "Nobody was asked for consent to training."


def _rounds(home: DeviceHome, runs: tuple[RunShare, ...]) -> str:
    if not runs:
        return "It has given nothing to any round of training."
    count = sum(each.rounds for each in runs)
    first_s, last_s = min(each.first_s for each in runs), max(each.last_s for each in runs)
    when = as_time(first_s) if count == 1 else f"from {as_time(first_s)} to {as_time(last_s)}"
    fewest = home.open_policy().min_cohort
    return (
        f"It gave an update of the model to {_count(count, 'round')} of {_count(len(runs), 'run')}, {when}. Each was "
        f"masked, so that only the sum of at least {fewest} devices' updates can be read."
    )


def _cost(spent: Spending) -> tuple[str, ...]:
    if not spent.charges:
        return ()
    if math.isinf(spent.epsilon):
        return (
            "Together they cost an infinite epsilon: no noise hides what this device's data added to those sums.",
        )
    bound = (
        "the fleet sets no bound"
        if math.isinf(spent.budget)
        else f"at most {as_number(spent.budget)} may be spent"
    )
    cost = f"Together they cost epsilon {as_number(spent.epsilon)} at delta {spent.delta:g}; {bound}."
    meaning = (
        f"That means: who had even odds on whether this device's data went into the sums or nothing did can become "
        f"{_sureness(spent.epsilon)}, but for a chance of about {spent.delta:g}. It holds against the server, as long "
        "as no more of the other devices work with it than the fleet assumes."
    )
    return cost, meaning


def _example_cost(spent: Spending) -> tuple[str, ...]:
    if not spent.charges and not spent.trainings:
        return ()
    if spent.unprotected:
        told = (
            f"In {spent.unprotected} of {_count(len(spent.charges), 'round')} no noise was added for single examples: "
            "one example has no bound of its own."
        )
    else:
        told = (
            f"Any single example cost epsilon {as_number(spent.example_epsilon)} at delta {spent.delta:g}: who sees all "
            f"updates of this device can become {_sureness(spent.example_epsilon)} that it was among them."
        )
    return (told,)


def _reports(home: DeviceHome) -> str:
    with Spool(home.spool) as spool:
        depth, made, last_s = spool.depth(), spool.made(), spool.last_contact_s()
    sent = max(made - depth.batches - depth.dropped, 0)
    if not made:
        return "It has made no report of its counters."
    single = (
        "of single predictions only those that waited for a person"
        if _announced(home)[0]
        else "no single prediction"
    )
    return (
        f"Reports: {sent} sent, {depth.batches} waiting, {depth.dropped} given up; last contact {as_time(last_s)}. They "
        f"hold counts and histograms of what models did, no example and {single}, sealed to the fleet."
    )


def _tried(home: DeviceHome) -> tuple[ShadowRelease, ...]:
    if not Versions(home.shelf, clock=time.time).models():
        return ()
    from umbel._releases.shelf import open_shelf

    return shadows(open_shelf(home, clock=time.time))


def _trial(shadow: ShadowRelease) -> str:
    since = "" if shadow.since_s is None else f" since {as_time(shadow.since_s)}"
    return (
        f"Version {shadow.version} of model {shadow.model} is tried{since} beside version {shadow.beside}, which answers: "
        f"on {bounds(shadow)}; {_count(shadow.examples, 'example')} so far. They stay on this device, and nobody hears "
        "what it says of them: reports count how often it says the same."
    )


def _randomized(home: DeviceHome) -> tuple[str, ...]:
    """Return a sentence for each model here whose package states an epsilon of what is reported."""
    names = Versions(home.shelf, clock=time.time).models()
    if not names:
        return ()
    from umbel._releases.shelf import open_shelf

    shelf, told = open_shelf(home, clock=time.time), []
    for name in names:
        installed = shelf.active(name)
        if installed is None:
            continue
        # A package that is damaged is not run either, and reports nothing.
        with contextlib.suppress(PackageError):
            stated = shelf.package(installed).manifest.telemetry_epsilon
            if stated:
                told.append(_hidden(name, stated))
    return tuple(told)


def _hidden(model: str, stated: Mapping[str, float]) -> str:
    events = [f"each {_EVENTS[task]} (epsilon {as_number(epsilon)})" for task, epsilon in stated.items()]
    return (
        f"Reports of model {model} randomize {', '.join(events)} before they leave. That hides a single one: who had even "
        f"odds on it can become {_sureness(max(stated.values()))}. It hides many less: n of them cost up to n times the "
        "epsilon. How many there were, and all else that is counted, is reported as it was."
    )


def _sureness(epsilon: float) -> str:
    """Return how sure even odds can become: e^epsilon / (1 + e^epsilon), rounded up.

    Source:
        Wasserman and Zhou, "A Statistical Framework for Differential Privacy", JASA 2010, section 2.4: with delta 0
        the odds change by a factor of at most e^epsilon.
    """
    share = 1 / (1 + math.exp(-epsilon))
    if share > _CERTAIN:
        return "practically certain (so large an epsilon hides little)"
    return f"at most {math.ceil(1000 * share) / 10:g} % sure"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
