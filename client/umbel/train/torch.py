"""Training with torch, and with Opacus where each example is kept private: for a host that has them anyway.

A package holds graphs and parameters, no module. So whoever embeds umbel brings the module that the graphs
were exported from, and its loss:

    trainer = TorchTrainer(package, Net(), lambda logits, y: cross_entropy(logits, y, reduction="none"))

It trains as ``OnnxTrainer`` does, on the same draws and with the same noise; only the gradients are torch's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel._data.examples import Examples
from umbel.train import METER, Controls, Meter, TrainPlan, TrainResult
from umbel.train.descent import Weights, descend
from umbel.train.prepare import prepare
from umbel.train.summed import Summed
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_proto.manifest import FloatVector, Manifest
from umbel_proto.package import Package

try:
    import torch
    from torch import Tensor, nn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus imports what it says is deprecated.
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer
        from opacus.validators import ModuleValidator
except ImportError as _exc:
    raise MissingExtraError("torch", "Training with torch") from _exc

Loss = Callable[[Tensor, Tensor], Tensor]


class TorchTrainer:
    """Stochastic gradient descent over a torch module.

    Args:
        package: The package of the model. Its parameters are the module's, by name; their order in vectors is
            its manifest's.
        module: The network that the package was exported from; it is copied. Its own values do not matter.
        loss: Maps what the module gives and labels, int64 (batch,), or targets, float32 (batch, *answer), to one
            loss per example, (batch,).
        meter: What limits on time and energy are measured with.

    Raises:
        MissingExtraError: torch or Opacus is not installed; raised when this file is imported.
        UsageError: The module's parameters are not the manifest's.
    """

    def __init__(self, package: Package, module: nn.Module, loss: Loss, *, meter: Meter = METER) -> None:
        manifest = package.manifest
        shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
        for parameter in (*manifest.parameters, *manifest.frozen):
            if shapes.pop(parameter.name, None) != parameter.shape:
                raise UsageError(
                    f"The module has no parameter {parameter.name} of shape {parameter.shape}, as model "
                    f"{manifest.model} has: give the module that its package was exported from."
                )
        if shapes:
            raise UsageError(
                f"Model {manifest.model} has no parameter {min(shapes)}, as the module has: give the module that "
                "its package was exported from."
            )
        self._package, self._meter, self._loss = package, meter, loss
        self._module = copy.deepcopy(module).train()
        fixed = {name: torch.from_numpy(np.array(value)) for name, value in package.frozen().items()}
        for name, value in self._module.named_parameters():
            value.requires_grad_(name not in fixed)
            if name in fixed:
                value.data = fixed[name]

    def train(
        self,
        parameters: FloatVector,
        x: NDArray[Any],
        y: NDArray[Any],
        plan: TrainPlan,
        *,
        held_back: Examples | None = None,
        controls: Controls | None = None,
    ) -> TrainResult:
        """Improve a parameter vector on local examples: see ``Trainer``.

        Raises:
            UsageError: The data breaks the contract, the settings do not fit together, training diverged, or
                Opacus cannot keep the examples of this module apart.
        """
        manifest = self._package.manifest
        work = prepare(manifest, x, y, plan, held_back=held_back, controls=controls, meter=self._meter)
        current = np.array(parameters, np.float32)
        module = copy.deepcopy(self._module)
        arrays = manifest.split(current)
        values = dict(module.named_parameters())
        for name, array in arrays.items():
            values[name].data = torch.from_numpy(array)  # A view: it follows every step.
        gradients = _Gradients(module, self._loss, manifest, private=plan.privacy is not None)
        return descend(current, gradients, work)

    def close(self) -> None:
        """Do nothing: torch keeps no session."""


class _Gradients:
    """The gradients of one training's parameters, by torch.

    Args:
        module: The network, at the parameters that training changes.
        loss: One loss per example.
        manifest: Tells the order of parameters in vectors, and the shape of an example.
        private: Whether clipped gradients will be asked for, or else means.
    """

    def __init__(self, module: nn.Module, loss: Loss, manifest: Manifest, *, private: bool) -> None:
        self._loss = loss
        names = [parameter.name for parameter in manifest.parameters]
        # Any, because Opacus hangs its sums on the parameters.
        self._ordered: list[Any] = _in_order(module, names)
        self._module: nn.Module = module
        if private:
            _require_apart(copy.deepcopy(module), manifest.contract.fields[0].shape)
            # By autograd and not by Opacus' own rules: that of a convolution (1.6) is silently wrong where
            # its input is not row-major in memory, as behind numpy's newaxis.
            self._module = GradSampleModule(module, loss_reduction="sum", force_functorch=True)

    def mean(self, x: NDArray[Any], y: NDArray[Any], w: Weights) -> tuple[FloatVector, float]:
        weights = torch.from_numpy(w)
        losses = self._loss(self._module(torch.from_numpy(x)), torch.from_numpy(y))
        mean = (weights * losses).sum() / weights.sum()
        return _flat(torch.autograd.grad(mean, self._ordered)), float(mean.detach())

    def clipped(self, x: NDArray[Any], y: NDArray[Any], w: Weights, clip: float) -> tuple[Summed, float]:
        rows = w > 0
        if not rows.any():
            return Summed(np.zeros(sum(value.numel() for value in self._ordered), np.float32)), 0.0
        optimizer = DPOptimizer(
            torch.optim.SGD(self._ordered, lr=1.0),
            noise_multiplier=0.0,  # Noise is ours: the operating system's randomness, rounded to a grid.
            max_grad_norm=clip,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The first layer's input needs no gradient, torch says.
            loss = self._loss(self._module(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.clip_and_accumulate()
        sums = _flat([value.summed_grad for value in self._ordered])
        optimizer.zero_grad()
        return Summed(sums), float(loss.detach())

    def loss(self, x: NDArray[Any], y: NDArray[Any], w: Weights) -> float:
        weights = torch.from_numpy(w)
        with torch.no_grad():
            losses = self._loss(self._module(torch.from_numpy(x)), torch.from_numpy(y))
        return float((weights * losses).sum() / weights.sum())


def _require_apart(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a module in which one example changes what becomes of another.

    Opacus looks for layers that it knows to do so, and not at those without parameters: ask the module too.
    """
    errors = [str(error) for error in (*ModuleValidator.validate(module), *GradSampleModule.validate(module))]
    if not errors:
        probe = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
        (gradient,) = torch.autograd.grad(module(probe)[0].square().sum(), probe)
        if gradient[1:].any():
            errors.append("what it makes of an example depends on the others in its batch.")
    if errors:
        raise UsageError(f"Opacus cannot keep the examples of this module apart: {errors[0]}")


def _in_order(module: nn.Module, names: list[str]) -> list[nn.Parameter]:
    parameters: Mapping[str, nn.Parameter] = dict(module.named_parameters())
    return [parameters[name] for name in names]


def _flat(pieces: tuple[Tensor, ...] | list[Tensor]) -> FloatVector:
    vector: FloatVector = torch.cat([piece.detach().reshape(-1) for piece in pieces]).numpy()
    return vector
