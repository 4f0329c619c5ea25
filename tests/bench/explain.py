"""What an explanation of one example costs on a device: integrated gradients and occlusion of the digits CNN.

Gradients stand beside captum's on torch, with the same 32 midpoints; occlusion of 64 parts beside 65 predictions
asked one by one. One thread each.
"""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import IntegratedGradients
from harness import Report, alternate, often, seconds

from umbel._predict.model import Model
from umbel.engines import load_engine
from umbel_models.pack import build
from umbel_models.task import find
from umbel_proto.keys import SigningKey
from umbel_proto.package import read_package

CALLS = 20
STEPS = 32


def main() -> None:
    torch.set_num_threads(1)
    report, key, task = Report("explain"), SigningKey.generate(), find("digits")
    package = read_package(build(task, key=key, version=1, lineage={}), release_key=key.public)
    model, x = Model(package, load_engine(package)), task.data().held_out.x[0]
    captums, given = IntegratedGradients(task.module().eval()), torch.from_numpy(x)[None]

    def each_ms(work: object) -> float:
        assert callable(work)
        return 1e3 * seconds(lambda: [work() for _ in range(often(CALLS))]) / often(CALLS)

    ours, baseline = alternate(
        lambda: each_ms(lambda: model.explain(x, target=3)),
        lambda: each_ms(lambda: captums.attribute(given, target=3, n_steps=STEPS, method="riemann_middle")),
    )
    report.value("digits: gradients, captum beside them", ours, unit="ms", at_most=5, baseline=baseline)
    batch = np.ascontiguousarray(x[None])
    ours, baseline = alternate(
        lambda: each_ms(lambda: model.explain(x, target=3, method="occlusion")),
        lambda: each_ms(lambda: [model.predict_proba(batch) for _ in range(65)]),
    )
    report.value("digits: occlusion, 65 predictions beside it", ours, unit="ms", at_most=5, baseline=baseline)
    report.finish()


if __name__ == "__main__":
    main()
