"""Which channels of a network can be removed, and what each of them is made and read by.

A channel is one output of a linear layer or one map of a convolution. It can go where every operation
between the layers that make it and those that read it treats channels one by one. An operation that is not
known to do so keeps all channels that reach it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from umbel_proto.errors import UsageError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BY_CHANNEL: dict[type[nn.Module], str] = {
    nn.BatchNorm1d: "num_features",
    nn.BatchNorm2d: "num_features",
    nn.BatchNorm3d: "num_features",
    nn.InstanceNorm1d: "num_features",
    nn.InstanceNorm2d: "num_features",
    nn.InstanceNorm3d: "num_features",
    nn.GroupNorm: "num_channels",
}
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
# Names of modules (in lower case), functions and methods that change each value by itself.
_ELEMENTWISE = re.compile(
    r"relu6?|leaky_?relu|c?elu|selu|gelu|silu|mish|soft(plus|sign)|(log_?)?sigmoid|tanh|hard_?(tanh|sigmoid|swish)|"
    r"abs|exp|sqrt|square|clamp|neg|identity|dropout[12]?d?|contiguous|clone|i?(add|sub|mul)|(true)?div"
)
# ... and that work on the positions of each channel by itself, with the rank of what they take.
_SPATIAL = {
    name: 2 + axes
    for axes in (1, 2, 3)
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
    for name in (f"{kind}_pool{axes}d", f"{kind.replace('_', '')}pool{axes}d")
}
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin"})


@dataclass(frozen=True, slots=True)
class Part:
    """What one layer has of each channel.

    Args:
        layer: The layer.
        tensors: Its parameters and buffers that hold something for each channel.
        axis: Their axis that runs over the channels.
        sizes: Its attributes that count them.
        repeat: How many neighboring entries belong to one channel: the positions, behind a flattening.
        makes: Whether the layer makes the channels, or else changes or reads them.
    """

    layer: str
    tensors: tuple[str, ...]
    axis: int
    sizes: tuple[str, ...]
    repeat: int = 1
    makes: bool = False


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels that go or stay together in all of their parts.

    Args:
        count: How many.
        blocks: They are normalized in so many blocks, which must stay equally large.
        parts: What layers have of them.
    """

    count: int
    blocks: int
    parts: tuple[Part, ...]


def removable(module: nn.Module, shape: Sequence[int]) -> list[Channels]:
    """Return all channels that can be removed, in the order in which they are made.

    Args:
        module: The network.
        shape: Shape of one example.

    Raises:
        UsageError: There are none, or what the module does depends on its input's values.
    """
    follower = _Follower(module)
    for node in trace(module, shape).graph.nodes:
        follower.follow(node)
    found = list(follower.groups())
    if not found:
        why = " ".join(dict.fromkeys(follower.stops)) or "It has no hidden linear or convolutional layer."
        raise UsageError(f"No channel of this {type(module).__name__} can be removed. {why}")
    return found


def trace(module: nn.Module, shape: Sequence[int]) -> fx.GraphModule:
    """Return a module as the operations it consists of, each with the shape of what it gives for two examples.

    Raises:
        UsageError: What the module does depends on its input's values.
    """
    try:
        traced = fx.symbolic_trace(module)
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(2, *shape))
    except Exception as exc:  # torch.fx raises what the module's own code meets
        raise UsageError(
            f"The operations of a {type(module).__name__} cannot be followed: {exc} Write it without conditions on "
            "its values, or take the part of it that has none."
        ) from exc
    return traced


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of what an operation gives, for two examples; () where it is no tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


@dataclass(eq=False)
class _Group:
    """Channels while they are followed. Groups that an operation joins point to one of them."""

    count: int
    blocks: int = 1
    parts: list[Part] = field(default_factory=list)
    stopped: bool = False
    joined: _Group | None = None

    def root(self) -> _Group:
        return self if self.joined is None else self.joined.root()

    def join(self, other: _Group) -> None:
        mine, theirs = self.root(), other.root()
        if mine is theirs:
            return
        mine.blocks = math.lcm(mine.blocks, theirs.blocks)
        mine.parts += theirs.parts
        mine.stopped |= theirs.stopped
        theirs.joined = mine


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the channels are in a value: along which axis, and how many neighbors each one has there."""

    group: _Group
    axis: int
    repeat: int = 1


class _Follower:
    """Follows channels through a traced network, node by node.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = dict(module.named_modules())
        self._layouts: dict[fx.Node, _Layout] = {}
        self._made: dict[str, _Group] = {}
        self._changed: dict[str, _Group] = {}
        self._given: dict[str, _Layout | None] = {}
        self._own = _shared(module)
        self.stops: list[str] = []

    def groups(self) -> Iterator[Channels]:
        """Yield what can be removed."""
        for group in dict.fromkeys(group.root() for group in self._made.values()):
            if not group.stopped and group.count > 1:
                yield Channels(group.count, group.blocks, tuple(dict.fromkeys(group.parts)))

    def follow(self, node: fx.Node) -> None:
        """Find out where the channels are in what a node computes."""
        layout: _Layout | None = None
        match node.op:
            case "call_module":
                layout = self._layer(node, str(node.target))
            case "call_function" | "call_method":
                name = node.target if isinstance(node.target, str) else node.target.__name__
                if name in ("getattr", "size", "dim"):
                    return  # a shape: what it is used for is looked at where it is used
                layout = self._operation(node, name, name)
            case "get_attr":
                self._stop_layer(str(node.target).rpartition(".")[0])
            case "output":
                self._stop(node, "")
        if layout is not None:
            self._layouts[node] = layout

    def _layer(self, node: fx.Node, name: str) -> _Layout | None:
        layer = self._layers[name]
        given = self._layouts.get(node.all_input_nodes[0])
        rank = _rank(node)
        if name in self._own:
            self._stop(node, f"Layer {name!r} shares its parameters.")
            return None
        if isinstance(layer, nn.Linear):
            return self._maker(node, name, given, rank - 1, layer.out_features, "out_features", "in_features")
        if isinstance(layer, _CONVOLUTIONS):
            if layer.groups == 1:
                return self._maker(node, name, given, 1, layer.out_channels, "out_channels", "in_channels")
            if given and given.axis == 1 and layer.groups == layer.in_channels == layer.out_channels:
                return self._changes(given, name, ("in_channels", "out_channels", "groups"))
            self._stop(node, f"Layer {name!r} convolves channels in groups.")
            return None
        if type(layer) in _BY_CHANNEL:
            if given and given.axis == 1 and given.repeat == 1:
                if isinstance(layer, nn.GroupNorm):
                    root = given.group.root()
                    root.blocks = math.lcm(root.blocks, layer.num_groups)
                return self._changes(given, name, (_BY_CHANNEL[type(layer)],))
            self._stop(node, f"Layer {name!r} normalizes something else than channels.")
            return None
        if isinstance(layer, nn.LayerNorm):
            if given and given.axis == rank - 1 and given.repeat == 1 and len(layer.normalized_shape) == 1:
                return self._changes(given, name, ("normalized_shape",))
            self._stop(node, f"Layer {name!r} normalizes positions and channels together.")
            return None
        kind = type(layer).__name__
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            return given
        return self._operation(node, kind.lower(), f"{kind} {name!r}")

    def _maker(
        self, node: fx.Node, name: str, given: _Layout | None, axis: int, count: int, makes: str, reads: str
    ) -> _Layout:
        if name in self._made:  # a layer that is called twice reads the same channels twice
            before = self._given[name]
            if given and before and (given.axis == axis, given.repeat) == (True, before.repeat):
                given.group.join(before.group)
            elif given is not before:
                for each in (given, before):
                    if each is not None:
                        self._stop_group(each.group, f"Layer {name!r} is called on different things.")
            return _Layout(self._made[name], axis)
        self._given[name] = given
        if given is not None:
            if given.axis == axis:
                given.group.root().parts.append(Part(name, ("weight",), 1, (reads,), given.repeat))
            else:
                self._stop_group(given.group, f"Layer {name!r} works along another axis than its channels.")
        self._made[name] = _Group(count, parts=[Part(name, ("weight", "bias"), 0, (makes,), makes=True)])
        return _Layout(self._made[name], axis)

    def _changes(self, given: _Layout, name: str, sizes: tuple[str, ...]) -> _Layout:
        given.group.join(self._changed.setdefault(name, given.group))  # the layer may be called twice
        given.group.root().parts.append(Part(name, _PER_CHANNEL, 0, sizes))
        return given

    def _operation(self, node: fx.Node, name: str, shown: str) -> _Layout | None:
        sources = node.all_input_nodes
        layouts = [layout for source in sources if (layout := self._layouts.get(source))]
        if not layouts:
            return None
        first, rank = layouts[0], _rank(sources[0])
        if _ELEMENTWISE.fullmatch(name):
            alike = all((each.axis, each.repeat) == (first.axis, first.repeat) for each in layouts)
            counts = {each.group.count for each in layouts}
            ranks = {_rank(source) for source in sources}
            if alike and len(layouts) == len(sources) and len(counts) == len(ranks) == 1:
                for other in layouts[1:]:
                    first.group.join(other.group)
                return first
        elif len(sources) == 1 or name in ("reshape", "view"):
            # Without an axis for examples they would take the channels for positions.
            if name in _SPATIAL and first.axis == 1 and rank == _SPATIAL[name]:
                return first
            moved = self._moved(node, name, first, rank)
            if moved is not None:
                return moved
        self._stop(node, f"Its {shown} mixes channels, or is not known not to.")
        return None

    def _moved(self, node: fx.Node, name: str, given: _Layout, rank: int) -> _Layout | None:
        """Return the layout behind an operation that moves or reduces axes; None where it is not known."""
        arguments = _arguments(self._layers, node)
        shape, result = shape_of(node.all_input_nodes[0]), shape_of(node)
        if name in _REDUCTIONS:
            axes = arguments("dim", 1, None)
            if axes is None:
                return None
            reduced = {axis % rank for axis in ([axes] if isinstance(axes, int) else axes)}
            if given.axis in reduced:
                return None
            kept = bool(arguments("keepdim", 2, False))
            return replace(
                given, axis=given.axis - (0 if kept else sum(axis < given.axis for axis in reduced))
            )
        if name == "transpose":
            pair = [int(arguments(f"dim{i}", 1 + i, 0)) % rank for i in (0, 1)]
            swap = dict(zip(pair, reversed(pair), strict=True))
            return replace(given, axis=swap.get(given.axis, given.axis))
        if name == "squeeze" and isinstance(axis := arguments("dim", 1, None), int):
            axis %= rank
            return None if axis == given.axis else replace(given, axis=given.axis - (axis < given.axis))
        if name == "flatten" and arguments("start_dim", 1, 0) != 1:
            return None
        # A size that is written as a number would be the wrong one when channels are gone.
        free = name == "flatten" or (name in ("reshape", "view") and _last(node.args) == -1)
        if free and given.axis == 1 and given.repeat == 1 and len(result) == 2 and result[0] == shape[0]:
            return replace(given, repeat=math.prod(shape[2:]))
        return None

    def _stop(self, node: fx.Node, why: str) -> None:
        for source in node.all_input_nodes:
            if layout := self._layouts.get(source):
                self._stop_group(layout.group, why)

    def _stop_group(self, group: _Group, why: str) -> None:
        group.root().stopped = True
        if why:
            self.stops.append(why)

    def _stop_layer(self, name: str) -> None:
        # Its parameters are used without calling it: where, is not followed.
        self._own.add(name)
        for group in [self._made.get(name), *(g.group for n, g in self._given.items() if n == name and g)]:
            if group is not None:
                self._stop_group(group, f"The parameters of {name!r} are used by themselves.")


def _shared(module: nn.Module) -> set[str]:
    """Return the layers that share a parameter with another."""
    owners: dict[int, set[str]] = {}
    for name, layer in module.named_modules():
        for value in layer.parameters(recurse=False):
            owners.setdefault(id(value), set()).add(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _last(values: Any) -> Any:
    return _last(values[-1]) if isinstance(values, tuple | list) else values


def _rank(node: fx.Node) -> int:
    return len(shape_of(node))


def _arguments(layers: dict[str, nn.Module], node: fx.Node) -> Callable[[str, int, Any], Any]:
    """Return a function that looks up an argument of a call, by name or place, or an attribute of a layer."""

    def argument(name: str, place: int, default: Any) -> Any:
        if node.op == "call_module":
            return getattr(layers[str(node.target)], name, default)
        return node.kwargs.get(name, node.args[place] if place < len(node.args) else default)

    return argument
