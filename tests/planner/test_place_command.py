"""Instance files: what is read from them, what is refused, and ``apportion place``."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from planner.cli import app
from planner.placement import place_any, read_instance
from profiler.errors import InvalidInputError
from tests.support.placements import limits

# Ids are out of order: 7 -> 3 -> 5, and 7 -> 5. A processor takes ten times as long.
NODES = [
    {"id": 3, "supportedOnFpga": 1, "cpuLatency": 40.0, "fpgaLatency": 4.0, "size": 30.0},
    {"id": 5, "supportedOnFpga": 1, "cpuLatency": 20.0, "fpgaLatency": 2.0, "size": 30.0},
    {"id": 7, "supportedOnFpga": 1, "cpuLatency": 30.0, "fpgaLatency": 3.0, "size": 30.0},
]
EDGES = [
    {"sourceId": 7, "destId": 3, "cost": 0.5},
    {"sourceId": 7, "destId": 5, "cost": 0.5},
    {"sourceId": 3, "destId": 5, "cost": 0.25},
]
GRAPH: dict[str, Any] = {
    "maxSizePerFPGA": 60.0,
    "maxFPGAs": 2,
    "maxCPUs": 1,
    "nodes": [{**n, "name": "x", "colorClass": n["id"], "isBackwardNode": 0} for n in NODES],
    "edges": EDGES,
}


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("graph.json").write_text(json.dumps(GRAPH))
    return "graph.json"


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["place", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_file_becomes_a_problem(graph: str) -> None:
    problem = read_instance(graph)
    assert [p.name for p in problem.places] == ["accelerator0", "accelerator1", "cpu0"]
    assert problem.places[0].memory_bytes == 60
    flow = problem.flows[0]
    assert (flow.producer, flow.consumers, flow.transfer_s) == ("7", ("3", "5"), 0.5)
    assert read_instance(graph, transfer_scale=4.0).flows[0].transfer_s == 2.0


@pytest.mark.parametrize(
    ("question", "objective"),
    [
        # 7 and 5 on one accelerator: 3 + 2, 7's output sent, 3's received, is 5.75; 3 on the other
        # is 4 + 0.5 + 0.25. In a line 7 | 3 5: 4 + 2 + 0.5 is best beside 7 3 | 5: 7 + 0.5 + 0.25.
        ("any", 5.75),
        ("contiguous", 6.5),
        # 7 alone: 3 + 0.5. Then 3 and 5: 0.5 + 4 + 2.
        ("latency", 10.0),
    ],
)
def test_questions(graph: str, question: str, objective: float) -> None:
    code, out, _ = call(graph, "--question", question, "--format", "json", "-o", "placed.json")
    answer = json.loads(out)
    assert (code, answer["status"]) == (0, "optimal")
    assert answer["gap"] == pytest.approx(0.0, abs=1e-6)
    assert answer["objective"] == pytest.approx(objective)
    assert answer["devices"].keys() == {"3", "5", "7"}
    assert ("jobs" in answer) == (question == "latency")
    assert json.loads(Path("placed.json").read_text()) == answer


def test_transfers_on_a_wire_of_their_own(graph: str) -> None:
    out = call(graph, "--charging", "wire", "--format", "json")[1]
    assert json.loads(out)["objective"] == pytest.approx(5.0)


def test_text_names_what_each_device_holds(graph: str) -> None:
    code, out, err = call(graph, "--question", "contiguous")
    assert (code, err) == (0, "")
    assert out.startswith("contiguous: 6.500000 (optimal, bound 6.500000, gap 0.00%)\n")
    assert "2 operators, computing 6, 60 bytes" in out


def test_what_fits_nowhere_ends_with_3(graph: str) -> None:
    alone = copy.deepcopy(GRAPH)
    alone["maxCPUs"], alone["maxSizePerFPGA"] = 0, 29
    Path(graph).write_text(json.dumps(alone))
    code, out, _ = call(graph, "--question", "contiguous")
    assert (code, out) == (3, "contiguous: no placement (infeasible)\n")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("maxFPGAs",), None, "maxFPGAs"),
        (("nodes", 0, "cpuLatency"), "fast", "nodes.0.cpuLatency"),
        (("nodes", 0, "cpuLatency"), -1.0, "greater than or equal to 0"),
        (("edges", 1, "cost"), 0.75, "edges out of node 7 cost 0.5 and 0.75"),
        (("edges", 0, "destId"), 9, "'9'"),
        (("edges", 2, "destId"), 7, "cycle"),
    ],
)
def test_faults_in_a_file_are_named(
    graph: str, place: tuple[Any, ...], value: object, message: str
) -> None:
    broken: Any = copy.deepcopy(GRAPH)
    *way, last = place
    at = broken
    for step in way:
        at = at[step]
    at[last] = value
    Path(graph).write_text(json.dumps(broken))
    with pytest.raises(InvalidInputError, match=message):
        read_instance(graph)


def test_flags_out_of_range(graph: str) -> None:
    assert call(graph, "--time-limit", "0")[0] == 2
    assert call(graph, "--transfer-scale", "nan")[0] == 2
    assert call(graph, "--question", "latency", "--max-jobs", "0")[0] == 2


def test_without_a_start_it_is_no_worse_than_contiguous(graph: str) -> None:
    result = place_any(read_instance(graph), limits(0.05))
    assert result.objective_s is not None
    assert result.objective_s <= 6.5
