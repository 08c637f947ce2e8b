"""Outputs that are a mean over items, computed by ranks that hold unequal shares of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from executor.verification import verify
from profiler.capture import Captured, capture
from profiler.errors import InvalidInputError
from profiler.profile import Profile
from profiler.sources import Example, load_model
from tests.support import running
from tests.support.plans import edit

pytestmark = pytest.mark.distributed


class Scored(nn.Module):
    """Scores, how far they are from what they should be, and their largest."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return F.mse_loss(scores, y), scores, scores.amax(0)


@pytest.fixture(scope="module")
def scored() -> tuple[Scored, Captured, Profile]:
    torch.manual_seed(0)
    module = Scored().eval()
    made = capture(load_model(module, Example(args=(torch.randn(2, 8), torch.randn(2, 4)))))
    return module, made, running.made_up_profile(made)


def inputs(items: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(items)
    return (
        torch.randn(items, 8, generator=generator),
        torch.randn(items, 4, generator=generator),
    )


@pytest.mark.parametrize("split", [running.batch_split, running.side_by_side, running.mixed])
def test_a_mean_and_a_largest_over_unequal_shares(
    split: running.Splitting, scored: tuple[Scored, Captured, Profile]
) -> None:
    module, made, profile = scored
    plan = split(profile)
    strategies = {x.tensor: x.strategy for x in plan.spec.aggregation.outputs or ()}
    assert sorted(strategies.values()) == ["max", "weighted_mean"]
    with running.session(plan, made, profile) as session:
        for items in (1, 7, 8, 19):
            with torch.no_grad():
                expected = module(*inputs(items))
            answer = session.run(inputs(items)).outputs
            assert running.difference(expected, answer)[0] <= 1
    sources = running.options(profile)
    check = verify(plan, inputs(8), model=made, options=sources).outputs
    assert check is not None
    assert check.equal


def test_a_plain_mean_is_for_whole_batches_of_equal_shares(
    scored: tuple[Scored, Captured, Profile],
) -> None:
    module, made, profile = scored
    plan = running.pipeline(profile, batch_size=6, microbatch_size=2)
    loss = next(x for x in plan.spec.aggregation.outputs or () if x.strategy == "weighted_mean")
    at = (plan.spec.aggregation.outputs or ()).index(loss)
    plan = edit(plan, {f"spec.aggregation.outputs.{at}.strategy": "mean"})
    with running.session(plan, made, profile) as session:
        with torch.no_grad():
            expected = module(*inputs(12))
        assert running.difference(expected, session.run(inputs(12)).outputs)[0] <= 1
        with pytest.raises(InvalidInputError, match=r"7 items .* batch is 6.*unequal shares"):
            session.run(inputs(7))
