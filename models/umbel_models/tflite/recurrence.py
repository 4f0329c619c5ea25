"""Recurrent layers, unrolled: TFLite's own want other gates, or states that outlive a call.

A layer over T steps becomes T times its cell, written in ONNX. The products with the input are taken once
for all steps; those with the state, once a step with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from umbel_models.tflite.errors import UnsupportedOperatorError
from umbel_models.tflite.flatbuffer import RECURRENT, Shape

Constants = dict[str, NDArray[Any]]
_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
_ACTIVATIONS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "RNN": ["Tanh"]}
_MAX_NODES = 50_000


def unroll(proto: NodeProto, shapes: Mapping[str, Shape], constants: Constants) -> list[NodeProto] | None:
    """Return the nodes that a recurrent node stands for, or None where it is none, or not yet known enough.

    Args:
        proto: The node.
        shapes: Shapes known by now.
        constants: Values known by now; those that the new nodes read are added.

    Raises:
        UnsupportedOperatorError: It uses what is not unrolled.
    """
    if proto.op_type == "Scan":
        made = _scan(proto, shapes, constants)
    elif proto.op_type in _GATES and proto.input[0] in shapes:
        made = _Layer(proto, shapes, constants).nodes
    else:
        return None
    for node in made or ():
        node.doc_string = RECURRENT
    return made


def _refuse(proto: NodeProto, problem: str, cure: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(proto.op_type, proto.name or proto.output[0], problem, cure)


class _Layer:
    """One GRU, LSTM or RNN node: both directions, all steps."""

    def __init__(self, proto: NodeProto, shapes: Mapping[str, Shape], constants: Constants) -> None:
        self.nodes: list[NodeProto] = []
        self._proto, self._constants = proto, constants
        self._prefix = next(filter(None, proto.output))
        given = {each.name: helper.get_attribute_value(each) for each in proto.attribute}
        self._size = int(given["hidden_size"])
        self._steps = shapes[proto.input[0]][0]
        direction = given.get("direction", b"forward").decode()
        reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
        self._check(given, len(reverse))
        ends = [self._run(place, backwards) for place, backwards in enumerate(reverse)]
        self._finish(ends)

    def _check(self, given: Mapping[str, Any], directions: int) -> None:
        proto = self._proto
        expected = _ACTIVATIONS[proto.op_type] * directions
        named = [name.decode() for name in given.get("activations", [])] or expected
        if proto.op_type == "RNN" and set(named) == {"Relu"}:
            expected = named
        if named != expected or "clip" in given or given.get("input_forget", 0) or given.get("layout", 0):
            raise _refuse(proto, "has activations, clipping or a layout of its own", "use torch's layers")
        if proto.op_type == "GRU" and not given.get("linear_before_reset", 0):
            raise _refuse(proto, "resets before its product", "use linear_before_reset=1, as torch does")
        self._activation = named[0]
        if len(proto.input) > 7 and proto.input[7]:
            raise _refuse(proto, "has peepholes", "use torch's LSTM, which has none")
        if len(proto.input) > 4 and proto.input[4]:
            raise _refuse(proto, "has sequences of unequal length", "pad them all to one length")

    def _run(self, place: int, backwards: bool) -> tuple[list[str], str | None]:
        """Add one direction; return the state after each step, and the last cell state of an LSTM."""
        gates = _GATES[self._proto.op_type] * self._size
        weight, recurrent = (self._array(index, place).T for index in (1, 2))
        bias = np.zeros(2 * gates, np.float32)
        if len(self._proto.input) > 3 and self._proto.input[3]:
            bias = self._array(3, place)
        product = self._add("MatMul", self._proto.input[0], self._keep(weight))
        products = self._add("Add", product, self._keep(bias[:gates]))
        self._recurrent, self._bias = self._keep(recurrent), self._keep(bias[gates:])
        hidden, cell = self._initial(5, place), self._initial(6, place)
        states = []
        for step in range(self._steps)[:: -1 if backwards else 1]:
            x = self._add("Gather", products, self._keep(np.array(step)), axis=0)
            match self._proto.op_type:
                case "GRU":
                    hidden = self._gru(x, hidden)
                case "LSTM":
                    hidden, cell = self._lstm(x, hidden, cell)
                case _:
                    hidden = self._add(self._activation, self._add("Add", x, self._product(hidden)))
            states.append(hidden)
        return states[:: -1 if backwards else 1], cell

    def _gru(self, x: str, hidden: str | None) -> str:
        size, product = self._size, self._product(hidden)
        both = self._add("Add", self._cut(x, 0, 2 * size), self._cut(product, 0, 2 * size))
        both = self._add("Sigmoid", both)
        update, reset = self._cut(both, 0, size), self._cut(both, size, 2 * size)
        new = self._add("Mul", reset, self._cut(product, 2 * size, 3 * size))
        new = self._add("Tanh", self._add("Add", self._cut(x, 2 * size, 3 * size), new))
        if hidden is None:
            return self._add("Sub", new, self._add("Mul", update, new))
        kept = self._add("Mul", update, self._add("Sub", hidden, new))
        return self._add("Add", new, kept)

    def _lstm(self, x: str, hidden: str | None, cell: str | None) -> tuple[str, str]:
        size = self._size
        total = self._add("Add", x, self._product(hidden))
        gates = self._add("Sigmoid", self._cut(total, 0, 3 * size))
        new = self._add("Tanh", self._cut(total, 3 * size, 4 * size))
        taken = self._add("Mul", self._cut(gates, 0, size), new)
        if cell is not None:
            taken = self._add("Add", self._add("Mul", self._cut(gates, 2 * size, 3 * size), cell), taken)
        return self._add("Mul", self._cut(gates, size, 2 * size), self._add("Tanh", taken)), taken

    def _finish(self, ends: Sequence[tuple[list[str], str | None]]) -> None:
        """Give the node's outputs their names: all states, the last ones, the last cell states."""
        names = [*self._proto.output, "", ""][:3]
        if names[0]:
            sides = [
                self._add("Concat", *(self._wider(state, 0, 1) for state in states), axis=0)
                for states, _ in ends
            ]
            self._join(sides, names[0], axis=1)
        backwards = [False, True] if len(ends) == 2 else [self._direction_is_reverse()]
        if names[1]:
            last = [states[0 if back else -1] for (states, _), back in zip(ends, backwards, strict=True)]
            self._join([self._wider(state, 0) for state in last], names[1], axis=0)
        if names[2]:
            self._join([self._wider(cell, 0) for _, cell in ends if cell is not None], names[2], axis=0)

    def _direction_is_reverse(self) -> bool:
        return any(each.name == "direction" and each.s == b"reverse" for each in self._proto.attribute)

    def _join(self, parts: Sequence[str], output: str, *, axis: int) -> None:
        self.nodes.append(helper.make_node("Concat", parts, [output], axis=axis))

    def _product(self, hidden: str | None) -> str:
        """Return the state's product with the recurrent weights; that of no state is the bias."""
        if hidden is None:
            return self._bias
        return self._add("Add", self._add("MatMul", hidden, self._recurrent), self._bias)

    def _initial(self, index: int, place: int) -> str | None:
        """Return the initial state of a direction, shape (batch, hidden), None where it is zero."""
        name = self._proto.input[index] if len(self._proto.input) > index else ""
        if not name or (name in self._constants and not self._constants[name].any()):
            return None
        return self._add("Gather", name, self._keep(np.array(place)), axis=0)

    def _array(self, index: int, place: int) -> NDArray[Any]:
        name = self._proto.input[index]
        if name not in self._constants:
            raise _refuse(self._proto, "has computed weights", "make them parameters")
        array: NDArray[Any] = self._constants[name][place]
        return array

    def _keep(self, array: NDArray[Any]) -> str:
        name = f"{self._prefix}/c{len(self._constants)}"
        self._constants[name] = array
        return name

    def _cut(self, x: str, begin: int, end: int) -> str:
        if x in self._constants:
            return self._keep(self._constants[x][begin:end])
        bounds = [self._keep(np.array([value])) for value in (begin, end, -1)]
        return self._add("Slice", x, *bounds)

    def _wider(self, x: str, *axes: int) -> str:
        return self._add("Unsqueeze", x, self._keep(np.array(axes)))

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self._prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name


def _scan(proto: NodeProto, shapes: Mapping[str, Shape], constants: Constants) -> list[NodeProto] | None:
    """Return a Scan's body, once for each step."""
    given = {each.name: helper.get_attribute_value(each) for each in proto.attribute}
    body, scanned = given["body"], int(given["num_scan_inputs"])
    states = len(proto.input) - scanned
    if any(name not in shapes for name in proto.input[states:]):
        return None
    axes = list(given.get("scan_input_axes", [0] * scanned))
    backwards = list(given.get("scan_input_directions", [0] * scanned))
    outputs = len(proto.output) - states
    joined = list(given.get("scan_output_axes", [0] * outputs))
    written_backwards = list(given.get("scan_output_directions", [0] * outputs))
    steps = shapes[proto.input[states]][axes[0]]
    if steps * len(body.node) > _MAX_NODES:
        raise _refuse(proto, f"has {steps} steps of {len(body.node)} operators", "keep this model in ONNX")
    prefix = next(filter(None, proto.output))
    local = {value.name for value in body.input} | {name for node in body.node for name in node.output}
    for tensor in body.initializer:
        constants[f"{prefix}/{tensor.name}"] = numpy_helper.to_array(tensor)
        local.add(tensor.name)
    current = list(proto.input[:states])
    collected: list[list[str]] = [[] for _ in range(outputs)]
    made: list[NodeProto] = []
    for step in range(steps):
        names = {name: f"{prefix}/{step}/{name}" for name in local}
        names |= {tensor.name: f"{prefix}/{tensor.name}" for tensor in body.initializer}
        names |= {value.name: name for value, name in zip(body.input[:states], current, strict=True)}
        for place, value in enumerate(body.input[states:]):
            index = f"{prefix}/index{step if not backwards[place] else steps - 1 - step}"
            constants[index] = np.array(steps - 1 - step if backwards[place] else step)
            made.append(
                helper.make_node(
                    "Gather", [proto.input[states + place], index], [names[value.name]], axis=axes[place]
                )
            )
        made.extend(_renamed(body.node, names))
        results = [names.get(value.name, value.name) for value in body.output]
        current = results[:states]
        for place, name in enumerate(results[states:]):
            constants[f"{prefix}/axis{place}"] = np.array([joined[place]])
            wide = f"{prefix}/{step}/wide{place}"
            made.append(helper.make_node("Unsqueeze", [name, f"{prefix}/axis{place}"], [wide]))
            collected[place].append(wide)
    for name, output in zip(current, proto.output[:states], strict=True):
        if output:
            made.append(helper.make_node("Identity", [name], [output]))
    for place, (parts, output) in enumerate(zip(collected, proto.output[states:], strict=True)):
        if output:
            ordered = parts[::-1] if written_backwards[place] else parts
            made.append(helper.make_node("Concat", ordered, [output], axis=joined[place]))
    return made


def _renamed(nodes: Sequence[NodeProto], names: Mapping[str, str]) -> Iterator[NodeProto]:
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names.get(name, name) for name in node.output]
        yield copy
