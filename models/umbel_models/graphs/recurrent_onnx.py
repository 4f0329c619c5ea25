"""What the operators of ``umbel_models.graphs.recurrent`` are in ONNX: one ``Scan`` over time for each.

onnxscript reads the functions as ONNX, not as Python: so they are not type-checked. That of
``umbel_models.graphs.recurrent_layer`` is ONNX's own operator of that name, and ``whole`` writes it.
"""

# mypy: ignore-errors
# ruff: noqa: D103

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

from umbel_models.graphs import recurrent, recurrent_layer  # noqa: F401  (which register the operators)

# Where ONNX's gates stand among torch's: update, reset, new; input, output, forget, cell.
_ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


@script()
def gru(given: FLOAT, start: FLOAT, weight: FLOAT, bias: FLOAT) -> tuple[FLOAT, FLOAT, FLOAT, FLOAT, FLOAT]:
    across = op.Transpose(weight, perm=[1, 0])

    @graph()
    def step(h, row):
        r0, z0, n0 = op.Split(row, num_outputs=3, axis=-1)
        hr, hz, hn = op.Split(op.Add(op.MatMul(h, across), bias), num_outputs=3, axis=-1)
        r = op.Sigmoid(op.Add(r0, hr))
        z = op.Sigmoid(op.Add(z0, hz))
        n = op.Tanh(op.Add(n0, op.Mul(r, hn)))
        after = op.Add(n, op.Mul(z, op.Sub(h, n)))
        state = op.Identity(after)
        part = op.Identity(hn)
        return after, state, r, z, n, part

    _, states, reset, update, new, part = op.Scan(start, given, body=step, num_scan_inputs=1)
    return states, reset, update, new, part


@script()
def gru_backward(
    grad: FLOAT, before: FLOAT, reset: FLOAT, update: FLOAT, new: FLOAT, part: FLOAT, weight: FLOAT
) -> tuple[FLOAT, FLOAT, FLOAT]:
    one = op.Constant(value_float=1.0)
    nothing = op.Sub(op.Gather(grad, op.Constant(value_int=0)), op.Gather(grad, op.Constant(value_int=0)))

    @graph()
    def step(carried, g, h, r, z, n, hn):
        d = op.Add(g, carried)
        dn = op.Mul(op.Mul(d, op.Sub(one, z)), op.Sub(one, op.Mul(n, n)))
        dz = op.Mul(op.Mul(d, op.Sub(h, n)), op.Mul(z, op.Sub(one, z)))
        dr = op.Mul(op.Mul(dn, hn), op.Mul(r, op.Sub(one, r)))
        by_input = op.Concat(dr, dz, dn, axis=-1)
        by_state = op.Concat(dr, dz, op.Mul(dn, r), axis=-1)
        after = op.Add(op.Mul(d, z), op.MatMul(by_state, weight))
        return after, by_input, by_state

    first, by_input, by_state = op.Scan(
        nothing,
        grad,
        before,
        reset,
        update,
        new,
        part,
        body=step,
        num_scan_inputs=6,
        scan_input_directions=[1, 1, 1, 1, 1, 1],
        scan_output_directions=[1, 1],
    )
    return by_input, by_state, first


@script()
def lstm(given: FLOAT, start: FLOAT, cell: FLOAT, weight: FLOAT) -> tuple[FLOAT, FLOAT, FLOAT]:
    across = op.Transpose(weight, perm=[1, 0])

    @graph()
    def step(h, c, row):
        i0, f0, g0, o0 = op.Split(op.Add(row, op.MatMul(h, across)), num_outputs=4, axis=-1)
        i = op.Sigmoid(i0)
        f = op.Sigmoid(f0)
        g = op.Tanh(g0)
        o = op.Sigmoid(o0)
        c_after = op.Add(op.Mul(f, c), op.Mul(i, g))
        h_after = op.Mul(o, op.Tanh(c_after))
        state = op.Identity(h_after)
        kept = op.Identity(c_after)
        gates = op.Concat(i, f, g, o, axis=-1)
        return h_after, c_after, state, kept, gates

    _, _, states, cells, gates = op.Scan(start, cell, given, body=step, num_scan_inputs=1)
    return states, cells, gates


@script()
def lstm_backward(
    grad: FLOAT, grad_cell: FLOAT, before: FLOAT, cells: FLOAT, gates: FLOAT, weight: FLOAT
) -> tuple[FLOAT, FLOAT, FLOAT]:
    one = op.Constant(value_float=1.0)
    nothing = op.Sub(op.Gather(grad, op.Constant(value_int=0)), op.Gather(grad, op.Constant(value_int=0)))

    @graph()
    def step(dh, dc, gh, gc, c0, c, gate):
        i, f, g, o = op.Split(gate, num_outputs=4, axis=-1)
        d = op.Add(gh, dh)
        squashed = op.Tanh(c)
        through = op.Mul(op.Mul(d, o), op.Sub(one, op.Mul(squashed, squashed)))
        whole = op.Add(op.Add(dc, gc), through)
        di = op.Mul(op.Mul(whole, g), op.Mul(i, op.Sub(one, i)))
        df = op.Mul(op.Mul(whole, c0), op.Mul(f, op.Sub(one, f)))
        dg = op.Mul(op.Mul(whole, i), op.Sub(one, op.Mul(g, g)))
        do = op.Mul(op.Mul(d, squashed), op.Mul(o, op.Sub(one, o)))
        by_input = op.Concat(di, df, dg, do, axis=-1)
        dh_after = op.MatMul(by_input, weight)
        dc_after = op.Mul(whole, f)
        return dh_after, dc_after, by_input

    first, first_cell, by_input = op.Scan(
        nothing,
        nothing,
        grad,
        grad_cell,
        before,
        cells,
        gates,
        body=step,
        num_scan_inputs=5,
        scan_input_directions=[1, 1, 1, 1, 1],
        scan_output_directions=[1],
    )
    return by_input, first, first_cell


@script()
def rnn(given: FLOAT, start: FLOAT, weight: FLOAT) -> FLOAT:
    across = op.Transpose(weight, perm=[1, 0])

    @graph()
    def step(h, row):
        after = op.Tanh(op.Add(row, op.MatMul(h, across)))
        state = op.Identity(after)
        return after, state

    _, states = op.Scan(start, given, body=step, num_scan_inputs=1)
    return states


@script()
def rnn_backward(grad: FLOAT, states: FLOAT, weight: FLOAT) -> tuple[FLOAT, FLOAT]:
    one = op.Constant(value_float=1.0)
    nothing = op.Sub(op.Gather(grad, op.Constant(value_int=0)), op.Gather(grad, op.Constant(value_int=0)))

    @graph()
    def step(carried, g, h):
        by_input = op.Mul(op.Add(g, carried), op.Sub(one, op.Mul(h, h)))
        after = op.MatMul(by_input, weight)
        given = op.Identity(by_input)
        return after, given

    first, by_input = op.Scan(
        nothing,
        grad,
        states,
        body=step,
        num_scan_inputs=2,
        scan_input_directions=[1, 1],
        scan_output_directions=[1],
    )
    return by_input, first


def whole(kind: str, x, weight_in, weight, bias_in, bias, start, cell, reverse: bool):
    """Add one GRU or LSTM operator: the values are those of the graph that is being made."""
    first, across = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    biases = [_reordered(kind, each) for each in (bias_in, bias) if each is not None]
    given = [
        x,
        *(op.Unsqueeze(_reordered(kind, each), first) for each in (weight_in, weight)),
        op.Unsqueeze(op.Concat(*biases, axis=0), first) if biases else None,
        None,  # every sequence has the same length
        None if start is None else op.Unsqueeze(start, first),
    ]
    settings = {"hidden_size": int(weight.shape[1]), "direction": "reverse" if reverse else "forward"}
    if kind == "GRU":
        # torch's way: the reset gate works on the product with the state, not on the state.
        states, state = op.GRU(*given, linear_before_reset=1, **settings)
        last = state
    else:
        given.append(None if cell is None else op.Unsqueeze(cell, first))
        states, state, last = op.LSTM(*given, **settings)
    return op.Squeeze(states, across), op.Squeeze(state, first), op.Squeeze(last, first)


def _reordered(kind: str, gates):
    parts = op.Split(gates, num_outputs=len(_ORDER[kind]), axis=0)
    return op.Concat(*(parts[place] for place in _ORDER[kind]), axis=0)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of each operator, for ``torch.onnx.export``."""
    ops = torch.ops.umbel
    return {
        ops.gru.default: gru,
        ops.gru_backward.default: gru_backward,
        ops.lstm.default: lstm,
        ops.lstm_backward.default: lstm_backward,
        ops.rnn.default: rnn,
        ops.rnn_backward.default: rnn_backward,
        ops.recurrent.default: whole,
    }
