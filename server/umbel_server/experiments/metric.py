"""What an experiment measures of each device: a quotient of two sums, whichever metric it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name

DAY = "day"
_APP = "app."
_COUNTED = ("predictions", "errors")
_PREFIXES = (_APP, "feedback", "review.")
_MEASURED = ("confidence", "latency_us")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: each device has one value of it, ``above / below``.

    Args:
        name: As people write it.
        above: The counter that is summed above; empty: of an amount.
        below: The counters that are summed below; of ``DAY``, how long the device has been compared.
        amount: The histogram whose mean it is; empty: of counters.
    """

    name: str
    above: str = ""
    below: tuple[str, ...] = ()
    amount: str = ""

    @property
    def daily(self) -> bool:
        """Whether it is divided by the device's days, not by what it counted."""
        return self.below == (DAY,)

    @property
    def of_application(self) -> bool:
        """Whether the application counts some of it: that belongs to no version."""
        return any(name.startswith(_APP) for name in (self.above, self.amount, *self.below))

    @property
    def of_model(self) -> bool:
        """Whether the model's own windows count some of it."""
        return any(
            name and name != DAY and not name.startswith(_APP)
            for name in (self.above, self.amount, *self.below)
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What one row of the store adds to a device's value.

    Args:
        above: To the sum above.
        below: To the sum below; of a daily metric, nothing.
        randomized: Whether the row tells the metric only with noise.
    """

    above: float = 0.0
    below: float = 0.0
    randomized: bool = False


def parse_metric(text: str) -> Metric:
    """Read a metric.

    ``errors``, ``overrides`` and ``confidence`` are built in; ``COUNTER/COUNTER`` is a quotient, ``COUNTER/day`` a
    count by the day, and one name the mean of an amount.

    Raises:
        UsageError: It is none of these, or no device can report it.
    """
    match text:
        case "errors":
            # What fails is no prediction.
            return Metric(text, "errors", ("predictions", "errors"))
        case "overrides":
            return Metric(text, "review.changed", ("review.resolved",))
    above, slash, below = text.partition("/")
    names = [name for name in (above, below) if name != DAY] if slash else [text]
    for name in names:
        check_name(name, "metric")
        if not name.startswith((_APP,) if not slash else _PREFIXES) and name not in (
            _COUNTED if slash else _MEASURED
        ):
            raise UsageError(
                f"No device reports {name!r} so that it makes a metric: there are  errors,  overrides,  confidence,  "
                "COUNTER/COUNTER  and  COUNTER/day  of  app.NAME,  feedback,  review.…,  predictions  or  errors,  "
                "and  app.NAME  of an amount."
            )
    if not slash:
        return Metric(text, amount=text)
    if above == DAY:
        raise UsageError(f"The metric {text!r} counts days: put them below, as in  app.sales/day.")
    return Metric(text, above, (below,))


def part_of(
    metric: Metric, counters: Mapping[str, int], histograms: Mapping[str, Any], *, application: bool
) -> Part:
    """Return what a row adds.

    Args:
        metric: The metric.
        counters: The row's counters.
        histograms: The row's histograms, as the store has them.
        application: Whether it is a row of the application, not of a model.
    """
    if metric.amount:
        body = histograms.get(metric.amount)
        if body is None or application != metric.amount.startswith(_APP):
            return Part()
        if body.get("epsilon") is not None:
            return Part(randomized=True)
        return Part(float(body["sum"]), float(sum(body["counts"])))

    def told(name: str) -> float:
        return float(counters.get(name, 0)) if application == name.startswith(_APP) else 0.0

    return Part(told(metric.above), 0.0 if metric.daily else sum(map(told, metric.below)))
