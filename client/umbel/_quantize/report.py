"""What quantizing a model on this device came to: every form with its figures, the choice, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from umbel._releases.choice import AGREEMENT, DIFFERENCE, ERROR_GROWTH, MARGIN, Measured
from umbel.engines import Engine


@dataclass(frozen=True, slots=True)
class QuantizedForm:
    """A form of a model, as it showed itself on this device.

    Args:
        name: ``fp32``, or ``int8``: the one that was made here, beside ``int8 before`` where another one ran.
        variant: The variant of the package that it is.
        engine: What runs it.
        bytes: Size of its graph and weights.
        latency_us: Median time of one prediction, microseconds.
        agreement: Share of the held-back samples to which it gives the float form's label, in [0, 1]; None where
            the model answers with numbers.
        accuracy: Share to which it gives the right label; None where labels are not known.
        difference: Root mean square of what its numbers differ by, over the spread of the float form's; None where
            the model classifies.
        error: Root mean square error of its numbers; None where it classifies, or the right ones are not known.
    """

    name: str
    variant: str
    engine: str
    bytes: int
    latency_us: float
    agreement: float | None = None
    accuracy: float | None = None
    difference: float | None = None
    error: float | None = None

    @classmethod
    def of(cls, name: str, engine: Engine, size: int, shown: Measured) -> QuantizedForm:
        """Return the form of what was measured."""
        return cls(
            name,
            engine.variant,
            engine.name,
            size,
            shown.latency_us,
            shown.agreement,
            shown.accuracy,
            shown.difference,
            shown.error,
        )


@dataclass(frozen=True, slots=True)
class Quantization:
    """What quantizing came to. Printed, it is a table.

    Args:
        choice: The form that runs from now on.
        why: Why, in a sentence.
        forms: Every form that was measured, the float one first.
        held_back: Samples that the forms were compared on, and that nothing was calibrated with.
        seconds: How long all of it took.
    """

    choice: str
    why: str
    forms: tuple[QuantizedForm, ...]
    held_back: int
    seconds: float

    def __str__(self) -> str:
        columns = ("form", "bytes", "latency us", "agreement", "accuracy", "difference", "error")
        rows = [
            (
                f"{form.name}{' *' if form.name == self.choice else ''}",
                f"{form.bytes}",
                f"{form.latency_us:.1f}",
                *(
                    "" if figure is None else f"{figure:.4f}"
                    for figure in (form.agreement, form.accuracy, form.difference, form.error)
                ),
            )
            for form in self.forms
        ]
        shown = [i for i in range(len(columns)) if i < 3 or any(row[i] for row in rows)]
        widths = {i: max(len(line[i]) for line in (columns, *rows)) for i in shown}
        lines = ["  ".join(line[i].ljust(widths[i]) for i in shown).rstrip() for line in (columns, *rows)]
        return "\n".join((*lines, f"* {self.why} Compared on {self.held_back} samples held back."))


def reason(
    name: str, choice: str, reference: str, measured: Mapping[str, Measured], *, golden: bool, held_back: int
) -> str:
    """Return in a sentence why a form was chosen, or not.

    Args:
        name: The form that was made here.
        choice: What was chosen.
        reference: The float form.
        measured: What each showed.
        golden: Whether the new form says the same as the float one of the golden inputs.
        held_back: How many samples they were compared on.
    """
    shown, base = measured[name], measured[reference]
    time = f"{name} takes {shown.latency_us / base.latency_us:.2f} of the time of {reference}"
    if choice == name:
        return f"{time} and says the same."
    if not golden:
        return f"{name} does not say the same as {reference} of the golden inputs: {choice} runs."
    if shown.latency_us >= (1 - MARGIN) * base.latency_us:
        return f"{time}, and at most {1 - MARGIN:g} would be worth it: {choice} runs."
    if shown.error is not None and base.error is not None and shown.error > base.error * (1 + ERROR_GROWTH):
        return f"{time}, but its error is {shown.error / base.error - 1:.1%} larger: {choice} runs."
    if shown.error is None and shown.difference is not None and shown.difference > DIFFERENCE:
        return f"{time}, but its numbers differ by {shown.difference:.1%} of their spread: {choice} runs."
    if shown.accuracy is not None and base.accuracy is not None and shown.accuracy < base.accuracy:
        return f"{time}, but is right on {shown.accuracy:.1%} of the samples instead of {base.accuracy:.1%}: {choice} runs."
    if shown.accuracy is None and shown.agreement is not None and shown.agreement < AGREEMENT:
        return (
            f"{time}, but gives only {shown.agreement:.1%} of the {held_back} samples the same label, and "
            f"{AGREEMENT:.1%} are needed: {choice} runs."
        )
    return f"{choice} is faster still."
