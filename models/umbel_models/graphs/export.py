"""Export a torch module as the graphs a device needs: inference, gradients, clipped ones, explanations.

A device has onnxruntime and numpy, no torch. So the derivative is taken here: ``torch.autograd`` runs
inside a trace with a symbolic batch, and what it did becomes an ordinary ONNX graph.

Every graph is compared with eager torch before it is returned (``umbel_models.graphs.verify``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.blame import blamed
from umbel_models.graphs.explain import integrated_gradients
from umbel_models.graphs.layers import check_layers
from umbel_models.graphs.model import externalize, finish
from umbel_models.graphs.onepass import clipped_gradients
from umbel_models.graphs.rules import NoRuleError
from umbel_models.graphs.scan import per_example
from umbel_models.graphs.trace import batch_unlike, to_onnx
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import verify_clipped, verify_explain, verify_gradient, verify_inference
from umbel_proto.errors import PackageError, UsageError

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """The graphs of one module, as serialized ONNX models.

    Inputs and outputs stand in the order given here. A parameter that a graph does not take as an input is
    an external initializer under its torch name, with the location ``params.safetensors``: in ``infer`` and
    ``explain`` all of them, in ``gradient`` and ``clipped`` those that training leaves alone. Buffers are
    constants of the graph.

    Args:
        infer: x -> probabilities, logits.
        gradient: trained parameters, x, y, w -> ``grad.NAME`` for each trained parameter, loss.
        clipped: trained parameters, x, y, w, clip -> ``sum.NAME`` for each trained parameter, the sum over
            examples of w times the gradient clipped to an L2 norm of clip; the sum of w times the loss;
            norms before clipping.
        explain: x, baseline (shape of x), target int64 (batch,) -> attributions (shape of x), logits,
            residual (batch,): integrated gradients of the target's logit, and what completeness lacks. None
            where no logit follows x smoothly, as with the numbers of words.
    """

    infer: bytes
    gradient: bytes
    clipped: bytes
    explain: bytes | None


def export(
    module: nn.Module,
    loss: Loss,
    shape: Sequence[int],
    *,
    trainable: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
) -> Graphs:
    """Export a classifier and verify what came out.

    Layers keep the mode they are in, training or evaluation: the graphs compute what the module computes.

    Args:
        module: Maps x, shape (batch, *shape), float32, to logits, shape (batch, classes).
        loss: Maps logits and labels y, int64 (batch,), to one loss per example, shape (batch,).
        shape: Shape of one example.
        trainable: Names of the parameters that training changes; all of them where there is none.
        bounds: Least and greatest value of an input, for a module that fails on others, such as one that
            looks words up by number. Without it, graphs are compared on normally distributed inputs.

    Raises:
        UsageError: The module holds a layer that cannot be exported, or fails on such inputs, or there is no
            such parameter; the message names it.
        PackageError: A graph does not compute what torch does.
    """
    check_layers(module)
    values = {name: value.detach().clone() for name, value in module.named_parameters()}
    trained = _trained(list(values), trainable)
    frozen = [name for name in values if name not in trained]
    truth = Truth(module, loss, shape, trained, bounds)
    batch = batch_unlike([*shape, *(size for value in values.values() for size in value.shape)])
    x, y, w = torch.rand(batch, *shape), torch.zeros(batch, dtype=torch.long), torch.ones(batch)

    def split(args: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        return dict(zip(values, args, strict=False)), args[len(values) :]

    def infer(*args: Tensor) -> tuple[Tensor, Tensor]:
        parameters, (x,) = split(args)
        logits = functional_call(module, parameters, (x,))
        return torch.softmax(logits, -1), logits

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
                function, list(values.values()), list(inputs.values()), [*values, *inputs], outputs
            )
        except (NoRuleError, UsageError):
            raise
        except Exception as exc:  # the tracer's and the exporter's share no other base class
            raise blamed(exc, module, truth.examples(2)[0]) from exc
        return finish(externalize(graph, external))

    infer_graph = _bytes(made(infer, {"x": x}, ["probabilities", "logits"], list(values)))
    verify_inference(infer_graph, truth)

    examples = {"x": x, "y": y, "w": w}
    training = made(gradient, examples, [*(f"grad.{name}" for name in trained), "loss"], frozen)
    gradient_graph = _bytes(training)
    verify_gradient(gradient_graph, truth)

    try:
        # In one pass where every layer has a rule, or else, or where the rules do not hold, by scan.
        outputs = [*(f"sum.{name}" for name in trained), "loss", "norms"]
        clipped_graph = _bytes(made(clipped, {**examples, "clip": torch.tensor(1.0)}, outputs, frozen))
        verify_clipped(clipped_graph, truth)
    except (NoRuleError, PackageError):
        clipped_graph = _bytes(finish(per_example(training, trained)))
        verify_clipped(clipped_graph, truth)

    explain_graph = None
    if truth.smooth:
        places = {"x": x, "baseline": torch.zeros_like(x), "target": y}
        outputs = ["attributions", "logits", "residual"]
        explain_graph = _bytes(made(explain, places, outputs, list(values)))
        verify_explain(explain_graph, truth)
    return Graphs(infer_graph, gradient_graph, clipped_graph, explain_graph)


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
