"""Limits and objectives as a user meets them: flags, files, screens, errors, what check says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from planner import plan
from planner.check import check_plan
from planner.cli import app
from planner.explain import explain
from planner.frontfile import ParetoFront
from planner.planfile import Plan
from planner.render import render_text
from planner.request import Objective, PlanRequest, Split
from profiler.errors import InfeasiblePlanError, InvalidInputError
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile
from tests.support.plans import edit

# Six layers of 1 s an item on a and b, 2 s on c and d; sending takes 0.8 s a hop. Batches of 4.
CLUSTER = make_cluster(
    {"a": GIB, "b": GIB, "c": GIB, "d": GIB},
    types={"a": "fast", "b": "fast", "c": "slow", "d": "slow"},
    latency_s=0.8,
)
PROFILE = make_profile(
    chain_graph(6),
    CLUSTER,
    seconds={"a": [1.0] * 6, "b": [1.0] * 6, "c": [2.0] * 6, "d": [2.0] * 6},
)
REQUEST = PlanRequest(batch_size=4, microbatch_size=1, splits=(Split.LAYERS,))
PRICES = {"fast": 4.0, "slow": 1.0}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with profile.json, as the current one."""
    monkeypatch.chdir(tmp_path)
    PROFILE.dump("profile.json")
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


ASK = ("plan", "profile.json", "--batch-size", "4", "--microbatch-size", "1", "--split", "layers")


def made(**wishes: object) -> Plan:
    return plan(PROFILE, REQUEST.replaced(**wishes))


class TestLimits:
    """Throughput within a latency, latency at a rate."""

    def test_without_limits_four_stages_are_quickest(self) -> None:
        # 2 + 2 layers at 1 s, 1 + 1 at 2 s: a period of 8 s for 4 items.
        free = made()
        assert free.estimate.period_s == pytest.approx(8.0)
        assert free.search.limits == ()

    def test_a_latency_limit_takes_fewer_stages(self) -> None:
        # On a and b 3 + 3 layers: 6 s, two hops, 3 more microbatches of 3 s: 16.6 s. On all four
        # 2 + 2 + 1 + 1: 8 s, four hops, 3 more of 2 s: 17.2 s.
        found = made(max_latency_s=16.7)
        assert found.estimate.latency_s == pytest.approx(16.6)
        assert found.estimate.period_s == pytest.approx(12.0)
        assert found.search.status == "optimal"
        (limit,) = found.search.limits
        assert (limit.limit, limit.allowed) == ("max_latency_s", 16.7)
        assert limit.without_s == pytest.approx(8.0)
        assert check_plan(found, PROFILE) == ()

    def test_a_rate_limit_on_latency(self) -> None:
        # The least latency of all is 16.6 s; 0.4 items/s (10 s a batch) take four stages.
        assert made(objective=Objective.LATENCY).estimate.latency_s == pytest.approx(16.6)
        found = made(objective=Objective.LATENCY, min_items_per_s=0.4)
        assert found.estimate.period_s <= 10.0
        assert found.estimate.latency_s > 16.6
        assert found.search.status == "optimal"

    def test_explain_shows_the_limit_beside_the_figure(self) -> None:
        text = render_text(explain(made(max_latency_s=16.7), name="plan.yaml"))
        assert (
            "  limits      latency 16.6 s, at most 16.7 s: without this limit the period is 8.00 s "
            "(-33.3%)" in text
        )

    def test_check_holds_an_edited_request_to_its_limits(self) -> None:
        found = made(max_latency_s=16.7)
        for wish, code in (
            ({"inputs.request.max_latency_s": 10.0}, "max-latency"),
            ({"inputs.request.min_items_per_s": 9.0}, "min-rate"),
            ({"inputs.request.max_devices": 1}, "max-devices"),
        ):
            codes = {x.code for x in check_plan(edit(found, wish), PROFILE)}
            assert code in codes

    def test_a_device_that_is_not_needed_is_more_than_the_least(self) -> None:
        # Two of three equal devices bring 4 items in 12 s; the third would be one too many.
        equal = make_profile(
            chain_graph(6),
            make_cluster(dict.fromkeys("abc", GIB), types=dict.fromkeys("abc", "t"), latency_s=0.8),
            seconds={name: [1.0] * 6 for name in "abc"},
        )
        wish = {"objective": Objective.DEVICES, "min_items_per_s": 4 / 12}
        (idle,) = plan(equal, REQUEST.replaced(**wish)).search.idle
        assert idle.reason == "with it as well it is more than the least that keeps the limits"

    def test_check_derives_what_is_said_of_limits_and_devices(self) -> None:
        limited = made(max_latency_s=16.7)
        counted = made(objective=Objective.DEVICES, min_items_per_s=4 / 12)
        for found, change, code in (
            (limited, {"search.limits.0.actual": 12.0}, "limits"),
            (limited, {"search.limits.0.limit": "max_devices"}, "limits"),
            (counted, {"search.devices.total": 1.0, "search.devices.bound": 1.0}, "devices"),
            (counted, {"search.devices.bound": 3.0}, "devices"),
            (counted, {"search.devices.bound": 1.0}, "status"),
            (counted, {"search.devices.what": "price"}, "devices"),
        ):
            assert code in {x.code for x in check_plan(edit(found, change), PROFILE)}

    def test_the_baseline_breaks_a_new_limit(self) -> None:
        before = made()
        after = plan(PROFILE, baseline=before, max_latency_s=16.7)
        assert after.search.baseline is not None
        assert after.search.baseline.verdict == "unfit"
        assert "the request allows" in after.search.baseline.summary

    def test_fallbacks_keep_the_limit(self) -> None:
        found = plan(PROFILE, REQUEST.replaced(max_latency_s=16.7), fallbacks=True)
        loss = {x.devices[0]: x for x in found.search.fallbacks}
        # Without b two of six layers are at 2 s: 21 s and more.
        assert "h/b" in loss
        assert loss["h/b"].objective_s is None
        assert "keeps every limit (proved)" in loss["h/b"].note


class TestDevices:
    """Fewest devices, least price."""

    def test_fewest_devices_for_a_rate(self) -> None:
        # One device: 24 s a batch; two fast ones: 12 s; 10 s need all four.
        for rate, number in ((4 / 24, 1), (4 / 12, 2), (4 / 10, 4)):
            found = made(objective=Objective.DEVICES, min_items_per_s=rate)
            said = found.search.devices
            assert said is not None
            assert (said.what, said.total, said.bound) == ("devices", number, number)
            assert len(found.spec.ranks) == number
            assert check_plan(found, PROFILE) == ()

    def test_least_price_takes_slow_devices(self) -> None:
        # a has a rank in any case (4); with c (1) 4 + 2 layers: 4 s an item, 16 s a batch.
        found = made(objective=Objective.PRICE, min_items_per_s=4 / 16, prices_per_hour=PRICES)
        said = found.search.devices
        assert said is not None
        assert (said.total, said.bound) == (5.0, 5.0)
        assert sorted(x.device_type for x in found.spec.ranks) == ["fast", "slow"]
        text = render_text(explain(found, name="plan.yaml"))
        assert "5 an hour for 2 devices: the least that keep the limits (proved)" in text

    def test_prices_of_the_cluster_file_do_too(self) -> None:
        hosts = tuple(
            host.replaced(
                devices=tuple(x.replaced(price_per_hour=PRICES[x.type]) for x in host.devices)
            )
            for host in CLUSTER.hosts
        )
        found = plan(
            PROFILE,
            REQUEST.replaced(objective=Objective.PRICE, min_items_per_s=4 / 16),
            cluster=CLUSTER.replaced(hosts=hosts),
        )
        assert found.search.devices is not None
        assert found.search.devices.total == 5.0

    def test_a_missing_price_is_named(self) -> None:
        with pytest.raises(InvalidInputError, match="2 of 4 have none, of type slow"):
            made(objective=Objective.PRICE, min_items_per_s=0.1, prices_per_hour={"fast": 4.0})

    def test_a_price_of_nothing_is_named(self) -> None:
        with pytest.raises(InvalidInputError, match="names 'A100', which is neither"):
            made(prices_per_hour={"A100": 4.0})

    def test_fewest_for_what(self) -> None:
        with pytest.raises(InvalidInputError, match="give min_items_per_s, max_latency_s or both"):
            plan(PROFILE, objective="devices", batch_size=4)

    def test_a_plan_in_use_on_more_devices_is_changed(self) -> None:
        before = made(max_devices=4)
        after = plan(PROFILE, baseline=before, objective="devices", min_items_per_s=4 / 12)
        said = after.search.baseline
        assert said is not None
        assert (said.verdict, said.devices, said.found_devices) == ("changed", 4.0, 2.0)
        assert said.gain == pytest.approx(0.5)
        kept = plan(
            PROFILE,
            baseline=before,
            min_gain=0.6,
            objective="devices",
            min_items_per_s=4 / 12,
        )
        assert kept.search.baseline is not None
        assert kept.search.baseline.verdict == "kept"
        for found in (after, kept):
            assert check_plan(found, PROFILE) == ()


class TestClashes:
    """Limits that no plan keeps."""

    def test_both_numbers_and_the_next_step(self) -> None:
        with pytest.raises(InfeasiblePlanError) as caught:
            made(min_items_per_s=1.0)
        text = str(caught.value)
        assert "the wanted rate needs 1 items/s, but the best plan has 0.5 items/s" in text
        assert "lower min_items_per_s from 1 to 0.5 or less" in text

    def test_each_limit_with_the_others_kept(self) -> None:
        with pytest.raises(InfeasiblePlanError) as caught:
            made(min_items_per_s=0.4, max_latency_s=16.7, max_devices=2)
        text = str(caught.value)
        for words in ("lower min_items_per_s from 0.4 to 0.3333 or less",):
            assert words in text
        assert "raise max_latency_s" not in text  # two devices have no 0.4 items/s at all

    def test_memory_is_still_named_where_nothing_fits(self) -> None:
        with pytest.raises(InfeasiblePlanError, match="raise max_bytes of h/a"):
            plan(
                PROFILE,
                REQUEST.replaced(
                    min_items_per_s=0.1, max_bytes=dict.fromkeys(CLUSTER.device, 1000)
                ),
            )


class TestFront:
    """``apportion plan --pareto``."""

    def test_table_picture_data_and_plans(self, here: Path) -> None:
        code, out, err = call(
            *ASK, "--pareto", "--pareto-svg", "f.svg", "--pareto-plans", "plans", "-o", "f.yaml"
        )
        assert code == 0, err
        assert max(len(line) for line in out.splitlines()) <= 80
        assert out.splitlines()[0].split() == [
            "#", "devices", "latency", "gap", "items/s", "gap", "period", "proof",
        ]  # fmt: skip
        assert "all proved" in out
        front = ParetoFront.load("f.yaml")
        # 3 devices are no better than 2: layers are whole.
        assert [(p.devices, round(p.latency_s, 6), round(p.period_s, 6)) for p in front.points] == [
            (1, 24.0, 24.0),
            (2, 16.6, 12.0),
            (4, 17.2, 8.0),
        ]
        root = ET.parse("f.svg").getroot()
        circles = [x for x in root.iter() if x.tag.endswith("circle") and len(x)]
        assert len(circles) == len(front.points)
        for point in front.points:
            path = f"plans/point-{point.number:02}.yaml"
            found = Plan.load(path)
            assert check_plan(found, PROFILE) == ()
            assert found.search.objective_s == point.period_s
            assert found.inputs.request.max_devices == point.devices

    def test_one_point_as_a_plan(self, here: Path) -> None:
        code, out, _ = call(*ASK, "--pareto", "--point", "2", "-o", "p.yaml")
        assert (code, "all proved" in out) == (0, True)
        assert len(Plan.load("p.yaml").spec.ranks) == 2
        assert call(*ASK, "--pareto", "--point", "2")[1].startswith("kind: Plan")
        code, _, err = call(*ASK, "--pareto", "--point", "99")
        assert (code, "the front has points 1 to" in err) == (2, True)

    def test_data_on_stdout(self, here: Path) -> None:
        code, out, _ = call(*ASK, "--pareto", "--format", "json", "--price", "fast=4")
        data = json.loads(out)
        assert (code, data["kind"]) == (0, "ParetoFront")
        assert data["points"][0]["price_per_hour"] == 4.0

    def test_limits_hold_for_every_point(self, here: Path) -> None:
        code, out, _ = call(*ASK, "--pareto", "--max-latency", "16.7s", "--format", "json")
        assert code == 0
        (point,) = json.loads(out)["points"]
        assert point["latency_s"] == pytest.approx(16.6)
        code, _, err = call(*ASK, "--pareto", "--max-latency", "1s")
        assert (code, "raise max_latency_s from 1.00 s to 16.6 s" in err) == (3, True)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--point", "1"], "--point goes with --pareto"),
            (["--pareto", "--with-fallbacks"], "--pareto goes with neither"),
            (["--pareto", "--objective", "devices", "--min-rate", "1"], "leave the objective out"),
            (["--max-latency", "soon"], "max_latency_s"),
            (["--min-rate", "-3"], "min_items_per_s"),
            (["--price", "fast=cheap"], "--price 'fast=cheap': write a number"),
            (["--max-devices", "0"], "max_devices"),
        ],
    )
    def test_wrong_input(self, here: Path, flags: list[str], message: str) -> None:
        code, out, err = call(*ASK, *flags)
        assert (code, out) == (2, "")
        assert message in err

    def test_a_request_file_says_the_same(self, here: Path) -> None:
        Path("request.yaml").write_text(
            yaml.safe_dump(
                {
                    "kind": "PlanRequest",
                    "format_version": "1.0",
                    "batch_size": 4,
                    "microbatch_size": 1,
                    "splits": ["layers"],
                    "objective": "devices",
                    "min_items_per_s": 0.4,
                    "max_latency_s": "60s",
                }
            )
        )
        code, _, err = call("plan", "profile.json", "--request", "request.yaml", "-o", "p.yaml")
        assert code == 0
        assert "4 devices: the fewest that keep the limits (proved)" in err
