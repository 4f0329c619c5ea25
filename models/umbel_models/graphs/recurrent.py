"""GRU, LSTM and RNN layers as one loop in a graph, forward and backward, instead of a copy per time step.

Unrolled, 128 steps take minutes to export and a megabyte to ship. Here each cell is a pair of operators of
torch, forward and backward, each with its translation to ONNX's ``Scan``
(``umbel_models.graphs.recurrent_onnx``). Layers are computed with them while they are traced; where no gradient
runs through a GRU or LSTM, as in inference, with one operator for the whole of it
(``umbel_models.graphs.recurrent_layer``).

Shapes: T time steps, B examples, H hidden units, G * H gates before their nonlinearity (GRU: G = 3,
LSTM: G = 4, RNN: G = 1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from umbel_models.graphs.recurrent_layer import recurrent
from umbel_proto.errors import UsageError


@torch.library.custom_op("umbel::gru", mutates_args=())
def gru(
    given: Tensor, start: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the states of a GRU and what its gradient needs, each (T, B, H).

    Args:
        given: The input's part of the gates reset, update and new, shape (T, B, 3 H).
        start: State before the first step, shape (B, H).
        weight: Of the recurrence, shape (3 H, H).
        bias: Of the recurrence, shape (3 H,).

    Returns:
        States; reset gates; update gates; candidates; the recurrence's part of the candidates.
    """
    steps, h = [], start
    for row in given:
        r, z, n = row.chunk(3, -1)
        hr, hz, hn = (h @ weight.t() + bias).chunk(3, -1)
        r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
        n = torch.tanh(n + r * hn)
        h = n + z * (h - n)
        steps.append((h, r, z, n, hn))
    states, reset, update, new, part = (torch.stack(each) for each in zip(*steps, strict=True))
    return states, reset, update, new, part


@torch.library.custom_op("umbel::gru_backward", mutates_args=())
def gru_backward(
    grad: Tensor, before: Tensor, reset: Tensor, update: Tensor, new: Tensor, part: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by ``given`` and by the recurrence's part, (T, B, 3 H), and by ``start``, (B, H).

    Args:
        grad: Gradient by the states, shape (T, B, H).
        before: State before each step, shape (T, B, H).
        reset: As ``gru`` returned it, like the three that follow.
        update: Update gates.
        new: Candidates.
        part: The recurrence's part of the candidates.
        weight: Of the recurrence, shape (3 H, H).
    """
    carried = torch.zeros_like(grad[0])
    inputs, recurrent = [], []
    for g, h, r, z, n, hn in _backwards(grad, before, reset, update, new, part):
        d = g + carried
        dn = d * (1.0 - z) * (1.0 - n * n)
        dz = d * (h - n) * z * (1.0 - z)
        dr = dn * hn * r * (1.0 - r)
        inputs.append(torch.cat([dr, dz, dn], -1))
        recurrent.append(torch.cat([dr, dz, dn * r], -1))
        carried = d * z + recurrent[-1] @ weight
    return torch.stack(inputs[::-1]), torch.stack(recurrent[::-1]), carried


@torch.library.custom_op("umbel::lstm", mutates_args=())
def lstm(given: Tensor, start: Tensor, cell: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states and cells of an LSTM, each (T, B, H), and its gates, (T, B, 4 H).

    Args:
        given: Both biases and the input's part of the gates input, forget, cell and output, (T, B, 4 H).
        start: State before the first step, shape (B, H).
        cell: Cell before the first step, shape (B, H).
        weight: Of the recurrence, shape (4 H, H).
    """
    steps, h, c = [], start, cell
    for row in given:
        i, f, g, o = (row + h @ weight.t()).chunk(4, -1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        c = f * c + i * g
        h = o * torch.tanh(c)
        steps.append((h, c, torch.cat([i, f, g, o], -1)))
    states, cells, gates = (torch.stack(each) for each in zip(*steps, strict=True))
    return states, cells, gates


@torch.library.custom_op("umbel::lstm_backward", mutates_args=())
def lstm_backward(
    grad: Tensor, grad_cell: Tensor, before: Tensor, cells: Tensor, gates: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by ``given``, (T, B, 4 H), by ``start`` and by ``cell``, each (B, H).

    Args:
        grad: Gradient by the states, shape (T, B, H).
        grad_cell: Gradient by the cells, shape (T, B, H).
        before: Cell before each step, shape (T, B, H).
        cells: As ``lstm`` returned them, like ``gates``.
        gates: After their nonlinearity.
        weight: Of the recurrence, shape (4 H, H).
    """
    dh, dc = torch.zeros_like(grad[0]), torch.zeros_like(grad[0])
    inputs = []
    for gh, gc, c0, c, gate in _backwards(grad, grad_cell, before, cells, gates):
        i, f, g, o = gate.chunk(4, -1)
        d, squashed = gh + dh, torch.tanh(c)
        dc = dc + gc + d * o * (1.0 - squashed * squashed)
        di, df = dc * g * i * (1.0 - i), dc * c0 * f * (1.0 - f)
        dg, do = dc * i * (1.0 - g * g), d * squashed * o * (1.0 - o)
        inputs.append(torch.cat([di, df, dg, do], -1))
        dh, dc = inputs[-1] @ weight, dc * f
    return torch.stack(inputs[::-1]), dh, dc


@torch.library.custom_op("umbel::rnn", mutates_args=())
def rnn(given: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """Return the states of an RNN with tanh, shape (T, B, H).

    Args:
        given: Both biases and the input's part, shape (T, B, H).
        start: State before the first step, shape (B, H).
        weight: Of the recurrence, shape (H, H).
    """
    states, h = [], start
    for row in given:
        h = torch.tanh(row + h @ weight.t())
        states.append(h)
    return torch.stack(states)


@torch.library.custom_op("umbel::rnn_backward", mutates_args=())
def rnn_backward(grad: Tensor, states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by ``given``, (T, B, H), and by ``start``, (B, H).

    Args:
        grad: Gradient by the states, shape (T, B, H).
        states: As ``rnn`` returned them.
        weight: Of the recurrence, shape (H, H).
    """
    carried = torch.zeros_like(grad[0])
    inputs = []
    for g, h in _backwards(grad, states):
        inputs.append((g + carried) * (1.0 - h * h))
        carried = inputs[-1] @ weight
    return torch.stack(inputs[::-1]), carried


def _backwards(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(each.flip(0) for each in sequences), strict=True)


@gru.register_fake
def _(given: Tensor, start: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return tuple(start.new_empty(given.shape[0], *start.shape) for _ in range(5))


@gru_backward.register_fake
def _(grad: Tensor, before: Tensor, *_rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gates = (*grad.shape[:2], 3 * grad.shape[2])
    return grad.new_empty(gates), grad.new_empty(gates), grad.new_empty(grad.shape[1:])


@lstm.register_fake
def _(given: Tensor, start: Tensor, cell: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    states = (given.shape[0], *start.shape)
    return given.new_empty(states), given.new_empty(states), given.new_empty(given.shape)


@lstm_backward.register_fake
def _(
    grad: Tensor, grad_cell: Tensor, before: Tensor, cells: Tensor, gates: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    step = grad.shape[1:]
    return gates.new_empty(gates.shape), grad.new_empty(step), grad.new_empty(step)


@rnn.register_fake
def _(given: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    return given.new_empty(given.shape)


@rnn_backward.register_fake
def _(grad: Tensor, states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape[1:])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    results = output if isinstance(output, tuple) else (output,)
    ctx.save_for_backward(*inputs[1:], *results)


def _grad_gru(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    start, weight, _bias, states, *saved = ctx.saved_tensors
    before = torch.cat([start[None], states[:-1]])
    given, recurrent, first = gru_backward(grad, before, *saved, weight)
    return given, first, _grad_weight(recurrent, before), recurrent.sum((0, 1))


def _grad_lstm(ctx: Any, grad: Tensor, grad_cell: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    start, cell, weight, states, cells, gates = ctx.saved_tensors
    before = torch.cat([cell[None], cells[:-1]])
    given, first, first_cell = lstm_backward(grad, grad_cell, before, cells, gates, weight)
    return given, first, first_cell, _grad_weight(given, torch.cat([start[None], states[:-1]]))


def _grad_rnn(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    start, weight, states = ctx.saved_tensors
    given, first = rnn_backward(grad, states, weight)
    return given, first, _grad_weight(given, torch.cat([start[None], states[:-1]]))


def _grad_weight(gates: Tensor, before: Tensor) -> Tensor:
    return gates.flatten(0, 1).t() @ before.flatten(0, 1)


gru.register_autograd(_grad_gru, setup_context=_save)
lstm.register_autograd(_grad_lstm, setup_context=_save)
rnn.register_autograd(_grad_rnn, setup_context=_save)

State = Tensor | tuple[Tensor, Tensor] | None


@contextlib.contextmanager
def looped() -> Iterator[None]:
    """Let every GRU, LSTM and RNN layer compute with the operators above for a while."""
    before = {kind: kind.forward for kind in (nn.GRU, nn.LSTM, nn.RNN)}
    for kind in before:
        kind.forward = _forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for kind, forward in before.items():
            kind.forward = forward  # type: ignore[method-assign]


def _forward(layer: nn.RNNBase, x: Tensor, state: State = None) -> tuple[Tensor, State]:
    if not isinstance(x, Tensor) or x.dim() != 3:
        raise UsageError(
            f"A {type(layer).__name__} is exported for a batch of sequences of one length: give it an array of "
            "three dimensions, and pad short sequences."
        )
    ways = 2 if layer.bidirectional else 1
    x = x.transpose(0, 1) if layer.batch_first else x
    starts = _starts(layer, x, state, ways)
    ends: list[Sequence[Tensor]] = []
    for level in range(layer.num_layers):
        found = []
        for way in range(ways):
            states, end = _run(layer, f"_l{level}{'_reverse' * way}", x, starts[len(ends)], reverse=way == 1)
            found.append(states)
            ends.append(end)
        x = torch.cat(found, -1) if ways == 2 else found[0]
    last = tuple(torch.stack(each) for each in zip(*ends, strict=True))
    out = x.transpose(0, 1) if layer.batch_first else x
    return out, (last[0], last[1]) if isinstance(layer, nn.LSTM) else last[0]


def _starts(layer: nn.RNNBase, x: Tensor, state: State, ways: int) -> list[tuple[Tensor, ...]]:
    count = layer.num_layers * ways
    if state is None:
        return [()] * count
    given = state if isinstance(state, tuple) else (state,)
    return [tuple(each[i] for each in given) for i in range(count)]


def _run(
    layer: nn.RNNBase, suffix: str, x: Tensor, start: tuple[Tensor, ...], *, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the states of one level in one direction, (T, B, H), and its last state, and cell."""
    weight_in, weight = getattr(layer, f"weight_ih{suffix}"), getattr(layer, f"weight_hh{suffix}")
    bias_in = getattr(layer, f"bias_ih{suffix}") if layer.bias else None
    bias = getattr(layer, f"bias_hh{suffix}") if layer.bias else None
    parts = 2 if isinstance(layer, nn.LSTM) else 1
    learned = _learned_through(x, weight_in, weight, bias_in, bias, *start)
    if isinstance(layer, nn.GRU | nn.LSTM) and not learned:
        kind, begun = "GRU" if parts == 1 else "LSTM", (*start, None, None)[:2]
        states, *ends = recurrent(kind, x, weight_in, weight, bias_in, bias, *begun, reverse)
        return states, tuple(ends[:parts])
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    start = start or tuple(x.new_zeros(x.shape[1], layer.hidden_size) for _ in range(parts))
    given = nn.functional.linear(x.flip(0) if reverse else x, weight_in, bias_in)
    if isinstance(layer, nn.GRU):
        states, ends = gru(given, *start, weight, bias)[0], []
    elif isinstance(layer, nn.LSTM):
        states, cells, _ = lstm(given + bias, *start, weight)
        ends = [cells[-1]]
    else:
        states, ends = rnn(given + bias, *start, weight), []
    end = (states[-1], *ends)
    return states.flip(0) if reverse else states, end


def _learned_through(*values: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in values)
