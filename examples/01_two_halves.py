"""The textbook case, done right: network and images both cut in two halves, two processes.

A frequent first idea is to give process A the first half of the *network* and half of the images,
to give process B the second half of the network and the other half of the images, and to *add*
what both put out. That is not the model's output. The network is a composition,
``f(X) = f2(f1(X))``: the second half is made to read what the first half computes, not images, so
``f1(X_a) + f2(X_b)`` adds features of some images to an answer about features that nobody
computed - the shapes do not even fit. A sum is the right aggregation for exactly one kind of split:
when one *contraction* is divided, as in ``X W = X_1 W_1 + X_2 W_2``, each process holding a slice
of the summed axis. Dividing the *layers* asks for a pipeline: every image goes through both halves,
one after the other. Dividing the *images* gives answers for different images, and those are joined
with ``concat``, in image order. Both at once: while the first half of the images is in the second
half of the network, the second half of the images is in the first.

This file runs that plan on two processes, shows that the answer equals the undivided model's, and
then hands apportion the wrong plan, which it refuses with the reason.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from torch import nn

import executor
import planner
import profiler
from planner.check import check_plan
from planner.planfile import Plan
from planner.render import render_findings
from profiler.discover import discover
from profiler.errors import InvalidInputError

IMAGES = 64


def classifier() -> nn.Sequential:
    """A sequential image classifier, ``[batch, 1, 8, 8]`` to ten scores."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 64, 10),
    ).eval()


def right_plan(model: nn.Module, images: torch.Tensor) -> tuple[Plan, profiler.Profile]:
    """Two stages, one process each; the images go through in two halves."""
    profile = profiler.profile_model(
        model, images[:2], cluster=discover(cpu_devices=2), batch_sizes=[IMAGES // 2, IMAGES]
    )
    plan = planner.plan(profile, batch_size=IMAGES, microbatch_size=IMAGES // 2, splits=["layers"])
    return plan, profile


def wrong_plan(right: Plan) -> Plan:
    """Half the network and half the images each, outputs added: the right plan, edited."""
    data = yaml.safe_load(right.to_text(as_json=False))
    first, second = data["spec"]["pipelines"][0]["stages"]
    data["spec"]["pipelines"] = [
        {"index": 0, "items": IMAGES // 2, "stages": [{**first, "index": 0}]},
        {"index": 1, "items": IMAGES // 2, "stages": [{**second, "index": 0}]},
    ]
    data["spec"]["aggregation"]["strategy"] = "sum"
    return Plan.parse(yaml.safe_dump(data), name="wrong.yaml")


def main() -> None:
    """Run the right plan, compare, then try the wrong one."""
    model, images = classifier(), torch.randn(IMAGES, 1, 8, 8)
    plan, profile = right_plan(model, images)
    for stage in plan.spec.pipelines[0].stages:
        print(f"process {stage.ranks[0]} holds layers {', '.join(stage.layers)}")
    print(f"images travel {plan.spec.schedule.microbatch_size} at a time, answers are joined by "
          f"{plan.spec.aggregation.strategy}")  # fmt: skip

    options = executor.RunOptions(profile=profile)
    result = executor.run(plan, images, model=model, options=options)
    with torch.inference_mode():
        alone = model(images)
    difference = (result.outputs - alone).abs().max().item()
    print(f"largest difference from the undivided model: {difference:.1e}\n")

    wrong = wrong_plan(plan)
    Path("out").mkdir(exist_ok=True)
    wrong.dump("out/wrong.yaml")
    print("what `apportion check` says of the wrong plan:")
    print(render_findings(check_plan(wrong, profile)))
    try:
        executor.run(wrong, images, model=model, options=options)
    except InvalidInputError:
        print("`apportion run` refuses it too, before any process starts")
    else:
        sys.exit("the wrong plan ran: that is a bug")
    if difference > 1e-5:
        sys.exit("the right plan's answer differs from the model's")


if __name__ == "__main__":
    main()
