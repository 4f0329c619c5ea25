"""Export a torch module as the graphs a device needs: inference, gradients, clipped ones, explanations.

A device has onnxruntime and numpy, no torch. So the derivative is taken here: ``torch.autograd`` runs
inside a trace with a symbolic batch, and what it did becomes an ordinary ONNX graph.

Every graph is compared with eager torch before it is returned (``umbel_models.graphs.verify``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.blame import blamed
from umbel_models.graphs.culprit import culprit
from umbel_models.graphs.explain import integrated_gradients
from umbel_models.graphs.layers import check_layers
from umbel_models.graphs.model import externalize, finish
from umbel_models.graphs.model import graphs as every_graph
from umbel_models.graphs.onepass import clipped_gradients
from umbel_models.graphs.rules import NoRuleError
from umbel_models.graphs.scan import per_example
from umbel_models.graphs.squares import squared
from umbel_models.graphs.trace import batch_unlike, to_onnx
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import (
    verify_clipped,
    verify_explain,
    verify_gradient,
    verify_inference,
    verify_opacus,
)
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.manifest import CLASSIFICATION, OUTPUTS, REGRESSION

Loss = Callable[[Tensor, Tensor], Tensor]
_SINGLE = (
    "The graphs were compared with torch in float32, as the module cannot run in float64: differences that are torch's "
    "own cannot be told from a graph's."
)


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """The graphs of one module, as serialized ONNX models.

    Inputs and outputs stand in the order given here. A parameter that a graph does not take as an input is
    an external initializer under its torch name, with the location ``params.safetensors``: in ``infer`` and
    ``explain`` all of them, in ``gradient`` and ``clipped`` those that training leaves alone. Buffers are
    constants of the graph.

    Args:
        infer: x -> probabilities, logits; of a regression, values.
        gradient: trained parameters, x, y, w -> ``grad.NAME`` for each trained parameter, loss.
        clipped: trained parameters, x, y, w, clip -> ``sum.NAME`` for each trained parameter, the sum over
            examples of w times the gradient clipped to an L2 norm of clip; the sum of w times the loss;
            norms before clipping.
        explain: x, baseline (shape of x), target int64 (batch,) -> attributions (shape of x), logits,
            residual (batch,): integrated gradients of the target's logit, and what completeness lacks; of a
            regression values instead of logits. None where no output follows x smoothly, as with the numbers of
            words.
        notes: What came out otherwise than one might expect, in plain sentences.
    """

    infer: bytes
    gradient: bytes
    clipped: bytes
    explain: bytes | None
    notes: tuple[str, ...] = ()


def export(
    module: nn.Module,
    loss: Loss,
    shape: Sequence[int],
    *,
    trainable: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
    kind: str = CLASSIFICATION,
    targets: tuple[float, float] | None = None,
    answer: tuple[int, ...] | None = None,
) -> Graphs:
    """Export a classifier or a regression and verify what came out.

    Layers keep the mode they are in, training or evaluation: the graphs compute what the module computes.

    Args:
        module: Maps x, shape (batch, *shape), float32, to logits, shape (batch, classes); of a regression to
            values, shape (batch, *answer).
        loss: Maps logits and labels y, int64 (batch,), or values and targets y, both (batch, *answer), to one loss
            per example, shape (batch,).
        shape: Shape of one example.
        trainable: Names of the parameters that training changes; all of them where there is none.
        bounds: Least and greatest value of an input, for a module that fails on others, such as one that
            looks words up by number. Without it, graphs are compared on normally distributed inputs.
        kind: ``CLASSIFICATION`` or ``REGRESSION``.
        targets: Of a regression, least and greatest target, for a loss that fails on others; without it, graphs
            are compared on normally distributed ones.
        answer: What an answer's shape must be: as many logits as there are labels, or the shape of a target; any
            where there is None.

    Raises:
        UsageError: The module holds a layer that cannot be exported, or fails on such inputs, or gives answers of
            another shape, or there is no such parameter; the message names it.
        PackageError: A graph does not compute what torch does; the message names the layer that is exported wrong, or
            says what to try next where none is by itself.
    """
    check_layers(module)
    values = {name: value.detach().clone() for name, value in module.named_parameters()}
    _check_float(values)
    trained = _trained(list(values), trainable)
    frozen = [name for name in values if name not in trained]
    truth = Truth(module, loss, shape, trained, bounds, kind=kind, targets=targets)
    _check_answer(truth.answer, answer, kind)
    notes = [] if truth.exact else [_SINGLE]
    batch = batch_unlike(
        [*shape, *truth.answer, *(size for value in values.values() for size in value.shape)]
    )
    x, w, place = torch.rand(batch, *shape), torch.ones(batch), torch.zeros(batch, dtype=torch.long)
    y = torch.zeros(batch, *truth.answer) if kind == REGRESSION else place

    def split(args: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        return dict(zip(values, args, strict=False)), args[len(values) :]

    def infer(*args: Tensor) -> tuple[Tensor, ...]:
        parameters, (x,) = split(args)
        outputs = functional_call(module, parameters, (x,))
        return (outputs,) if kind == REGRESSION else (torch.softmax(outputs, -1), outputs)

    def gradient(*args: Tensor) -> tuple[Tensor, ...]:
        parameters, (x, y, w) = split(args)
        leaves = {name: parameters[name].detach().requires_grad_() for name in trained}
        with torch.enable_grad():
            logits = functional_call(module, {**parameters, **leaves}, (x,))
            # w is 0 or 1: an example that only fills up a batch has weight 0 and changes nothing.
            mean = (w * loss(logits, y)).sum() / w.sum()
            gradients = torch.autograd.grad(mean, list(leaves.values()), materialize_grads=True)
        return *(value.detach() for value in gradients), mean.detach()

    def clipped(*args: Tensor) -> tuple[Tensor, ...]:
        parameters, rest = split(args)
        sums, total, norms = clipped_gradients(module, loss, parameters, *rest, trained=trained)
        return *(sums[name] for name in trained), total, norms

    def explain(*args: Tensor) -> tuple[Tensor, ...]:
        parameters, rest = split(args)
        return integrated_gradients(lambda x: functional_call(module, parameters, (x,)), *rest)

    def made(
        function: Callable[..., tuple[Tensor, ...]],
        inputs: dict[str, Tensor],
        outputs: Sequence[str],
        external: Sequence[str],
    ) -> onnx.ModelProto:
        try:
            graph = to_onnx(
                function,
                list(values.values()),
                list(inputs.values()),
                [*values, *inputs],
                outputs,
                trains=inputs.keys() != {"x"},
            )
        except (NoRuleError, UsageError):
            raise
        except Exception as exc:  # the tracer's and the exporter's share no other base class
            raise blamed(exc, module, truth.examples(2)[0]) from exc
        return finish(externalize(graph, external))

    def verified(
        verify: Callable[[bytes, Truth], object], graph: bytes, *, trains: bool, backward: bool
    ) -> None:
        try:
            verify(graph, truth)
        except PackageError as exc:
            raise PackageError(f"{exc} {culprit(module, truth, trains=trains, backward=backward)}") from exc

    inference = made(infer, {"x": x}, OUTPUTS[kind], list(values))
    _check_used(inference, list(values))
    infer_graph = _bytes(inference)
    verified(verify_inference, infer_graph, trains=False, backward=False)

    examples = {"x": x, "y": y, "w": w}
    training = made(gradient, examples, [*(f"grad.{name}" for name in trained), "loss"], frozen)
    gradient_graph = _bytes(training)
    verified(verify_gradient, gradient_graph, trains=True, backward=True)

    try:
        # In one pass where every layer has a rule, or else, or where the rules do not hold, by scan.
        outputs = [*(f"sum.{name}" for name in trained), "loss", "norms"]
        summed = made(clipped, {**examples, "clip": torch.tensor(1.0)}, outputs, frozen)
        clipped_graph = _bytes(squared(summed))
        verify_clipped(clipped_graph, truth)
    except (NoRuleError, PackageError) as exc:
        notes.append(_looped(exc))
        clipped_graph = _bytes(finish(per_example(training, trained)))
        verified(verify_clipped, clipped_graph, trains=True, backward=True)

    if unasked := verify_opacus(clipped_graph, truth):
        notes.append(unasked)

    explain_graph = None
    if truth.smooth:
        places = {"x": x, "baseline": torch.zeros_like(x), "target": place}
        outputs = ["attributions", OUTPUTS[kind][-1], "residual"]
        explain_graph = _bytes(made(explain, places, outputs, list(values)))
        verified(verify_explain, explain_graph, trains=False, backward=True)
    else:
        notes.append("There is no explanation graph: no output follows the input smoothly.")
    return Graphs(infer_graph, gradient_graph, clipped_graph, explain_graph, tuple(notes))


def _looped(why: NoRuleError | PackageError) -> str:
    reason = f"{why}".rstrip(".")
    if isinstance(why, PackageError):
        reason = f"the graph of one pass failed its verification: {reason}"
    return f"Clipped gradients loop over the examples, which is exact and slower than one pass: {reason}."


def _check_used(inference: onnx.ModelProto, names: Sequence[str]) -> None:
    read = {name for graph in every_graph(inference.graph) for node in graph.node for name in node.input}
    if unused := [name for name in names if name not in read]:
        raise UsageError(
            f"The module never uses its parameters {', '.join(unused)}: use them in forward, or take them out of it."
        )


def _check_answer(given: tuple[int, ...], wanted: tuple[int, ...] | None, kind: str) -> None:
    if wanted is None or given == wanted:
        return
    if kind == REGRESSION:
        raise UsageError(
            f"The module gives values of shape {given} for an example, and its targets y have the shape {wanted}: give "
            "both the same."
        )
    raise UsageError(
        f"The module gives {given[0]} logits for an example, and there are {wanted[0]} labels: name as many as its last "
        "layer has outputs."
    )


def _check_float(values: Mapping[str, Tensor]) -> None:
    if odd := [f"{name} ({value.dtype})" for name, value in values.items() if value.dtype != torch.float32]:
        raise UsageError(
            f"Parameters must be float32, and {', '.join(odd)} are not: call float() on the module."
        )


def _trained(names: Sequence[str], trainable: Sequence[str]) -> list[str]:
    if unknown := sorted(set(trainable) - set(names)):
        raise UsageError(
            f"The module has no parameter {', '.join(unknown)}: name some of {', '.join(names)}, as its "
            "named_parameters() does."
        )
    return [name for name in names if not trainable or name in trainable]


def _bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data
