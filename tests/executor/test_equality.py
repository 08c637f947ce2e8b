"""Plans compute what the undivided model computes: every architecture, every way to split it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from planner.planfile import Plan
from profiler.sources import Example
from tests.support import running, zoo
from tests.support.captures import APPROXIMATE, captured, undivided
from tests.support.cutting import resized
from tests.support.running import profile_of

pytestmark = pytest.mark.distributed

ARCHITECTURES = [*zoo.NETWORKS, *zoo.HUGGING_FACE]
SPLITS = {
    "pipeline": running.pipeline,
    "batch": running.batch_split,
    "mixed": running.mixed,
}
BATCH = 8
"""Items of a batch in all these plans; microbatches have 2 to 6."""

REORDERED = {"clip", "vit", "transformer_sequence_first"}
"""Models whose tensors cross stages with permuted strides: they arrive in order, and kernels add
in another order than on the permuted ones."""

VECTORS = {"batch_similarity"}
"""Models that multiply one item with one item: which kernel takes the product of two vectors, and
so the order of its sum, depends on strides that nothing reads."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks
    yield
    torch.set_num_threads(before)


def item_counts(name: str, plan: Plan) -> list[int]:
    """One, odd, more than a microbatch, more than a batch if the model may see several."""
    static = captured(name).graph.static_batch
    if static is not None:
        return [static]
    whole = any(stage.whole_batch for p in plan.spec.pipelines for stage in p.stages)
    return [1, 3, 5, BATCH] if whole else [1, 3, 7, BATCH + 3]


def check(name: str, plan: Plan, *, identical: Callable[[int], bool]) -> None:
    """Run several numbers of items through one session; some must agree to the last bit."""
    made = captured(name)
    with running.session(plan, made, profile_of(name)) as session:
        for items in item_counts(name, plan):
            args, kwargs = resized(made, items, seed=items)
            result = session.run(Example(args=args, kwargs=kwargs))
            assert made.source.module is not None
            expected = undivided(made.source.module, args, kwargs)
            error, same_bits = running.difference(expected, result.outputs)
            assert error <= 1, f"{items} items: error is {error:.3g} of the tolerance"
            if identical(items) and name not in APPROXIMATE:
                assert same_bits, f"{items} items: error is {error:.3g} of the tolerance"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str, split: str) -> None:
    plan = SPLITS[split](profile_of(name))
    # One piece holds all items: the same kernels on the same numbers.
    at_once = plan.spec.schedule.microbatch_size if split == "pipeline" else 1
    check(name, plan, identical=lambda items: items <= at_once and name not in REORDERED)


@pytest.mark.parametrize("name", ["mlp", "resnet50", "transformer_sequence_first", "bert", "t5"])
def test_pipelines_side_by_side(name: str) -> None:
    plan = running.side_by_side(profile_of(name))
    check(name, plan, identical=lambda items: items == 1)


@pytest.mark.parametrize("name", [name for name in zoo.AWKWARD if name != "counter"])
def test_awkward_models(name: str) -> None:
    profile = profile_of(name)
    static = profile.model.static_batch
    if running.comparing(profile) < 2:
        size = static or BATCH
        plan = running.pipeline(profile, batch_size=size, microbatch_size=size)
    else:
        plan = running.mixed(profile)
    check(name, plan, identical=lambda items: items == 1 and name not in VECTORS)


@pytest.mark.parametrize(
    "name",
    ["views_returned", "same_output_twice", "input_returned", "parameter_returned",
     "returned_then_changed", "alias_returned_then_changed"],
)  # fmt: skip
def test_outputs_that_share_memory_leave_the_root_apart(name: str) -> None:
    # The whole answer is one piece of the root's own: nothing on the way has copied any of it.
    check(name, running.one_device(profile_of(name)), identical=lambda items: items <= BATCH)


def test_a_layer_that_compares_items_sees_all_of_a_batch_split_before_it() -> None:
    profile = profile_of("clip")
    plan = running.batch_split(profile)
    towers, comparing = plan.spec.pipelines[0].stages
    assert (towers.split, comparing.whole_batch) == ("batch", True)
    made = captured("clip")
    args, kwargs = resized(made, BATCH)
    with running.session(plan, made, profile) as session:
        logits = session.run(Example(args=args, kwargs=kwargs)).outputs.logits_per_image
    assert logits.shape == (BATCH, BATCH)


def test_state_goes_on_from_run_to_run_as_in_one_process() -> None:
    made = captured("counter")
    module, _ = zoo.counter()
    with running.session(running.pipeline(profile_of("counter")), made, profile_of("counter")) as s:
        for _ in range(3):
            args, kwargs = resized(made, BATCH)
            with torch.no_grad():
                expected = module(*args, **kwargs)
            assert running.difference(expected, s.run(args[0]).outputs)[0] <= 1
