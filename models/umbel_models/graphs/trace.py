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
import torch.fx.experimental._config as tracing_config
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.onnx._internal._lazy_import import onnxscript_apis  # type: ignore[attr-defined]

from umbel_models.graphs.decompositions import table
from umbel_models.graphs.recurrent import looped
from umbel_models.graphs.recurrent_onnx import translations

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
) -> onnx.ModelProto:
    """Return the graph of a function of parameters and inputs.

    Args:
        function: Takes the parameters and the inputs, returns the outputs.
        parameters: Whose shapes are fixed.
        inputs: Whose first dimension is the batch, of the same size in each that has one.
        input_names: Names for the parameters and the inputs.
        output_names: Names for what the function returns.
    """
    # Not asking what the batch's size might be, a trace takes half the time; but then a parameter whose size of 1
    # is stretched over the batch, as positions of shape (1, length, width), can seem to differ from it.
    try:
        exported = _exported(function, parameters, inputs, input_names, output_names, oblivious=True)
    except RuntimeError:
        exported = _exported(function, parameters, inputs, input_names, output_names, oblivious=False)
    assert exported is not None
    return exported.model_proto


def _exported(
    function: Callable[..., tuple[Tensor, ...]],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    oblivious: bool,
) -> torch.onnx.ONNXProgram | None:
    arguments = (*parameters, *inputs)
    with (
        _quiet(),
        _hurried(),
        tracing_config.patch(backed_size_oblivious=oblivious),  # type: ignore[attr-defined]
        # Nor looking for an equal operation among those traced before.
        dynamo_config.patch(fake_tensor_cache_enabled=False),
    ):
        traced = _trace(function, parameters, inputs)
        dimension = torch.export.Dim("batch", min=2, max=MAX_BATCH)
        shapes = (*(None for _ in parameters), *({0: dimension} if value.dim() else None for value in inputs))
        program = torch.export.export(traced, arguments, dynamic_shapes=shapes, strict=False)
        return torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            optimize=True,
            custom_translation_table=translations(),
        )


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
            looped(),
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
def _hurried() -> Iterator[None]:
    """Leave out what takes a third of an export: reading the exporter's operators again, and collecting garbage.

    A graph's trace makes millions of small objects, which all live until it is done.
    """
    before, collecting = onnxscript_apis.get_torchlib_ops, gc.isenabled()
    onnxscript_apis.get_torchlib_ops = _operators
    gc.disable()
    try:
        yield
    finally:
        onnxscript_apis.get_torchlib_ops = before
        if collecting:
            gc.enable()


@functools.cache
def _operators(read: Callable[[], list[Any]] = onnxscript_apis.get_torchlib_ops) -> list[Any]:
    return read()


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
