"""What the TFLite writer refuses."""

from __future__ import annotations

from umbel_proto.errors import UsageError


class UnsupportedOperatorError(UsageError):
    """The graph holds an operator, or a use of one, that is not written to TFLite.

    Args:
        operator: The ONNX operator, such as ``"Einsum"``.
        node: Which node: its name, or its first output where it has none.
        problem: What about it, as the end of a sentence.
        cure: What to do instead, as a clause.
    """

    def __init__(self, operator: str, node: str, problem: str, cure: str) -> None:
        super().__init__(f"{operator} {node!r} {problem}: {cure}.")
        self.operator = operator
        self.node = node
        self.cure = cure
