"""What becomes of a gradient: clipped by its norm, and made a step by SGD or Adam. In numpy, on the device.

The rules are torch's. Vectors are worked on in blocks that stay in a processor's cache: a model of
millions of parameters costs no copies of their length. Of a long one each of two threads takes blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from umbel.train.blocks import Work, at_once, in_blocks
from umbel.train.plan import ADAM, TrainPlan

if TYPE_CHECKING:
    from umbel_proto.manifest import FloatVector


SUMMED = 1 << 14
"""Elements whose squares are added up in float32, before sums are in Python's."""


class Optimizer(Protocol):
    """Changes the parameters of one training, step by step."""

    def step(self, parameters: FloatVector, gradient: FloatVector) -> None:
        """Change ``parameters``, shape (dim,), in place; ``gradient``, shape (dim,), is used up."""


def optimizer_of(plan: TrainPlan, dim: int, pool: ThreadPoolExecutor | None = None) -> Optimizer:
    """Return the plan's optimizer, at the start of a training.

    Args:
        plan: The plan.
        dim: How many parameters are trained.
        pool: A thread to take half of the work of long vectors; None for this one alone.
    """
    return Adam(plan, dim, pool) if plan.optimizer == ADAM else Sgd(plan, dim, pool)


class Sgd:
    """``v = momentum * v + g; p = p - rate * v``, v = 0 at the start; with Nesterov the step is ``g + momentum * v``.

    Source: torch.optim.SGD, with dampening 0.
    """

    def __init__(self, plan: TrainPlan, dim: int, pool: ThreadPoolExecutor | None = None) -> None:
        self._plan, self._pool = plan, pool
        self._velocity = np.zeros(dim if plan.momentum else 0, np.float32)
        self._rooms = np.empty((2, at_once(pool, dim)), np.float32)

    def step(self, parameters: FloatVector, gradient: FloatVector) -> None:
        """See ``Optimizer``."""
        plan = self._plan
        rate, momentum = np.float32(plan.learning_rate), np.float32(plan.momentum)

        def works(room: FloatVector) -> Work:
            def work(low: int, high: int) -> None:
                p, g, product = parameters[low:high], gradient[low:high], room[: high - low]
                _decay(p, g, plan.weight_decay)
                step = g
                if momentum:
                    step = v = self._velocity[low:high]
                    v *= momentum
                    v += g
                    if plan.nesterov:
                        g += np.multiply(v, momentum, out=product)
                        step = g
                p -= np.multiply(step, rate, out=product)

            return work

        in_blocks(self._pool, len(parameters), works(self._rooms[0]), works(self._rooms[1]))


class Adam:
    """Steps as long as a gradient's running mean over the root of its running square.

    Source: Kingma, Ba, ICLR 2015 (arXiv 1412.6980), algorithm 1; torch.optim.Adam, without amsgrad.
    """

    def __init__(self, plan: TrainPlan, dim: int, pool: ThreadPoolExecutor | None = None) -> None:
        self._plan, self._pool, self._steps = plan, pool, 0
        self._mean, self._square = np.zeros(dim, np.float32), np.zeros(dim, np.float32)

    def step(self, parameters: FloatVector, gradient: FloatVector) -> None:
        """See ``Optimizer``."""
        plan = self._plan
        self._steps += 1
        beta_1, beta_2 = np.float32(plan.momentum), np.float32(plan.second_momentum)
        new_1, new_2 = np.float32(1 - plan.momentum), np.float32(1 - plan.second_momentum)
        rate = np.float32(plan.learning_rate / (1 - plan.momentum**self._steps))
        unbias = np.float32(1 / (1 - plan.second_momentum**self._steps) ** 0.5)
        tiny = np.float32(plan.adaptivity)

        def work(low: int, high: int) -> None:
            p, g, m, s = (each[low:high] for each in (parameters, gradient, self._mean, self._square))
            _decay(p, g, plan.weight_decay)
            m *= beta_1
            m += new_1 * g
            s *= beta_2
            g *= g
            g *= new_2
            s += g
            root = np.sqrt(s, out=g)
            root *= unbias
            root += tiny
            np.divide(m, root, out=root)
            root *= rate
            p -= root

        in_blocks(self._pool, len(parameters), work)


def clip_norm(gradient: FloatVector, limit: float) -> None:
    """Scale a gradient, shape (dim,), in place so that its L2 norm is ``limit`` at most.

    Source: Pascanu et al., ICML 2013 (arXiv 1211.5063), section 3.2; torch.nn.utils.clip_grad_norm_.
    """
    total = sum(float(np.dot(gradient[block], gradient[block])) for block in _blocks(len(gradient)))
    if not np.isfinite(total):  # A finite gradient's square may overflow a float32.
        total = float(np.square(gradient, dtype=np.float64).sum())
    scale = limit / (total**0.5 + 1e-6)
    if not scale >= 1:  # Also what is not a number: it must not pass for short.
        gradient *= np.float32(scale)


def pull(gradient: FloatVector, parameters: FloatVector, towards: FloatVector, mu: float) -> None:
    """Add ``mu * (parameters - towards)`` to a gradient, all of shape (dim,): the gradient of FedProx's term.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (arXiv 1812.06127), (2).
    """
    for block in _blocks(len(gradient)):
        away = parameters[block] - towards[block]
        away *= np.float32(mu)
        gradient[block] += away


def _decay(parameters: FloatVector, gradient: FloatVector, weight_decay: float) -> None:
    if weight_decay:
        gradient += np.float32(weight_decay) * parameters


def _blocks(dim: int) -> Iterator[slice]:
    return (slice(low, low + SUMMED) for low in range(0, dim, SUMMED))
