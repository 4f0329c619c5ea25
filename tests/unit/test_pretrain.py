"""Pretraining without labels: what is hidden is never seen, what is told has no phase, and it saves labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umbel_models.fit import accuracy, fit, predict
from umbel_models.pretrain import (
    WAYS,
    Reconstruction,
    Spectra,
    few_labels,
    hide,
    pretrain,
    reconstruction,
    reconstruction_error,
    time_axis,
    tune,
    with_encoder,
)
from umbel_models.task import Examples, cross_entropy
from umbel_proto.errors import UsageError

CLASSES, LENGTH = 4, 48


def windows(count: int, seed: int) -> Examples:
    """Oscillations of two channels: the class is the pair of frequencies; phase, strength and noise are chance."""
    chance = np.random.default_rng(seed)
    y = chance.integers(0, CLASSES, count)
    time = np.arange(LENGTH) / LENGTH
    turns = np.array([[2, 5], [3, 4], [4, 3], [5, 2]])[y]
    phase, strength = chance.uniform(0, 2 * np.pi, (count, 2)), chance.uniform(0.5, 1.5, (count, 2))
    x = strength[..., None] * np.sin(2 * np.pi * turns[..., None] * time + phase[..., None])
    return Examples((x + chance.normal(0, 0.6, x.shape)).astype(np.float32), y)


def network() -> nn.Module:
    """Averages over time before its last layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 24, 7, padding=3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(24, 48, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


def flattening() -> nn.Module:
    """Keeps every moment, mixed by a hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * LENGTH, 20),
        nn.ReLU(),
        nn.Linear(20, 4),
    )


class Constant(nn.Module):
    """An encoder whose only feature is what it sees at one place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1]


def test_whole_stretches_are_hidden_in_all_channels_and_as_many_as_asked_for() -> None:
    x = windows(30, 1).x
    pairs, y, _, source = hide(x, axis=1, copies=3, seed=5, patches=8, part=0.5)
    assert pairs.shape == (90, 2, 2, LENGTH)
    assert source is not None
    np.testing.assert_array_equal(pairs[:, 0], x[source])
    masks = pairs[:, 1].reshape(90, 2, 8, 6)
    assert set(np.unique(masks)) == {0, 1}
    assert (masks == masks[:, :1, :, :1]).all()
    assert (masks[:, 0, :, 0].sum(1) == 4).all()
    assert len(np.unique(masks[:, 0, :, 0], axis=0)) > 35  # of 70 ways to choose 4 of 8
    assert not y.any()


def test_hiding_repeats_itself_under_a_seed_and_never_hides_all_or_nothing() -> None:
    x = windows(5, 1).x
    for part in (0.01, 0.99):
        masks = hide(x, axis=1, copies=1, seed=2, part=part).x[:, 1]
        assert ((masks.mean((1, 2)) > 0) & (masks.mean((1, 2)) < 1)).all()
    np.testing.assert_array_equal(hide(x, axis=1, copies=2, seed=2).x, hide(x, axis=1, copies=2, seed=2).x)
    assert (hide(x, axis=1, copies=2, seed=2).x != hide(x, axis=1, copies=2, seed=3).x).any()


def test_time_may_be_any_axis() -> None:
    x = windows(6, 1).x
    across = hide(np.swapaxes(x, 1, 2).copy(), axis=0, copies=1, seed=0).x
    np.testing.assert_array_equal(np.swapaxes(across, 2, 3), hide(x, axis=1, copies=1, seed=0).x)
    assert (time_axis((128, 9)), time_axis((9, 128)), time_axis((1, 8, 9))) == (0, 1, 2)


def test_the_error_is_that_of_hidden_values_alone_in_spreads_of_their_channel() -> None:
    x = 3 + 2 * windows(40, 1).x
    module = Reconstruction(Constant(), x, 1)
    with torch.no_grad():
        module.decoder.weight.zero_()
        module.decoder.bias.copy_(torch.randn(2 * LENGTH))
    pairs = hide(x, axis=1, copies=1, seed=0).x
    guess = module.decoder.bias.detach().numpy().reshape(2, LENGTH)
    mean, spread = x.mean((0, 2))[:, None], x.std((0, 2))[:, None]
    off = (x - mean) / spread - guess
    oracle = [float((row[hidden == 1] ** 2).mean()) for row, hidden in zip(off, pairs[:, 1], strict=True)]
    errors = module(torch.from_numpy(pairs))
    np.testing.assert_allclose(reconstruction_error(errors, errors).detach(), oracle, rtol=1e-4)


@pytest.mark.parametrize("tell", WAYS)
def test_the_encoder_never_sees_what_is_hidden(tell: str) -> None:
    x = windows(10, 1).x
    module = reconstruction(network(), x, axis=1, tell=tell)
    pairs = hide(x, axis=1, copies=1, seed=0).x
    seen: list[NDArray[np.float32]] = []
    module.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy().copy()))
    module(torch.from_numpy(pairs))
    pairs[:, 0] += 100 * pairs[:, 1]
    module(torch.from_numpy(pairs))
    np.testing.assert_array_equal(seen[0], seen[1])


def test_filling_in_by_the_mean_is_off_by_one_spread_and_a_trained_network_by_less() -> None:
    x = windows(1500, 1).x
    held = hide(windows(300, 2).x, axis=1, copies=1, seed=9)
    module = reconstruction(network(), x, axis=1, tell="moments")
    trained = fit(
        module,
        reconstruction_error,
        hide(x, axis=1, copies=2, seed=0),
        epochs=6,
        batch_size=64,
        learning_rate=3e-3,
        seed=0,
    )
    with torch.no_grad():
        module.decoder.weight.zero_()
        module.decoder.bias.zero_()
    assert predict(module, held.x).mean() == pytest.approx(1.0, abs=0.05)
    assert predict(trained, held.x).mean() < 0.9


@pytest.fixture(scope="module")
def unlabelled() -> Examples:
    return windows(1500, 1)


@pytest.mark.parametrize("kind", [network, flattening])
def test_a_pretrained_network_needs_fewer_labels_than_one_from_scratch(
    kind: Callable[[], nn.Module], unlabelled: Examples
) -> None:
    held = windows(600, 2)
    ready = pretrain(kind(), unlabelled.x, copies=2, epochs=12, learning_rate=3e-3)
    how = {"epochs": 60, "batch_size": 10, "learning_rate": 1e-3, "seed": 0}
    gains = []
    for seed in range(3):
        few = few_labels(unlabelled, 5, seed=seed)
        scratch, tuned = fit(kind(), cross_entropy, few, **how), tune(ready, cross_entropy, few)
        gains.append(accuracy(tuned, held) - accuracy(scratch, held))
    assert np.mean(gains) > 0.2


def test_a_network_that_mixes_all_moments_gains_from_spectra_and_not_from_the_moments_themselves(
    unlabelled: Examples,
) -> None:
    held, few = windows(600, 2), few_labels(unlabelled, 5, seed=0)
    how = {"copies": 1, "epochs": 12, "learning_rate": 3e-3}
    spectra, moments = (
        accuracy(
            tune(pretrain(flattening(), unlabelled.x, tell=tell, **how), cross_entropy, few),  # type: ignore[arg-type]
            held,
        )
        for tell in ("spectra", "moments")
    )
    assert spectra > moments + 0.2


def test_tuning_changes_the_last_layer_alone_and_leaves_all_of_it_to_be_trained(unlabelled: Examples) -> None:
    module = flattening()
    tuned = tune(module, cross_entropy, few_labels(unlabelled, 2, seed=0), epochs=2)
    pairs = zip(module.state_dict().items(), tuned.state_dict().values(), strict=True)
    assert [name for (name, old), new in pairs if not torch.equal(old, new)] == ["5.weight", "5.bias"]
    assert all(value.requires_grad for value in tuned.parameters())


@pytest.mark.parametrize("axis", [0, 1])
def test_spectra_are_means_and_the_logarithms_of_amplitudes_of_the_lower_frequencies(axis: int) -> None:
    x = (3 + 2 * windows(40, 1).x).swapaxes(1, 1 + axis).copy()
    module = reconstruction(
        nn.Sequential(nn.Flatten(), nn.Linear(96, 3), nn.ReLU(), nn.Linear(3, 2)), x, axis=axis
    )
    assert isinstance(module, Spectra)
    over = (0, 1 + axis)
    series = np.moveaxis((x - x.mean(over, keepdims=True)) / x.std(over, keepdims=True), 1 + axis, -1)
    fourier = np.fft.rfft(series, axis=-1, norm="ortho")[..., : LENGTH // 4]
    oracle = np.log(np.abs(fourier) + 0.03)
    oracle[..., 0] = fourier[..., 0].real
    np.testing.assert_allclose(module.spectra(torch.from_numpy(x)), oracle.reshape(40, -1), atol=2e-4)


def test_spectra_are_of_the_whole_window_and_do_not_tell_when_anything_was() -> None:
    x = windows(40, 1).x
    module = reconstruction(network(), x, axis=1)
    assert isinstance(module, Spectra)
    later = np.roll(x, 11, axis=2)
    np.testing.assert_allclose(
        module.spectra(torch.from_numpy(x)), module.spectra(torch.from_numpy(later)), atol=1e-3
    )


def test_telling_the_usual_spectrum_is_off_by_one_spread() -> None:
    x = windows(300, 1).x
    module = reconstruction(network(), x, axis=1)
    with torch.no_grad():
        module.decoder.weight.zero_()
        module.decoder.bias.zero_()
    errors = predict(module, hide(x, axis=1, copies=1, seed=0).x)
    assert errors.mean() == pytest.approx(1.0, abs=1e-3)


def test_a_channel_that_rests_at_0_is_no_cause_of_large_errors() -> None:
    x = windows(60, 1).x
    x[:, 1] = np.random.default_rng(0).normal(0, 1e-12, x[:, 1].shape)
    module = reconstruction(network(), x, axis=1)
    assert np.isfinite(predict(module, hide(x, axis=1, copies=1, seed=0).x)).all()


def test_only_the_encoder_is_taken_over() -> None:
    x = windows(64, 1).x
    module = network()
    ready = pretrain(module, x, copies=1, epochs=1)
    assert torch.equal(ready[8].weight, module[8].weight)
    assert not torch.equal(ready[3].weight, module[3].weight)
    same = with_encoder(module, reconstruction(module, x, axis=1))
    assert torch.equal(same(torch.from_numpy(x)), module(torch.from_numpy(x)))


def test_the_decoder_of_moments_reads_the_last_value_that_tells_them_apart() -> None:
    x = windows(8, 1).x
    averaging, keeping = (reconstruction(kind(), x, axis=1, tell="moments") for kind in (network, flattening))
    assert averaging.decoder.in_features == 48 * LENGTH // 4
    assert keeping.decoder.in_features == 20
    assert [name for name, _ in averaging.encoder.named_parameters()] == [
        "0.weight",
        "0.bias",
        "3.weight",
        "3.bias",
    ]
    assert [name for name, _ in keeping.encoder.named_parameters()] == [
        "0.weight",
        "0.bias",
        "3.weight",
        "3.bias",
    ]


def test_few_labels_are_as_many_of_each_class() -> None:
    few = few_labels(windows(400, 1), 5, seed=0)
    assert np.bincount(few.y).tolist() == [5] * CLASSES


def test_what_cannot_be_pretrained_is_refused_in_a_sentence() -> None:
    x = windows(8, 1).x
    with pytest.raises(UsageError, match="choose 2 to 48 patches"):
        hide(x, axis=1, copies=1, seed=0, patches=49)
    with pytest.raises(UsageError, match=r"part in \(0, 1\)"):
        hide(x, axis=1, copies=1, seed=0, part=1.0)
    with pytest.raises(UsageError, match="needs a hidden layer to pretrain"):
        reconstruction(nn.Linear(LENGTH, 3), x, axis=1)
    with pytest.raises(UsageError, match="choose one of spectra, moments"):
        reconstruction(network(), x, axis=1, tell="words")
    with pytest.raises(UsageError, match="ask for no more than that of each"):
        few_labels(windows(20, 1), 19, seed=0)
