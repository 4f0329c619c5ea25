"""The activity task: its labels and its data contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel_models.task import About, Task, cross_entropy
from umbel_models.tasks.activity import data
from umbel_models.tasks.activity.motion import ACTIVITIES
from umbel_models.tasks.activity.people import AGE_GROUPS
from umbel_models.tasks.parts import datasheet
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName

if TYPE_CHECKING:
    from umbel_models.tasks.activity.module import ActivityNet

SEED = 0
LARGEST = 40.0  # both full scales: 4 g is 39.2 m/s^2, 2,000 degrees a second are 34.9 rad/s


def module() -> ActivityNet:
    """Return the network with its initial parameters."""
    from umbel_models.tasks.activity.module import initial

    return initial(SEED)


ACTIVITY = Task(
    model=ModelName("activity"),
    module=module,
    loss=cross_entropy,
    labels=ACTIVITIES,
    contract=DataContract(
        (
            Field(
                "x",
                "float32",
                (data.SAMPLES, len(data.CHANNELS)),
                -LARGEST,
                LARGEST,
                unit="m/s^2, rad/s in channels 3 to 5",
            ),
        )
    ),
    decision_threshold=0.8,
    data=data.split,
    about=About(
        purpose="Tell what a person is doing from 2.56 s of a phone's motion sensors; shows what umbel does.",
        data="Generated: inverted-pendulum gait, limbs as pendulums and a phone's sensor "
        "(umbel_models.tasks.activity, with its sources), in the form of UCI's HAR data set (Anguita et al. "
        "2013). No person's data is in it.",
        limits=(
            "Not validated against recordings: accuracy on real phones is unknown.",
            "Six activities, on flat ground and even stairs, by people without impairments of gait.",
            "In a pocket, sitting and lying on the back look alike: the thigh is level in both.",
        ),
        license="CC0-1.0",
        datasheet=datasheet(__package__),
    ),
    cohorts=AGE_GROUPS,
    columns=data.CHANNELS,
    shifted=data.shifted,
)
