"""What the operators share: values in two layouts, constants, and who reads what.

ONNX puts channels first, TFLite's convolutions and pools want them last. A value made by one of those stays
channels last until something needs it otherwise, so a chain of them is transposed once at each end.
Channels last of (N, C, L) is (N, 1, L, C), of (N, C, H, W) is (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.tflite.flatbuffer import Shape, Tensor, Writer
from umbel_models.tflite.source import FIXED_BATCH, Node, Source

Handler = Callable[["Lowering", Node], None]

_AXES = {3: {0: 0, 1: 3, 2: 2}, 4: {0: 0, 1: 3, 2: 1, 3: 2}}  # channels first -> last, by rank
MAX_BROADCAST_RANK = 4


def last_shape(shape: Sequence[int]) -> Shape:
    """Return the channels-last form of a shape of rank 3 or 4."""
    return (shape[0], *((1,) if len(shape) == 3 else ()), *shape[2:], shape[1])


class Lowering:
    """The state of one conversion.

    Args:
        source: The graph to write.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.writer = Writer(source.stand_in)
        self._first: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._made_last: set[str] = set()
        self._absorbed: set[int] = set()
        self._users: dict[str, list[Node]] = {}
        self._makers = {name: node for node in source.nodes for name in node.outputs}
        for node in source.nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)

    # -- constants

    def is_constant(self, name: str) -> bool:
        """Return whether a value depends on no input."""
        return name in self.source.constants

    def constant(self, node: Node, index: int, what: str) -> NDArray[Any]:
        """Return the constant that a node reads at ``index``.

        Raises:
            UnsupportedOperatorError: It is computed from an input, or depends on an open batch.
        """
        name = node.inputs[index]
        if name not in self.source.constants:
            raise node.refuse(f"has {what} that are computed", f"make the {what} constants or parameters")
        if name in self.source.depends_on_batch:
            raise node.refuse(f"has {what} that depend on the batch", FIXED_BATCH)
        return self.source.constants[name]

    def optional(self, node: Node, index: int, what: str) -> NDArray[Any] | None:
        """Return the constant at ``index``, or None where the node has no such input."""
        return self.constant(node, index, what) if has_input(node, index) else None

    def operand(self, node: Node, index: int) -> NDArray[Any]:
        """Return the constant that a node which broadcasts reads at ``index``.

        Zeros for each example, say, are as good as zeros for one.

        Raises:
            UnsupportedOperatorError: It differs from example to example of an open batch.
        """
        name = node.inputs[index]
        array = self.source.constants[name]
        if name in self.source.depends_on_batch and any(
            self.shape(each) == self.shape(node.outputs[0])
            for each in node.inputs
            if not self.is_constant(each)
        ):
            for axis, size in enumerate(array.shape):
                if self.writer.is_open(size) and (array == array.take([0], axis)).all():
                    array = array.take([0], axis)
            if not any(self.writer.is_open(size) for size in array.shape):
                return array
        return self.constant(node, index, "values")

    # -- values

    def shape(self, name: str) -> Shape:
        """Return a value's shape, channels first."""
        return self.source.shapes[name]

    def made_last(self, name: str) -> bool:
        """Return whether a value was made channels last."""
        return name in self._made_last

    def input(self, name: str) -> Tensor:
        """Add an input of the graph."""
        made = self.writer.tensor(self.shape(name), self.source.types[name], name=name)
        self._first[name] = made
        return made

    def read(self, node: Node, index: int, *, last: bool = False, spread: bool = False) -> Tensor:
        """Return the tensor that a node reads at ``index``, in the layout asked for.

        Args:
            node: The node.
            index: Which of its inputs.
            last: Whether channels come last.
            spread: Whether the node broadcasts what it reads.
        """
        name = node.inputs[index]
        if self.is_constant(name):
            array = self.operand(node, index) if spread else self.constant(node, index, "values")
            if last:
                array = array.transpose(0, *range(2, array.ndim), 1).reshape(last_shape(array.shape))
            return self.writer.constant(array)
        return self.value(node, name, last=last)

    def value(self, node: Node, name: str, *, last: bool = False) -> Tensor:
        """Return a computed value in the layout asked for, transposing it at most once."""
        here, there = (self._last, self._first) if last else (self._first, self._last)
        if name not in here:
            here[name] = (self._to_last if last else self._to_first)(node, there[name], self.shape(name))
        return here[name]

    def bind(self, node: Node, tensor: Tensor, *, last: bool = False, output: str | None = None) -> None:
        """Say which tensor holds a node's (first) output."""
        name = node.outputs[0] if output is None else output
        shape = self.shape(name)
        assert tensor.shape == (last_shape(shape) if last else shape), (node, tensor.shape, shape)
        (self._last if last else self._first)[name] = tensor
        if last:
            self._made_last.add(name)

    def _to_last(self, node: Node, tensor: Tensor, shape: Shape) -> Tensor:
        if len(shape) == 4:
            if shape[1] == 1 or shape[2:] == (1, 1):
                return self.reshape(node, tensor, last_shape(shape))
            return self.transpose(tensor, (0, 2, 3, 1))
        if shape[1] != 1 and shape[2] != 1:
            tensor = self.transpose(tensor, (0, 2, 1))
        return self.reshape(node, tensor, last_shape(shape))

    def _to_first(self, node: Node, tensor: Tensor, shape: Shape) -> Tensor:
        if shape[1] == 1 or set(shape[2:]) == {1}:
            return self.reshape(node, tensor, shape)
        if len(shape) == 4:
            return self.transpose(tensor, (0, 3, 1, 2))
        return self.transpose(self.reshape(node, tensor, (shape[0], shape[2], shape[1])), (0, 2, 1))

    # -- fusion

    def sole_user(self, name: str) -> Node | None:
        """Return the node that alone reads a value, if nothing else needs it."""
        users = self._users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.source.outputs else None

    def absorb(self, node: Node) -> None:
        """Say that a node is done as part of an earlier one."""
        self._absorbed.add(id(node))

    def is_absorbed(self, node: Node) -> bool:
        """Return whether a node is already done."""
        return id(node) in self._absorbed

    def fused_activation(self, name: str) -> tuple[str, str]:
        """Return the activation that follows a value and can be part of its operator, and its output's name."""
        user = self.sole_user(name)
        if user is None:
            return "NONE", name
        found = "RELU" if user.operator == "Relu" else self.clip_name(user)
        if found is None:
            return "NONE", name
        self.absorb(user)
        return found, user.outputs[0]

    def is_never_negative(self, name: str) -> bool:
        """Return whether a value is known to hold nothing below zero."""
        maker = self._makers.get(name)
        if maker is None:
            return False
        return maker.operator in ("Relu", "Sigmoid", "Abs") or self.clip_name(maker) == "RELU6"

    def clip_name(self, node: Node) -> str | None:
        """Return TFLite's name of a Clip with well-known limits, or None."""
        if node.operator != "Clip" or not (has_input(node, 1) and has_input(node, 2)):
            return None
        if not (self.is_constant(node.inputs[1]) and self.is_constant(node.inputs[2])):
            return None
        low, high = (float(self.source.constants[name]) for name in node.inputs[1:3])
        return {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get((low, high))

    # -- operators used by many

    def scalar(self, value: float) -> Tensor:
        """Return a float constant that broadcasts against everything."""
        return self.writer.constant(np.array([value], np.float32))

    def unary(self, operator: str, x: Tensor, **options: Any) -> Tensor:
        """Apply an operator that keeps the shape."""
        return self.writer.emit(operator, [x], x.shape, **options)

    def binary(self, operator: str, a: Tensor, b: Tensor | float, **options: Any) -> Tensor:
        """Apply an operator that broadcasts."""
        other = b if isinstance(b, Tensor) else self.scalar(b)
        return self.writer.emit(operator, [a, other], np.broadcast_shapes(a.shape, other.shape), **options)

    def indices(self, values: Sequence[int]) -> Tensor:
        """Return a constant of int32: axes, a permutation, a begin."""
        return self.writer.constant(np.array(values, np.int32))

    def transpose(self, x: Tensor, permutation: Sequence[int]) -> Tensor:
        """Permute the axes."""
        shape = [x.shape[axis] for axis in permutation]
        return self.writer.emit("TRANSPOSE", [x, self.indices(permutation)], shape)

    def reshape(self, node: Node, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Reshape, with at most one size that follows the batch.

        Raises:
            UnsupportedOperatorError: More than one does.
        """
        signature = self.writer.signature(shape)
        if signature.count(-1) > 1:
            raise node.refuse("makes a shape in which two sizes follow the batch", FIXED_BATCH)
        return self.writer.emit("RESHAPE", [x, self.indices(signature)], shape, newShape=signature)

    def part(self, x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
        """Cut a block out."""
        count = self.writer.signature(size)  # -1: to the end
        return self.writer.emit("SLICE", [x, self.indices(begin), self.indices(count)], size)


def has_input(node: Node, index: int) -> bool:
    """Return whether an optional input is given."""
    return len(node.inputs) > index and bool(node.inputs[index])


def last_axis(axis: int, rank: int) -> int:
    """Return where an axis of a channels-first value is when channels come last."""
    return _AXES[rank][axis]
