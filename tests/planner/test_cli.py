from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from planner.cli import app
from planner.planfile import Plan
from tests.support.plans import DELETE, edit
from tests.support.small_plans import CHAIN, LEGAL_EDIT, two_stages
from tests.support.stories import everyday_plan, run_report

HEAVY = {"torch", "ortools", "pandas", "numpy", "networkx", "rich", "transformers"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with profile.json and plan.yaml, as the current one."""
    monkeypatch.chdir(tmp_path)
    CHAIN.dump("profile.json")
    two_stages().dump("plan.yaml")
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import planner.cli",
        "import planner",
        "from planner.cli import app; app(['explain', 'plan.yaml'], standalone_mode=False)",
        "from planner.cli import app; app(['check', 'plan.yaml'], standalone_mode=False)",
        "from planner.cli import app; "
        "app(['diff', 'plan.yaml', 'plan.yaml'], standalone_mode=False)",
    ],
)
def test_reading_a_plan_loads_nothing_heavy(here: Path, statement: str) -> None:
    code = f"{statement}\nimport sys\nprint('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


class TestExplain:
    """``apportion explain``."""

    def test_text_markdown_and_json(self, here: Path) -> None:
        assert call("explain", "plan.yaml")[1].startswith("Plan  plan.yaml  sha256:")
        assert call("explain", "plan.yaml", "--format", "markdown")[1].startswith("### Plan")
        code, out, err = call("explain", "plan.yaml", "--format", "json")
        assert (code, err) == (0, "")
        assert json.loads(out)["result"]["objective"] == "throughput"

    def test_layers(self, here: Path) -> None:
        assert call("explain", "plan.yaml", "--layer", "l2")[1] == (
            "l2  pipeline0.stage1  rank 1 h/b, rank 2 h/c\n"
        )
        out = call("explain", "plan.yaml", "--layer", "l2", "--format", "json")[1]
        assert json.loads(out)[0]["ranks"] == [1, 2]
        code, _, err = call("explain", "plan.yaml", "--layer", "(")
        assert (code, err.startswith("error: --layer")) == (2, True)

    def test_beside_a_run(self, here: Path) -> None:
        plan = everyday_plan()
        plan.dump("real.yaml")
        Path("run.json").write_text(json.dumps(run_report(plan)))
        assert "<- wrong" in call("explain", "real.yaml", "--report", "run.json")[1]
        code, _, err = call("explain", "plan.yaml", "--report", "run.json")
        assert (code, "the report is of plan" in err) == (2, True)

    def test_from_standard_input(self, here: Path) -> None:
        text = Path("plan.yaml").read_text()
        result = CliRunner().invoke(app, ["explain", "-"], input=text)
        assert (result.exit_code, "Plan  -  sha256" in result.stdout) == (0, True)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("none.yaml", None, "error: there is no file none.yaml"),
            ("profile.json", None, "error: profile.json is not a Plan: its kind is 'Profile'"),
            ("cut.yaml", "kind: Plan\nspec: {a: [", "error: cut.yaml is not valid YAML"),
            ("empty.yaml", "", "error: empty.yaml is not a document"),
            ("new.yaml", "kind: Plan\nformat_version: '2.0'\n", "format_version '2.0'"),
            ("odd.yaml", "kind: Plan\nformat_version: '1.0'\nspce: 1\n", "spce: unknown key"),
        ],
    )
    def test_what_is_no_plan_exits_with_2_and_one_message(
        self, here: Path, name: str, text: str | None, message: str
    ) -> None:
        if text is not None:
            Path(name).write_text(text)
        for command in ("explain", "check"):
            code, out, err = call(command, name)
            assert (code, out) == (2, "")
            assert message in err
            assert "Traceback" not in err


class TestCheck:
    """``apportion check``."""

    def test_a_clean_plan(self, here: Path) -> None:
        assert call("check", "plan.yaml") == (0, "no findings: the plan keeps every rule\n", "")

    def test_the_profile_is_also_looked_for_beside_the_plan(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "elsewhere").mkdir()
        monkeypatch.chdir(here / "elsewhere")
        assert call("check", "../plan.yaml")[0] == 0

    def test_a_missing_profile_is_asked_for(self, here: Path) -> None:
        Path("profile.json").rename("moved.json")
        code, _, err = call("check", "plan.yaml")
        assert (code, "say where it is with --profile" in err) == (2, True)
        assert call("check", "plan.yaml", "--profile", "moved.json")[0] == 0

    def test_a_legal_edit_is_stated_and_no_error(self, here: Path) -> None:
        edit(two_stages(), LEGAL_EDIT).dump("plan.yaml")
        code, out, _ = call("check", "plan.yaml")
        assert code == 0
        assert "compute_s 4 -> 6 (+50.0%)" in out
        assert out.endswith("0 errors, 8 warnings\n")

    def test_a_broken_rule_exits_with_5(self, here: Path) -> None:
        edit(two_stages(), {"spec.transfers.1": DELETE}).dump("plan.yaml")
        code, out, _ = call("check", "plan.yaml")
        assert (code, "error: transfer-missing: pipeline0.stage1" in out) == (5, True)
        code, out, _ = call("check", "plan.yaml", "--format", "json")
        data = json.loads(out)
        assert (code, data["errors"], data["warnings"]) == (5, 1, 1)
        assert {x["code"] for x in data["findings"]} == {"edited", "transfer-missing"}

    def test_another_profile_exits_with_4(self, here: Path) -> None:
        CHAIN.model_copy(update={"batch_sizes": (1,)}).dump("profile.json")
        code, out, err = call("check", "plan.yaml")
        assert (code, out) == (4, "")
        assert "error: the plan is stale" in err
        assert "profile: planned with sha256:" in err

    def test_another_cluster_exits_with_4(self, here: Path) -> None:
        cluster = yaml.safe_load(CHAIN.cluster.to_text(as_json=False))
        cluster["hosts"][0]["devices"][1]["memory_bytes"] = "2GiB"
        Path("cluster.yaml").write_text(yaml.safe_dump(cluster))
        code, _, err = call("check", "plan.yaml", "--cluster", "cluster.yaml")
        assert (code, "cluster: planned with" in err) == (4, True)

    def test_strange_references_are_no_way_to_other_files(self, here: Path) -> None:
        for ref in ("\0", "x" * 5000, "/dev/zero", "."):
            edit(two_stages(), {"inputs.profile.ref": ref}).dump("plan.yaml")
            code, _, err = call("check", "plan.yaml")
            assert (code, "is neither here nor beside the plan" in err) == (2, True)


class TestPlan:
    """``apportion plan``."""

    def test_a_plan_that_check_accepts_and_its_story_on_stderr(self, here: Path) -> None:
        code, out, err = call("plan", "profile.json", "-o", "new.yaml", "--batch-size", "8")
        assert (code, out) == (0, "")
        assert err.startswith("Plan  new.yaml  sha256:")
        assert call("check", "new.yaml")[0] == 0
        made = Plan.load("new.yaml")
        assert made.inputs.profile.ref == "profile.json"
        assert made.inputs.request.batch_size == 8

    def test_the_batch_is_the_largest_measured_unless_said(self, here: Path) -> None:
        call("plan", "profile.json", "-o", "new.yaml", "--time-limit", "5")
        assert Plan.load("new.yaml").inputs.request.batch_size == 16

    def test_the_same_question_gives_the_same_bytes(self, here: Path) -> None:
        for name in ("one.yaml", "two.yaml"):
            call("plan", "profile.json", "-o", name, "--batch-size", "4")
        assert Path("one.yaml").read_bytes() == Path("two.yaml").read_bytes()

    def test_stdout_is_the_plan(self, here: Path) -> None:
        _, out, _ = call("plan", "profile.json", "--batch-size", "4")
        assert Plan.parse(out, name="x").kind == "Plan"
        _, out, err = call("plan", "profile.json", "--batch-size", "4", "--format", "json")
        assert Plan.parse(out, name="x", is_json=True).kind == "Plan"
        assert err == ""

    def test_json_beside_a_file_is_the_report(self, here: Path) -> None:
        _, out, _ = call(
            "plan", "profile.json", "-o", "new.yaml", "--batch-size", "4", "--format", "json"
        )
        assert json.loads(out)["plan_id"] == Plan.load("new.yaml").plan_id

    def test_every_flag_reaches_the_request(self, here: Path) -> None:
        code, _, err = call(
            "plan", "profile.json", "-o", "new.yaml", "--objective", "latency",
            "--batch-size", "8", "--microbatch-size", "4", "--split", "layers",
            "--pin", "l0..1=h/a", "--forbid", "h/d", "--forbid", "l2=h/c",
            "--keep-together", "l2..3", "--reserve", "1KiB", "--max-memory", "h/b=1MiB",
            "--max-stages", "2", "--time-limit", "7", "--aggregation", "concat",
            "--destination", "all", "--max-latency", "100s", "--min-rate", "0.001",
            "--max-devices", "4", "--price", "a=2.5",
        )  # fmt: skip
        assert (code, err[:4]) == (0, "Plan")
        request = Plan.load("new.yaml").inputs.request.model_dump(mode="json", exclude_none=True)
        for constant in ("kind", "format_version"):
            del request[constant]
        assert request == {
            "objective": "latency",
            "batch_size": 8,
            "microbatch_size": 4,
            "splits": ["layers"],
            "max_stages": 2,
            "reserve_bytes": 1024,
            "max_bytes": {"h/b": 2**20},
            "pins": [{"layers": "l0..1", "device": "h/a"}],
            "forbids": [{"device": "h/d"}, {"device": "h/c", "layers": "l2"}],
            "keep_together": ["l2..3"],
            "aggregation": "concat",
            "destination": "all",
            "max_latency_s": 100.0,
            "min_items_per_s": 0.001,
            "max_devices": 4,
            "prices_per_hour": {"a": 2.5},
            "limits": {"time_s": 7.0, "workers": 1, "seed": 0},
        }

    def test_an_illegal_aggregation_is_bad_input_with_the_legal_choices(self, here: Path) -> None:
        code, out, err = call("plan", "profile.json", "--batch-size", "4", "--aggregation", "sum")
        assert (code, out) == (2, "")
        assert "mixes the answers of different items" in err
        assert "Legal here: concat" in err

    def test_flags_win_over_the_file_and_the_rest_of_it_holds(self, here: Path) -> None:
        Path("request.yaml").write_text(
            "kind: PlanRequest\nformat_version: '1.0'\nbatch_size: 4\nobjective: latency\n"
            "limits: {time_s: 9, seed: 3}\n"
        )
        call("plan", "profile.json", "-o", "new.yaml", "--request", "request.yaml",
             "--batch-size", "2", "--time-limit", "4")  # fmt: skip
        request = Plan.load("new.yaml").inputs.request
        assert (request.batch_size, request.objective.value) == (2, "latency")
        assert (request.limits.time_s, request.limits.seed) == (4.0, 3)

    def test_a_cluster_file_replaces_the_profiles(self, here: Path) -> None:
        cluster = yaml.safe_load(CHAIN.cluster.to_text(as_json=False))
        cluster["hosts"][0]["devices"].pop()
        Path("smaller.yaml").write_text(yaml.safe_dump(cluster))
        code, _, _ = call(
            "plan", "profile.json", "-o", "new.yaml", "--cluster", "smaller.yaml",
            "--batch-size", "4",
        )  # fmt: skip
        assert code == 0
        assert Plan.load("new.yaml").inputs.cluster.ref == "smaller.yaml"
        assert call("check", "new.yaml")[0] == 0

    @pytest.mark.parametrize(
        ("flags", "code", "message"),
        [
            (["--pin", "l0"], 2, "error: --pin 'l0': write LAYERS=DEVICE"),
            (["--pin", "=h/a"], 2, "write LAYERS=DEVICE"),
            (["--max-memory", "h/a"], 2, "write DEVICE=SIZE"),
            (["--max-memory", "h/a=lots"], 2, "not a size: 'lots'"),
            (["--reserve", "1 gig"], 2, "reserve_bytes: "),
            (["--batch-size", "0"], 2, "batch_size: "),
            (["--forbid", "h/z"], 2, "'h/z'"),
            (["--pin", "l77=h/a"], 2, "'l77'"),
            (["--solver", "magic"], 2, "magic"),
            (["--request", "none.yaml"], 2, "there is no file none.yaml"),
            (["--objective", "speed"], 2, "speed"),
            (["-o", "."], 2, "is a directory"),
            (["-o", "none/plan.yaml"], 2, "there is no directory none"),
            (["--reserve", "2GiB"], 3, "any one of these would make it fit"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, here: Path, flags: list[str], code: int, message: str
    ) -> None:
        ended, out, err = call("plan", "profile.json", "--batch-size", "4", *flags)
        assert (ended, out) == (code, "")
        assert message in err
        assert not Path("none").exists()

    def test_a_baseline_brings_its_wishes_and_its_verdict(self, here: Path) -> None:
        code, out, err = call("plan", "profile.json", "--baseline", "plan.yaml", "-o", "new.yaml")
        assert (code, out) == (0, "")
        made, used = Plan.load("new.yaml"), Plan.load("plan.yaml")
        assert made.inputs.request == used.inputs.request
        assert made.search.baseline is not None
        assert made.search.baseline.verdict == "changed"
        assert "  baseline    the best plan changed, " in err
        assert call("check", "new.yaml")[0] == 0
        code, _, err = call("plan", "profile.json", "--baseline", "new.yaml", "-o", "again.yaml")
        assert "  baseline    the same plan is still the best" in err
        assert Plan.load("again.yaml").plan_id == made.plan_id

    def test_a_small_gain_is_not_worth_a_change(self, here: Path) -> None:
        for least in ("95%", "0.95", " 95 % "):
            call("plan", "profile.json", "--baseline", "plan.yaml", "--min-gain", least,
                 "-o", "new.yaml")  # fmt: skip
            made = Plan.load("new.yaml")
            assert made.spec == Plan.load("plan.yaml").spec
            assert made.search.baseline is not None
            assert made.search.baseline.min_gain == 0.95
            assert call("check", "new.yaml")[0] == 0
            assert call("diff", "plan.yaml", "new.yaml")[0] == 0

    def test_flags_win_over_the_baselines_request(self, here: Path) -> None:
        call("plan", "profile.json", "--baseline", "plan.yaml", "--max-stages", "1",
             "-o", "new.yaml")  # fmt: skip
        request = Plan.load("new.yaml").inputs.request
        assert (request.max_stages, request.batch_size, request.microbatch_size) == (1, 8, 2)

    @pytest.mark.parametrize(
        ("flags", "code", "message"),
        [
            (["--min-gain", "2%"], 2, "a least gain needs a baseline"),
            (["--baseline", "plan.yaml", "--min-gain", "much"], 2, "write a part such as 2%"),
            (["--baseline", "plan.yaml", "--min-gain", "200%"], 2, "0 to below 1; not 2.0"),
            (["--baseline", "none.yaml"], 2, "there is no file none.yaml"),
            (["--baseline", "profile.json"], 2, "profile.json is not a Plan"),
        ],
    )
    def test_a_baseline_that_is_none_is_refused(
        self, here: Path, flags: list[str], code: int, message: str
    ) -> None:
        ended, out, err = call("plan", "profile.json", "-o", "new.yaml", *flags)
        assert (ended, out) == (code, "")
        assert message in err
        assert not Path("new.yaml").exists()

    def test_a_baseline_for_another_model_exits_with_4(self, here: Path) -> None:
        edit(two_stages(), {"inputs.model.graph": "sha256:other"}).dump("other.yaml")
        code, _, err = call("plan", "profile.json", "--baseline", "other.yaml", "-o", "new.yaml")
        assert (code, "plan without a baseline" in err) == (4, True)

    def test_a_profile_that_is_none_is_refused(self, here: Path) -> None:
        code, _, err = call("plan", "plan.yaml")
        assert (code, "plan.yaml is not a Profile" in err) == (2, True)


class TestDiff:
    """``apportion diff``."""

    def test_the_same_exits_with_0(self, here: Path) -> None:
        assert call("diff", "plan.yaml", "plan.yaml") == (0, "The same decision\n", "")

    def test_a_difference_exits_with_1(self, here: Path) -> None:
        edit(two_stages(), LEGAL_EDIT).dump("new.yaml")
        code, out, err = call("diff", "plan.yaml", "new.yaml")
        assert (code, err) == (1, "")
        assert "  ~ l2: h/b (1) + h/c (1) -> h/a\n" in out

    def test_json(self, here: Path) -> None:
        edit(two_stages(), LEGAL_EDIT).dump("new.yaml")
        code, out, _ = call("diff", "plan.yaml", "new.yaml", "--format", "json")
        data = json.loads(out)
        assert (code, data["same"]) == (1, False)
        assert data["moves"] == [
            {"pipeline": 0, "layers": ["l2"], "before": "h/b (1) + h/c (1)", "after": "h/a"}
        ]

    def test_errors_are_2_and_4(self, here: Path) -> None:
        assert call("diff", "plan.yaml", "none.yaml")[0] == 2
        CHAIN.model_copy(update={"batch_sizes": (1,)}).dump("other.json")
        code, _, err = call("diff", "plan.yaml", "plan.yaml", "--profile", "other.json")
        assert (code, "was not made from this profile" in err) == (4, True)

    def test_standard_input(self, here: Path) -> None:
        text = Path("plan.yaml").read_text()
        result = CliRunner().invoke(app, ["diff", "plan.yaml", "-"], input=text)
        assert (result.exit_code, result.stdout) == (0, "The same decision\n")


def test_schemas_are_printed(here: Path) -> None:
    code, out, _ = call("schema", "plan")
    assert (code, json.loads(out)["title"]) == (0, "Plan")
    assert call("schema", "poem")[0] == 2


class TestProcess:
    """The command as a shell sees it."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "planner", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def test_module_exit_codes_and_streams(self, here: Path) -> None:
        done = self.run("explain", "plan.yaml")
        assert (done.returncode, done.stderr) == (0, "")
        assert "Placement: 1 pipeline" in done.stdout
        edit(two_stages(), {"spec.transfers.1": DELETE}).dump("plan.yaml")
        done = self.run("check", "plan.yaml")
        assert (done.returncode, done.stderr) == (5, "")
        done = self.run("explain", "none.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: there is no file none.yaml\n"

    def test_a_closed_pipe_is_no_traceback(self, here: Path) -> None:
        done = subprocess.run(
            f"{sys.executable} -m planner explain plan.yaml | head -1",
            shell=True, capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert "Traceback" not in done.stderr
