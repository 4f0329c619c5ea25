"""What torch says about a module, in double precision: what graphs are compared with."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.explain import STEPS, flat
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLASSIFICATION, REGRESSION

ROUNDINGS = 2.0**-20
"""How far parameters are moved to find kinks, relative: eight units in float32's last place."""


class Truth:
    """Eager torch's answers about a module, at random parameters.

    In double precision where the module can be run in it: float32 is no truth about float32. A module that
    makes float32 constants of its own is asked in float32.

    Args:
        module: The network.
        loss: Maps outputs and labels or targets to one loss per example.
        shape: Shape of one example.
        trained: Names of the parameters whose gradients are asked for; all where there is None.
        bounds: Least and greatest input to try it on; otherwise inputs are normally distributed.
        kind: Whether it tells labels apart, ``CLASSIFICATION``, or answers with numbers, ``REGRESSION``.
        targets: Of a regression, least and greatest target to try it on; otherwise normally distributed ones.

    Attributes:
        kind: As given.
        answer: Shape of what it says of one example.
        parameters: The random parameters, float32, by name.
        trained: Names of those whose gradients are asked for.
        smooth: Whether the outputs have a gradient by the input.

    Raises:
        UsageError: The module fails on random inputs, or does not map them to logits or values.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        shape: Sequence[int],
        trained: Sequence[str] | None = None,
        bounds: tuple[float, float] | None = None,
        *,
        kind: str = CLASSIFICATION,
        targets: tuple[float, float] | None = None,
    ) -> None:
        self.parameters = _random_parameters(module)
        self.trained = list(self.parameters if trained is None else trained)
        self._module, self._loss, self._shape, self._bounds = module, loss, tuple(shape), bounds
        self.kind, self._targets = kind, targets
        self._dtype = torch.float32
        self.answer: tuple[int, ...] = (1,)
        x, _, _ = self.examples(2)
        try:
            logits = self.logits(x)
        except Exception as exc:  # whatever the caller's own module raises
            raise UsageError(
                f"The module fails on two random examples of shape {self._shape}: {exc}. If it takes only some "
                "values, as numbers of words, say so with bounds."
            ) from exc
        self.answer = self._shape_of(logits)
        x, y, _ = self.examples(2)
        losses = self._losses(self.parameters, x, y)
        if losses.shape != (2,):
            raise UsageError(
                f"For two examples the loss has shape {tuple(losses.shape)}, which must be (2,): give it "
                "reduction='none'."
            )
        self.smooth = bool(self._logits(self.parameters, x.clone().requires_grad_()).requires_grad)
        self._try_double(x, y)

    def _shape_of(self, outputs: object) -> tuple[int, ...]:
        if not isinstance(outputs, Tensor):
            raise UsageError(f"The module returns a {type(outputs).__name__}: return one tensor.")
        if self.kind == REGRESSION:
            if outputs.dim() < 1 or len(outputs) != 2 or not outputs.numel():
                raise UsageError(
                    f"For two examples the module gives values of shape {tuple(outputs.shape)}, which must be "
                    "(2, ..): keep the batch as the first dimension."
                )
        elif outputs.dim() != 2 or len(outputs) != 2:
            raise UsageError(
                f"For two examples the module gives logits of shape {tuple(outputs.shape)}, which must be "
                "(2, classes): pool or flatten what is left of other dimensions. If it labels every position, make "
                "it a regression (kind=REGRESSION) whose targets are 1 for the right label and 0 for the others."
            )
        return tuple(outputs.shape[1:])

    @property
    def exact(self) -> bool:
        """Whether it speaks in double precision."""
        return self._dtype == torch.float64

    def _try_double(self, x: Tensor, y: Tensor) -> None:
        single = self._module
        try:
            self._module, self._dtype = copy.deepcopy(single).double(), torch.float64
            right = self._losses(self.parameters, x, y).dtype == torch.float64
        except Exception:  # whatever the caller's own module raises
            right = False
        if not right:
            self._module, self._dtype = single, torch.float32

    def examples(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return random inputs (batch, *shape), labels (batch,) or targets, and weights, of which some are 0."""
        source = torch.Generator().manual_seed(batch)
        if self._bounds is None:
            x = torch.randn(batch, *self._shape, generator=source)
        else:
            low, high = self._bounds
            x = low + (high - low) * torch.rand(batch, *self._shape, generator=source)
        if self.kind == REGRESSION:
            y = torch.randn(batch, *self.answer, generator=source)
            if self._targets is not None:
                low, high = self._targets
                y = low + (high - low) * torch.rand(batch, *self.answer, generator=source)
        else:
            y = self.chosen(batch, source)
        w = torch.ones(batch)
        w[1::3] = 0.0
        return x, y, w

    def chosen(self, batch: int, source: torch.Generator | None = None) -> Tensor:
        """Return random places in the answer, int64 (batch,): labels, or numbers to explain."""
        source = torch.Generator().manual_seed(batch) if source is None else source
        return torch.randint(0, math.prod(self.answer), (batch,), generator=source)

    def copy_of_module(self) -> nn.Module:
        """Return the module at the random parameters, in the precision of the truth."""
        module = copy.deepcopy(self._module)
        for name, value in module.named_parameters():
            value.data = self.parameters[name].to(self._dtype).clone()
            value.requires_grad_(name in self.trained)
        return module

    def losses_of(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each example, shape (batch,), by a module that stands for the truth's."""
        with _default(self._dtype):
            return self._loss(module(x.to(self._dtype)), self._right(y))

    def nearby(self, draws: int) -> Iterator[Truth]:
        """Yield truths about parameters that differ by some roundings of float32.

        Where their answers differ by more, the function has a kink there, as ReLU and pools have, and no
        program in float32 can tell on which side of it an example lies.
        """
        for draw in range(draws):
            source, other = torch.Generator().manual_seed(draw), copy.copy(self)
            other.parameters = {
                name: value.to(self._dtype)
                * (1 + ROUNDINGS * torch.randn(value.shape, dtype=self._dtype, generator=source))
                for name, value in self.parameters.items()
            }
            yield other

    def logits(self, x: Tensor) -> Tensor:
        """Return the outputs, logits or values, shape (batch, *answer)."""
        with torch.no_grad():
            return self._logits(self.parameters, x)

    def gradient(self, x: Tensor, y: Tensor, w: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the gradients of the weighted mean loss by name, and that loss."""
        leaves = self._leaves()
        weights = w.to(self._dtype)
        mean = (weights * self._losses({**self.parameters, **leaves}, x, y)).sum() / weights.sum()
        gradients = torch.autograd.grad(mean, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True)), mean.detach()

    def each(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return every example's gradient by name, (batch, *shape), and loss, (batch,), from batches of one."""
        ones = torch.ones(1)
        answers = [self.gradient(row, label, ones) for row, label in zip(x[:, None], y[:, None], strict=True)]
        gradients = {name: torch.stack([rows[name] for rows, _ in answers]) for name in self.trained}
        return gradients, torch.stack([loss for _, loss in answers])

    def explanation(self, x: Tensor, baseline: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return integrated gradients of the targets' outputs, the outputs, and what completeness lacks."""
        x, baseline = x.to(self._dtype), baseline.to(self._dtype)
        total = torch.zeros_like(x)
        for step in range(STEPS):
            point = (baseline + (step + 0.5) / STEPS * (x - baseline)).requires_grad_()
            reached = flat(self._logits(self.parameters, point)).gather(1, target[:, None]).sum()
            total += torch.autograd.grad(reached, [point])[0]
        attributions = total / STEPS * (x - baseline)
        logits = self.logits(x)
        moved = flat(logits - self.logits(baseline)).gather(1, target[:, None])[:, 0]
        return attributions, logits, attributions.flatten(1).sum(1) - moved

    def _leaves(self) -> dict[str, Tensor]:
        return {name: self.parameters[name].to(self._dtype).clone().requires_grad_() for name in self.trained}

    def _losses(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = self._logits(parameters, x)
        with _default(self._dtype):
            return self._loss(logits, self._right(y))

    def _right(self, y: Tensor) -> Tensor:
        return y.to(self._dtype) if y.is_floating_point() else y

    def _logits(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        with _default(self._dtype):
            given = {name: value.to(self._dtype) for name, value in parameters.items()}
            logits: Tensor = functional_call(self._module, given, (x.to(self._dtype),))
            return logits


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _random_parameters(module: nn.Module) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=source)
        / max(1.0, value[0].numel() if value.dim() else 1.0) ** 0.5
        for name, value in module.named_parameters()
    }
