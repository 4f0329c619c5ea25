"""A torch function as an ONNX model: traced with its derivative inside, for a batch of any size."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import torch
import torch._dynamo.config as dynamo_config
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.onnx._internal._lazy_import import onnxscript_apis  # type: ignore[attr-defined]
from torch.onnx._internal.exporter import _decomp, _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

from umbel_models.graphs.decompositions import table
from umbel_models.graphs.rectified import pooled_first
from umbel_models.graphs.recurrent import looped
from umbel_models.graphs.recurrent_onnx import translations
from umbel_models.graphs.tidy import tidied

OPSET = 18
MAX_BATCH = 65536


def batch_unlike(sizes: Sequence[int]) -> int:
    """Return how many examples to trace with: a prime that no other dimension has.

    A batch as large as another dimension could be taken for it by the tracer.
    """
    return next(prime for prime in (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53) if prime not in sizes)


def to_onnx(
    function: Callable[..., tuple[Tensor, ...]],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    trains: bool = False,
) -> onnx.ModelProto:
    """Return the graph of a function of parameters and inputs.

    Args:
        function: Takes the parameters and the inputs, returns the outputs.
        parameters: Whose shapes are fixed.
        inputs: Whose first dimension is the batch, of the same size in each that has one.
        input_names: Names for the parameters and the inputs.
        output_names: Names for what the function returns.
        trains: Whether it is for batches and their gradients: operators are then put so that those are fast.
    """
    with (
        _quiet(),
        _hurried(),
        # Looking for an equal operation among those traced before takes longer than tracing it.
        dynamo_config.patch(fake_tensor_cache_enabled=False),
    ):
        traced = _trace(function, parameters, inputs, trains)
        dimension = torch.export.Dim("batch", min=2, max=MAX_BATCH)
        shapes = (*(None for _ in parameters), *({0: dimension} if value.dim() else None for value in inputs))
        program = torch.export.export(traced, (*parameters, *inputs), dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            optimize=True,
            custom_translation_table=translations(),
        )
    assert exported is not None
    return exported.model_proto


def _trace(
    function: Callable[..., tuple[Tensor, ...]],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    trains: bool,
) -> GraphModule:
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def stand_in(place: int, value: Tensor) -> Tensor:
        # The batch alone is a symbol. Left to itself the tracer makes one of every size, and asks algebra about
        # each of them at every operation: a trace of a small network then takes ten times as long.
        sizes = [DimDynamic.STATIC] * value.dim()
        if sizes and place >= len(parameters):
            sizes[0] = DimDynamic.DUCK
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
        return fake.from_tensor(value, source=ConstantSource(f"input{place}"), symbolic_context=context)

    arguments = [stand_in(place, value.clone()) for place, value in enumerate((*parameters, *inputs))]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            tracing(TracingContext(fake)),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            looped(),
            pooled_first() if trains else contextlib.nullcontext(),
            fake,
            enable_python_dispatcher(),
        ):
            traced = make_fx(function, decomposition_table=table(trains=trains), _allow_non_fake_inputs=True)(
                *arguments
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return tidied(traced)


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """Leave out what takes half of an export.

    That is reading the exporter's operators again; tracing a graph again that holds none that has to be taken
    apart; and collecting garbage, where millions of small objects all live until the trace is done.
    """
    operators, decompose = onnxscript_apis.get_torchlib_ops, _fx_passes.decompose_with_registry
    collecting = gc.isenabled()
    onnxscript_apis.get_torchlib_ops = _operators
    _fx_passes.decompose_with_registry = functools.partial(_decomposed, decompose)
    gc.disable()
    try:
        yield
    finally:
        onnxscript_apis.get_torchlib_ops = operators
        _fx_passes.decompose_with_registry = decompose
        if collecting:
            gc.enable()


@functools.cache
def _operators(read: Callable[[], list[Any]] = onnxscript_apis.get_torchlib_ops) -> list[Any]:
    return read()


def _decomposed(
    decompose: Callable[[ExportedProgram, ONNXRegistry], ExportedProgram],
    program: ExportedProgram,
    registry: ONNXRegistry,
) -> ExportedProgram:
    known = set(_decomp.get_onnx_implemented_overloads(registry))
    graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, GraphModule)]
    operators = {
        node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)
    }
    return program if operators <= known else decompose(program, registry)


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
