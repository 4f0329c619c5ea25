"""Leaves the last products out of a graph of clipped sums, where they are large: their factors come out instead.

A linear layer's sum is a product over the batch. Whoever adds noise to it block by block multiplies it out block by
block (``umbel.train.summed``), and never holds it beside the noise. A graph that is left as it is computes it, whoever
asks for what.

A device has nothing that reads or writes ONNX. Of its format only what is changed is known here.

Source: onnx.proto3, version 1.16, for the numbers of fields; protobuf.dev, "Encoding", for how they lie in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

LEAST = 1 << 18
"""Numbers of a matrix, 1 MiB, from which on its sum is left in factors."""

_VERSION, _GRAPH, _OPSET = 1, 7, 8  # Of a model.
_NODE, _NAME, _INPUT, _OUTPUT = 1, 2, 11, 12  # Of a graph.
_READS, _WRITES, _OPERATOR = 1, 2, 4  # Of a node.

Factors = dict[str, tuple[str, str]]
"""By parameter the names of the outputs, (n, k) and (k, m), whose product is its sum."""


def factored(model: bytes, shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, Factors]:
    """Return a model without the products that are its outputs ``sum.NAME`` of large matrices, and their factors.

    Args:
        model: It, in ONNX. One that is none comes back as it is: the runtime says what is wrong with it.
        shapes: The parameters' shapes by name.
    """
    large = {f"sum.{name}": name for name, of in shapes.items() if len(of) == 2 and math.prod(of) >= LEAST}
    factors: Factors = {}
    try:
        whole = b"".join(
            _field(_GRAPH, _without(content, large, factors)) if number == _GRAPH else raw
            for number, raw, content in _fields(model)
        )
    except (IndexError, ValueError):
        return model, {}
    return (whole, factors) if factors else (model, {})


def _without(graph: bytes, large: Mapping[str, str], factors: Factors) -> bytes:
    """Return a graph without the products that are such outputs; put down their factors, by parameter."""
    kept = []
    for number, raw, content in _fields(graph):
        if number == _NODE:
            node = [(field, inner) for field, _, inner in _fields(content)]
            reads, writes, operator = (
                [inner.decode() for field, inner in node if field == wanted]
                for wanted in (_READS, _WRITES, _OPERATOR)
            )
            if operator == ["MatMul"] and writes[0] in large:
                left, right = reads
                factors[large[writes[0]]] = left, right
                continue
        kept.append((number, raw, content))
    gone = {f"sum.{name}" for name in factors}
    outputs = {name for pair in factors.values() for name in pair}
    return b"".join(
        [
            *(raw for number, raw, content in kept if number != _OUTPUT or _name(content) not in gone),
            *(_matrix(_OUTPUT, name) for name in sorted(outputs)),
        ]
    )


def product() -> bytes:
    """Return a model of one product: of the float32 matrices ``left`` and ``right`` it makes ``product``."""
    node = (
        _text(_READS, "left")
        + _text(_READS, "right")
        + _text(_WRITES, "product")
        + _text(_OPERATOR, "MatMul")
    )
    values = _matrix(_INPUT, "left") + _matrix(_INPUT, "right") + _matrix(_OUTPUT, "product")
    graph = _field(_NODE, node) + _text(_NAME, "main") + values
    # IR and operators are those of packages.
    return _number(_VERSION, 9) + _field(_GRAPH, graph) + _field(_OPSET, _number(2, 18))


def _matrix(field: int, name: str) -> bytes:
    """Return the description of a float32 matrix of any size."""
    shape = _field(2, 2 * _field(1, b""))
    return _field(field, _text(1, name) + _field(2, _field(1, _number(1, 1) + shape)))


def _name(value: bytes) -> str:
    """Return what a described tensor is called."""
    return next(content.decode() for number, _, content in _fields(value) if number == 1)


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode())


def _field(field: int, content: bytes) -> bytes:
    return _number(field, len(content), 2) + content


def _number(field: int, number: int, kind: int = 0) -> bytes:
    return bytes([*_varint(field << 3 | kind), *_varint(number)])


def _varint(number: int) -> Iterator[int]:
    while number > 127:
        yield number & 127 | 128
        number >>= 7
    yield number


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield each field's number, all its bytes, and its content, which of a number is empty.

    Raises:
        IndexError: It ends within a field.
        ValueError: It is no message.
    """
    at = 0
    while at < len(message):
        begin = at
        key, at = _read(message, at)
        match key & 7:
            case 0:
                _, content = _read(message, at)
                end = content
            case 1:
                content = end = at + 8
            case 2:
                length, content = _read(message, at)
                end = content + length
            case 5:
                content = end = at + 4
            case kind:
                raise ValueError(f"There is no wire type {kind}.")
        if end > len(message):
            raise IndexError("A field ends behind its message.")
        yield key >> 3, message[begin:end], message[content:end]
        at = end


def _read(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
