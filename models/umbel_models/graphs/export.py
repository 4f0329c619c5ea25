"""Export a torch module as the graphs a device needs: inference, gradients, and per-example clipped ones.

A device has onnxruntime and numpy, no torch. So the derivative is taken here: ``torch.autograd`` runs
inside a trace with a symbolic batch, and what it did becomes an ordinary ONNX graph.

Every graph is compared with eager torch before it is returned (``umbel_models.graphs.verify``).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.attention import SDPBackend, sdpa_kernel

from umbel_models.graphs.decompositions import table
from umbel_models.graphs.layers import check_layers
from umbel_models.graphs.model import externalize, finish
from umbel_models.graphs.onepass import NoRuleError, clipped_gradients
from umbel_models.graphs.scan import per_example
from umbel_models.graphs.verify import verify_clipped, verify_gradient, verify_inference

OPSET = 18
MAX_BATCH = 65536

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """The graphs of one module, as serialized ONNX models.

    Args:
        infer: x -> probabilities, logits; the parameters are external initializers, by name.
        gradient: parameters, x, y, w -> ``grad.NAME`` for each parameter, loss.
        clipped: parameters, x, y, w, clip -> ``sum.NAME`` for each parameter, the sum over examples of w
            times the gradient clipped to an L2 norm of clip; the sum of w times the loss; norms before
            clipping.
    """

    infer: bytes
    gradient: bytes
    clipped: bytes


def export(module: nn.Module, loss: Loss, shape: Sequence[int]) -> Graphs:
    """Export a classifier and verify what came out.

    Layers keep the mode they are in, training or evaluation: the graphs compute what the module computes.

    Args:
        module: Maps x, shape (batch, *shape), float32, to logits, shape (batch, classes).
        loss: Maps logits and labels y, int64 (batch,), to one loss per example, shape (batch,).
        shape: Shape of one example.

    Raises:
        UsageError: The module holds a layer that cannot be exported; the message names it.
        PackageError: A graph does not compute what torch does.
    """
    check_layers(module)
    names = [name for name, _ in module.named_parameters()]
    values = [value.detach().clone() for value in module.parameters()]
    count = len(names)

    def infer(*args: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(module, dict(zip(names, args[:count], strict=True)), (args[count],))
        return torch.softmax(logits, -1), logits

    def gradient(*args: Tensor) -> tuple[Tensor, ...]:
        x, y, w = args[count:]
        leaves = [value.detach().requires_grad_() for value in args[:count]]
        with torch.enable_grad():
            logits = functional_call(module, dict(zip(names, leaves, strict=True)), (x,))
            # w is 0 or 1: an example that only fills up a batch has weight 0 and changes nothing.
            mean = (w * loss(logits, y)).sum() / w.sum()
            gradients = torch.autograd.grad(mean, leaves)
        return *(value.detach() for value in gradients), mean.detach()

    batch = _batch_unlike([*shape, *(size for value in values for size in value.shape)])
    x, y, w = torch.rand(batch, *shape), torch.zeros(batch, dtype=torch.long), torch.ones(batch)
    inference = _to_onnx(infer, values, [x], [*names, "x"], ["probabilities", "logits"])
    training = _to_onnx(
        gradient, values, [x, y, w], [*names, "x", "y", "w"], [*(f"grad.{name}" for name in names), "loss"]
    )
    infer_graph = finish(externalize(inference, names)).SerializeToString(deterministic=True)
    verify_inference(infer_graph, module, shape)
    training = finish(training)
    gradient_graph = training.SerializeToString(deterministic=True)
    verify_gradient(gradient_graph, module, loss, shape)
    return Graphs(infer_graph, gradient_graph, _clipped(module, loss, shape, values, [x, y, w], training))


def _clipped(
    module: nn.Module,
    loss: Loss,
    shape: Sequence[int],
    values: Sequence[Tensor],
    inputs: Sequence[Tensor],
    training: onnx.ModelProto,
) -> bytes:
    """Return the graph of clipped sums: in one pass where every layer has a rule, or else by scan."""
    names = [name for name, _ in module.named_parameters()]
    count = len(names)

    def clipped(*args: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, args[:count], strict=True))
        sums, total, norms = clipped_gradients(module, loss, parameters, *args[count:])
        return *(sums[name] for name in names), total, norms

    outputs = [*(f"sum.{name}" for name in names), "loss", "norms"]
    try:
        made = _to_onnx(
            clipped, values, [*inputs, torch.tensor(1.0)], [*names, "x", "y", "w", "clip"], outputs
        )
        graph = finish(made).SerializeToString(deterministic=True)
    except NoRuleError:
        graph = finish(per_example(training, names)).SerializeToString(deterministic=True)
    verify_clipped(graph, module, loss, shape)
    return graph


def _batch_unlike(sizes: Sequence[int]) -> int:
    # A batch as large as another dimension could be taken for it by the tracer: choose a prime that is not.
    return next(prime for prime in (7, 11, 13, 17, 19, 23, 29, 31, 37) if prime not in sizes)


def _to_onnx(
    function: Callable[..., tuple[Tensor, ...]],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> onnx.ModelProto:
    arguments = (*parameters, *inputs)
    with _quiet():
        traced = _trace(function, parameters, inputs)
        dimension = torch.export.Dim("batch", min=2, max=MAX_BATCH)
        shapes = (*(None for _ in parameters), *({0: dimension} if value.dim() else None for value in inputs))
        program = torch.export.export(traced, arguments, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            optimize=True,
        )
    assert exported is not None
    return exported.model_proto


def _trace(
    function: Callable[..., tuple[Tensor, ...]], parameters: Sequence[Tensor], inputs: Sequence[Tensor]
) -> GraphModule:
    fake = FakeTensorMode(shape_env=ShapeEnv(assume_static_by_default=True), allow_non_fake_inputs=True)
    inputs = [value.clone() for value in inputs]
    for value in inputs:
        if value.dim():
            torch._dynamo.mark_dynamic(value, 0)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            tracing(TracingContext(fake)),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
        ):
            traced = make_fx(
                function, tracing_mode="symbolic", decomposition_table=table(), _allow_non_fake_inputs=True
            )(*parameters, *inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter reports its progress on stdout and warns about its own internals.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
