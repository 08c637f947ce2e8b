from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph, Tensor
from tests.support.builders import chain_graph, make_graph


def changed(**fields: Any) -> ModelGraph:
    data = chain_graph(3).model_dump(mode="json")
    for path, value in fields.items():
        *way, last = [int(x) if x.isdigit() else x for x in path.split("__")]
        at = data
        for step in way:
            at = at[step]
        at[last] = value
    return ModelGraph.model_validate_json(json.dumps(data))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"layers": []}, "the model has no layer"),
        ({"layers__1__name": "l0"}, "layer 'l0' is listed twice"),
        ({"tensors__2__name": "t0"}, "tensor 't0' is listed twice"),
        ({"weights__1__name": "w0"}, "weight 'w0' is listed twice"),
        ({"symbols": {"length": 3}}, "symbols lack 'batch'"),
        ({"layers__0__reads": ["nothing"]}, "unknown tensor 'nothing'"),
        ({"layers__0__reads": ["t1"]}, "before 'l1' has written it"),
        ({"layers__0__reads": ["t0"]}, "before 'l0' has written it"),
        ({"layers__0__writes": ["t0", "x"]}, "'x' is not written by 'l0'"),
        ({"layers__2__writes": []}, "'t2' is not written by 'l2'"),
        ({"layers__1__weights": ["w9"]}, "unknown weight 'w9'"),
        ({"outputs": ["y"]}, "'y' is not a tensor of the graph"),
        ({"tensors__1__dtype": "float31"}, "unknown dtype 'float31'"),
        ({"tensors__1__batch_dim": 2}, "has no dim 2"),
        ({"tensors__1__batch_dim": -1}, "has no dim -1"),
        ({"weights__0__num_bytes": -1}, "greater than or equal to 0"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(edits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        changed(**edits)


def test_edges_carry_the_tensors_that_cross_them() -> None:
    graph = make_graph([(0, 1), (1, 2), (0, 2)], 3)
    assert {(a, b): data["tensors"] for a, b, data in graph.digraph.edges(data=True)} == {
        (0, 1): ["t0"],
        (1, 2): ["t1"],
        (0, 2): ["t0"],
    }
    assert graph.readers["t0"] == (1, 2)


def test_a_chain_has_one_order() -> None:
    assert chain_graph(4).is_chain
    assert make_graph([(0, 1), (1, 2), (0, 2)], 3).is_chain
    assert not make_graph([(0, 2), (1, 2)], 3).is_chain
    assert chain_graph(1).is_chain


def test_tied_weights_count_once() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3, tied=[(0, 2)], weight_bytes=10)
    assert graph.total_weight_bytes == 20
    assert [graph.weight_bytes(x) for x in ([0], [0, 2], [0, 1, 2])] == [10, 10, 20]


def test_sizes_follow_the_batch() -> None:
    graph = chain_graph(2, floats_per_item=10)
    assert graph.tensor["t0"].num_bytes(graph.symbols_at(6)) == 6 * 10 * 4
    assert graph.tensor["t0"].rows_per_item(graph.symbols) == 1


def test_a_tensor_that_cannot_be_cut_has_no_rows() -> None:
    whole = Tensor(name="s", shape=("batch", "batch"), dtype="float32", per_batch=True)
    assert whole.num_bytes({"batch": 3}) == 36
    with pytest.raises(InvalidInputError, match="cannot be cut"):
        whole.rows_per_item({})


def test_an_input_has_no_producer_in_a_file_either() -> None:
    graph = chain_graph(2)
    data = graph.model_dump_json(exclude_none=True)
    assert '"producer":null' not in data
    assert ModelGraph.model_validate_json(data) == graph


def test_a_large_graph_is_checked_quickly() -> None:
    graph = chain_graph(2000)
    assert ModelGraph.model_validate_json(graph.model_dump_json()) == graph
