"""Learn from sensor windows without labels: hide parts of each, and let the network tell what the whole is like.

What it needs for that serves labels too: a few of each class are then enough. The network that does so is
exported like any other, so devices can pretrain it in rounds.

What to tell makes all the difference. Filling in the hidden moments themselves takes a network that knows the
phase of every movement, which is chance and says nothing about its kind; a narrow network keeps little else. The
spectrum of the whole window has no phase.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377v3, for the loss on hidden
parts only; Xie et al., "SimMIM", arXiv:2111.09886v2, for a decoder of one layer; both for images. Wei et al.,
"Masked Feature Prediction for Self-Supervised Visual Pre-Training", arXiv:2112.09133v2, for telling a description
of what is hidden instead of its values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from umbel_models.adapt import freeze, head
from umbel_models.channels import shape_of, trace
from umbel_models.fit import Loss, Network, Progress, fit
from umbel_models.task import Examples
from umbel_proto.errors import UsageError

PATCHES = 8
HIDDEN = 0.25
QUIET = 0.03  # of a channel's spread: a frequency that is weaker tells of noise rather than of movement
WAYS = ("spectra", "moments")


class Reconstruction(nn.Module):
    """Fills in what is hidden of a window, and says how far off it is.

    A graph draws no random numbers: what is hidden comes with each window, from ``hide``.

    Args:
        encoder: Maps windows, shape (batch, *example), to features, shape (batch, ..).
        typical: Windows that tell the mean and the spread of each channel, shape (n, *example).
        axis: The axis of an example that is time.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, encoder: nn.Module, typical: NDArray[np.float32], axis: int) -> None:
        super().__init__()
        over = (0, 1 + axis)
        self.encoder = encoder
        self.register_buffer("mean", torch.from_numpy(typical.mean(over, keepdims=True)))
        # A channel that never changes is filled in by its mean: its spread divides nothing.
        self.register_buffer("spread", torch.from_numpy(np.maximum(typical.std(over, keepdims=True), 1e-6)))
        with torch.no_grad():
            features = encoder(torch.from_numpy(typical[:1])).numel()
        self.decoder = nn.Linear(features, math.prod(typical.shape[1:]))

    def decoded(self, pairs: Tensor) -> Tensor:
        """Return what the decoder says of windows whose hidden part the encoder doesn't see."""
        x, hidden = pairs[:, 0], pairs[:, 1]
        told: Tensor = self.decoder(self.encoder(x * (1 - hidden) + self.mean * hidden).flatten(1))
        return told

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the mean squared error of hidden values, in squared spreads of their channel.

        Args:
            pairs: Windows and what is hidden of them, as ``hide`` gives them, shape (batch, 2, *example).

        Returns:
            Errors, shape (batch, 1).
        """
        x, hidden = pairs[:, 0], pairs[:, 1]
        off = (self.decoded(pairs) - ((x - self.mean) / self.spread).flatten(1)) * hidden.flatten(1)
        errors: Tensor = (off * off).sum(1, keepdim=True) / hidden.flatten(1).sum(1, keepdim=True)
        return errors


class Spectra(Reconstruction):
    """Tells the spectrum of each channel of the whole window, of which it sees a part, and how far off it is.

    A spectrum is the mean, with its sign, and the logarithms of amplitudes at the lower frequencies, a quarter
    of as many as there are moments: half of those that can be told from each other.

    Args:
        encoder: As of ``Reconstruction``.
        typical: Windows that tell the mean and the spread of each channel and frequency, shape (n, *example).
        axis: The axis of an example that is time.
    """

    cosines: Tensor
    sines: Tensor
    usual: Tensor
    spreads: Tensor

    def __init__(self, encoder: nn.Module, typical: NDArray[np.float32], axis: int) -> None:
        super().__init__(encoder, typical, axis)
        length = typical.shape[1 + axis]
        self.time = 1 + axis
        # Matrices, as a graph for devices has no Fourier transform; one of a noise of spread 1 then has
        # amplitudes of about 1.
        turns = np.outer(np.arange(length), np.arange(max(2, length // 4))) * (2 * np.pi / length)
        self.register_buffer("cosines", torch.from_numpy(np.cos(turns) / math.sqrt(length)).float())
        self.register_buffer("sines", torch.from_numpy(np.sin(turns) / math.sqrt(length)).float())
        with torch.no_grad():
            spectra = self.spectra(torch.from_numpy(typical))
        self.register_buffer("usual", spectra.mean(0, keepdim=True))
        # A channel without a mean of its own has one of rounding errors: not to be learned.
        self.register_buffer("spreads", spectra.std(0, correction=0, keepdim=True).clamp(min=1e-3))
        self.decoder = nn.Linear(self.decoder.in_features, spectra.shape[1])

    def spectra(self, x: Tensor) -> Tensor:
        """Return the spectra of windows, shape (batch, channels * frequencies)."""
        series = ((x - self.mean) / self.spread).movedim(self.time, -1)
        even, odd = series @ self.cosines, series @ self.sines
        loud = torch.log(torch.sqrt(even * even + odd * odd) + QUIET)
        return torch.cat([even[..., :1], loud[..., 1:]], -1).flatten(1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the mean squared error of spectra, in squared spreads of their channel and frequency.

        Args:
            pairs: Windows and what is hidden of them, as ``hide`` gives them, shape (batch, 2, *example).

        Returns:
            Errors, shape (batch, 1).
        """
        off = self.decoded(pairs) - (self.spectra(pairs[:, 0]) - self.usual) / self.spreads
        return (off * off).mean(1, keepdim=True)


def reconstruction_error(errors: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each example, shape (batch,): the error itself. The labels y are not read."""
    return errors.sum(1)


def hide(
    x: NDArray[np.float32], *, axis: int, copies: int, seed: int, patches: int = PATCHES, part: float = HIDDEN
) -> Examples:
    """Return windows with what to hide of them: whole stretches of time in all channels.

    Single moments would tell nothing, as their neighbors give them away.

    Args:
        x: Windows, shape (n, *example).
        axis: The axis of an example that is time.
        copies: How often each window comes, each time with other stretches hidden.
        seed: Which stretches.
        patches: In how many stretches time is cut, >= 2.
        part: How many of them to hide, in (0, 1); at least one, and not all.

    Returns:
        x float32, shape (copies * n, 2, *example): the window, and 1 where it is hidden; y 0, as no label is
        read; source: the window's row.

    Raises:
        UsageError: A window has fewer moments than patches, or a setting is out of range.
    """
    length = x.shape[1 + axis]
    if not (2 <= patches <= length and 0 < part < 1 and copies >= 1):
        raise UsageError(
            f"{patches} patches of {length} moments, {part:g} of them hidden, {copies} times: choose 2 to {length} "
            "patches, a part in (0, 1) and one copy or more."
        )
    count = min(patches - 1, max(1, round(part * patches)))
    chance = np.random.default_rng(seed)
    ranks = chance.random((copies * len(x), patches)).argsort(1)
    hidden = (ranks < count)[:, np.arange(length) * patches // length].astype(np.float32)
    across = [1] * (x.ndim - 1)
    across[axis] = length
    windows = np.tile(x, (copies, *(1 for _ in x.shape[1:])))
    masks = np.broadcast_to(hidden.reshape(-1, *across), windows.shape)
    rows = np.tile(np.arange(len(x)), copies)
    return Examples(np.stack([windows, masks], 1), np.zeros(len(windows), np.int64), source=rows)


def time_axis(shape: Sequence[int]) -> int:
    """Return the longest axis of an example: in a window of a few channels, that is time."""
    return int(np.argmax(shape))


def reconstruction(
    module: nn.Module, typical: NDArray[np.float32], *, axis: int, tell: str = "spectra", seed: int = 0
) -> Reconstruction:
    """Return the network that pretrains a module: what comes before its last layer, with a decoder.

    Where the module averages over time, or takes only some of it, the decoder of moments reads what is there
    before: from an average nobody can tell when something was.

    Args:
        module: The classifier; it stays as it is.
        typical: See ``Reconstruction``.
        axis: The axis of an example that is time.
        tell: What the decoder tells, one of ``WAYS``: the spectra of whole windows, or their hidden moments.
        seed: First values of the decoder.

    Raises:
        UsageError: The module has one layer only, what it does depends on its input's values, or there is no
            such way.
    """
    if tell not in WAYS:
        raise UsageError(f"A network cannot tell {tell!r} of windows: choose one of {', '.join(WAYS)}.")
    encoder = _encoder(module, typical.shape[1:], moments=tell == "moments")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (Reconstruction if tell == "moments" else Spectra)(encoder, typical, axis)


def with_encoder(module: Network, pretrained: Reconstruction) -> Network:
    """Return a copy of a module with the pretrained encoder's parameters; what follows it stays as it was."""
    copied = copy.deepcopy(module)
    copied.load_state_dict({**module.state_dict(), **pretrained.encoder.state_dict()})
    return copied


def pretrain(
    module: Network,
    x: NDArray[np.float32],
    *,
    axis: int | None = None,
    tell: str = "spectra",
    copies: int = 1,
    epochs: int = 15,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Network:
    """Return a copy of a classifier whose layers before the last have learned from windows without labels.

    Args:
        module: The classifier; it stays as it is.
        x: Windows, shape (n, *example).
        axis: The axis of an example that is time; by default the longest.
        tell: See ``reconstruction``.
        copies: How often each window comes in an epoch, each time with other stretches hidden.
        epochs: Passes over them, as all that follows.
        batch_size: Windows in a step.
        learning_rate: Of the first step.
        seed: What is hidden, and the order of the windows.
        progress: Told of each epoch.

    Raises:
        UsageError: The module or the windows are not fit for it, or training diverged.
    """
    axis = time_axis(x.shape[1:]) if axis is None else axis
    trained = fit(
        reconstruction(module, x, axis=axis, tell=tell, seed=seed),
        reconstruction_error,
        hide(x, axis=axis, copies=copies, seed=seed),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )
    return with_encoder(module, trained)


def tune(
    module: Network,
    loss: Loss,
    few: Examples,
    *,
    epochs: int = 60,
    batch_size: int = 10,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> Network:
    """Return a copy of a pretrained classifier whose last layer has learned from a few labelled examples.

    All the others keep what they have learned: with labels this few, training them too forgets more of it than
    it gains. The one layer learns in large steps.

    Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
    ICLR 2022 (arXiv:2202.10054v1).

    Args:
        module: The classifier; it stays as it is.
        loss: Maps logits and labels to one loss per example.
        few: What to learn from.
        epochs: Passes over it, as all that follows.
        batch_size: Examples in a step.
        learning_rate: Of the first step.
        seed: Order of the examples.

    Raises:
        UsageError: Training diverged.
    """
    how = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    return fit(freeze(module, head(module)), loss, few, **how).requires_grad_()  # type: ignore[arg-type]


def few_labels(examples: Examples, each: int, *, seed: int) -> Examples:
    """Return so many examples of each class, drawn at random: what somebody had time to label.

    Raises:
        UsageError: A class has fewer.
    """
    chance = np.random.default_rng(seed)
    rows = []
    for label in np.unique(examples.y):
        of_class = np.flatnonzero(examples.y == label)
        if len(of_class) < each:
            raise UsageError(
                f"Class {label} has {len(of_class)} examples: ask for no more than that of each."
            )
        rows.append(chance.permutation(of_class)[:each])
    return examples.take(np.sort(np.concatenate(rows)))


def _encoder(module: nn.Module, shape: Sequence[int], *, moments: bool) -> fx.GraphModule:
    traced = trace(copy.deepcopy(module), shape)
    last = head(module)[0].rpartition(".")[0]
    calls = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == last]
    if len(calls) != 1 or calls[0].all_input_nodes[0].op == "placeholder":
        raise UsageError(
            f"The last layer {last!r} is not called once on what others learned: a module needs a hidden layer to pretrain."
        )
    output = next(node for node in traced.graph.nodes if node.op == "output")
    features = calls[0].all_input_nodes[0]
    output.args = (_telling(features) if moments else features,)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _telling(features: fx.Node) -> fx.Node:
    """Return the last value on the way to some features that tells moments apart."""
    node, after = features, features
    while len(shape_of(node)) < 3 or math.prod(shape_of(node)[2:]) == 1:
        if not node.all_input_nodes:
            return features
        node, after = node.all_input_nodes[0], node
    if node.op == "placeholder" or math.prod(shape_of(after)) == math.prod(shape_of(node)):
        return features  # all of it is still there, in another shape
    return node
