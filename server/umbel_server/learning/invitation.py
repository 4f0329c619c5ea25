"""What a round begins with: the descriptor, the training plan and the model, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from umbel_proto.credentials import FleetPolicy
from umbel_proto.ids import RunId
from umbel_proto.privacy.auxiliary import Quantity
from umbel_proto.privacy.encode import Encoding
from umbel_proto.secagg.session import Descriptor, model_hash, plan_hash
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.plan import ADAM, RunPlan


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a round begins with.

    Args:
        descriptor: The session.
        plan: Serialized TrainPlan; empty in a query.
        model: The global parameters, float32, little-endian; empty in a query.
        query: A query as the authority signed it; empty in training.
    """

    descriptor: Descriptor
    plan: bytes
    model: bytes = field(repr=False)
    query: bytes = b""


def invite(
    run: RunId,
    number: int,
    attempt: int,
    *,
    plan: RunPlan,
    policy: FleetPolicy,
    encoding: Encoding,
    quantities: Sequence[Quantity],
    parameters: NDArray[np.float32],
    now_s: float,
) -> Invitation:
    """Return the invitation to an attempt at a round.

    Args:
        run: The run.
        number: The round, from 1.
        attempt: The attempt at it, from 1.
        plan: The run's.
        policy: What the fleet's devices insist on.
        encoding: Of this round.
        quantities: What devices add beside their updates.
        parameters: The global parameters, shape (dim,).
        now_s: Unix seconds.
    """
    vector = parameters.astype("<f4", copy=False).tobytes()
    training, timing = plan.training, plan.timing
    adam = training.optimizer == ADAM
    train_plan = pb.TrainPlan(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        seed=training.seed,
        package_sha256=bytes.fromhex(plan.package_sha256),
        model=plan.model,
        package_version=plan.version,
        auxiliary=[pb.Quantity(name=q.name, low=q.low, high=q.high) for q in quantities],
        holdback=training.holdback,
        # What says nothing is left out: a device from before these settings reads the plan as well.
        optimizer=ADAM if adam else "",
        nesterov=training.nesterov,
        second_momentum=training.second_momentum if adam else 0.0,
        adaptivity=training.adaptivity if adam else 0.0,
        weight_decay=training.weight_decay,
        gradient_clip=training.gradient_clip,
        fedprox_mu=training.fedprox_mu,
        patience=training.patience,
        time_limit_s=training.time_limit_s,
        example_clip=training.example_clip,
        example_noise=training.example_noise,
    ).SerializeToString(deterministic=True)
    life_s = timing.train_timeout_s + 4 * timing.phase_timeout_s
    descriptor = Descriptor(
        fleet=policy.fleet,
        run=run,
        round=number,
        attempt=attempt,
        task=plan.model,
        model_hash=model_hash(vector),
        plan_hash=plan_hash(train_plan),
        encoding=encoding,
        min_cohort=policy.min_cohort,
        max_cohort=max(plan.most_devices, policy.min_cohort),
        corrupt_fraction=policy.corrupt_fraction,
        dropout_fraction=policy.dropout_fraction,
        server_malicious=policy.server_malicious,
        closes_at_s=int(now_s + life_s) + 1,
    )
    return Invitation(descriptor, train_plan, vector)
