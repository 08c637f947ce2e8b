"""Weights by recipe, and the files they come from."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from profiler.errors import InvalidInputError
from profiler.program import Shard
from profiler.tensorfile import CHUNK_BYTES, read_into, stored_tensors
from profiler.weights import MemoryWeights, Recipe, SafetensorsWeights, cut, fill, fill_shard

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16,
    torch.float8_e4m3fn,
)  # fmt: skip


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return (torch.rand(shape, generator=generator) * 100).to(dtype)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    file = tmp_path / "t.safetensors"
    save_file(
        {
            "matrix": torch.arange(24.0).reshape(4, 6),
            "other": torch.arange(24.0, 48.0).reshape(4, 6),
            "short": torch.arange(48.0, 54.0).reshape(1, 6),
            "scalar": torch.tensor(7.0),
        },
        file,
    )
    return file


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0, 4), (2, 1, 3)])
def test_every_dtype_and_shape_is_read(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    value = random_tensor(shape, dtype)
    file = tmp_path / "t.safetensors"
    save_file({"before": torch.ones(3), "t": value, "z": torch.ones(1)}, file)
    target = torch.empty(shape, dtype=dtype)
    read_into(stored_tensors(file)["t"], target)
    assert target.view(torch.uint8).equal(value.view(torch.uint8)) if shape else target == value


def test_reading_converts_dtype_and_follows_strides(stored: Path) -> None:
    expected = torch.arange(24.0).reshape(4, 6)
    turned = torch.zeros(6, 4, dtype=torch.float64)
    read_into(stored_tensors(stored)["matrix"], turned.t())
    assert torch.equal(turned, expected.t().double())
    inside = torch.full((6, 8), -1.0)
    read_into(stored_tensors(stored)["matrix"], inside[1:5, 1:7])
    assert torch.equal(inside[1:5, 1:7], expected)
    assert int((inside == -1.0).sum()) == 48 - 24


@pytest.mark.parametrize("leading", [(), (1,), (1, 1)])
def test_tensors_of_many_pieces_are_whole(leading: tuple[int, ...], tmp_path: Path) -> None:
    # Three pieces and a bit, one number a row.
    value = torch.arange(3 * CHUNK_BYTES // 4 + 5, dtype=torch.float32).reshape(*leading, -1)
    file = tmp_path / "t.safetensors"
    save_file({"t": value}, file)
    target = torch.empty(value.shape, dtype=torch.float64)
    read_into(stored_tensors(file)["t"], target)
    assert torch.equal(target, value.double())


MEASURED = """
import resource, sys, torch
from pathlib import Path
from profiler.weights import fill
file, dtype = sys.argv[1], getattr(torch, sys.argv[2])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.ones(4).to(torch.bfloat16).float()
before = peak()
target = torch.empty(20_000, 5_000, dtype=dtype)
fill(target, {"file": file, "key": "t"}, name="t")
print(peak() - before, target.numel() * target.element_size())
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_takes_no_more_memory_than_the_weight(dtype: str, tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    save_file({"t": torch.ones(20_000, 5_000)}, file)
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(file), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, size = map(int, run.stdout.split())
    assert grown < size + 2 * CHUNK_BYTES


# --- recipes -----------------------------------------------------------------------------------


def part(file: Path, key: str) -> dict[str, Any]:
    return {"file": str(file), "key": key}


def test_recipes_stack_concatenate_turn_and_cut(stored: Path) -> None:
    a = torch.arange(24.0).reshape(4, 6)
    b, short = a + 24, torch.arange(48.0, 54.0).reshape(1, 6)
    parts = [part(stored, "matrix"), part(stored, "other")]
    for recipe, expected in (
        ({"op": "stack", "dim": 1, "parts": parts}, torch.stack([a, b], dim=1)),
        ({"op": "concat", "dim": 1, "parts": parts}, torch.cat([a, b], dim=1)),
        (
            {"op": "concat", "dim": 0, "parts": [*parts, part(stored, "short")]},
            torch.cat([a, b, short]),
        ),
        ({"op": "transpose", "dims": [0, 1], "parts": parts[:1]}, a.t()),
        (
            {"op": "chunk", "dim": 1, "chunks": 3, "index": 2, "parts": parts[:1]},
            a.chunk(3, dim=1)[2],
        ),
        (
            {
                "op": "concat",
                "dim": 1,
                "parts": [{"op": "stack", "dim": 0, "parts": [p]} for p in parts],
            },
            torch.cat([a[None], b[None]], dim=1),
        ),
    ):
        target = torch.full(expected.shape, float("nan"))
        fill(target, recipe, name="w")  # type: ignore[arg-type]
        assert torch.equal(target, expected)
        json.dumps(recipe)  # travels to ranks


@pytest.mark.parametrize(
    ("recipe", "shape", "message"),
    [
        ({"op": "stack", "dim": 0, "parts": ["matrix"]}, (2, 4, 6), "make up 1 rows, .* needs 2"),
        ({"op": "concat", "dim": 0, "parts": ["matrix"]}, (6, 6), "make up 4 rows, .* needs 6"),
        ({"op": "concat", "dim": 0, "parts": ["matrix"] * 2}, (7, 6), "make up 8 rows"),
        ({"op": "turn"}, (4, 6), "unknown recipe step 'turn'"),
        ({"key": "nothing"}, (4, 6), "holds no tensor 'nothing'"),
        ({"key": "matrix"}, (6, 4), r"of shape \[4, 6\], the model needs \[6, 4\]"),
    ],
)
def test_recipes_that_do_not_fill_the_weight_are_refused(
    recipe: dict[str, Any], shape: tuple[int, ...], message: str, stored: Path
) -> None:
    made = {**recipe, "parts": [part(stored, key) for key in recipe.get("parts", ())]}
    if "op" not in recipe:
        made = part(stored, recipe["key"])
    with pytest.raises(InvalidInputError, match=message):
        fill(torch.empty(shape), made, name="w")


def test_weights_from_memory_are_written_once_for_ranks(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    source = MemoryWeights({"a": flat[:6].view(2, 3), "b": flat[6:], "c": flat.view(3, 4).t()})
    recipes = source.recipes(["a", "b", "c"], directory=tmp_path)
    for name, tensor in source.tensors.items():
        target = torch.empty(tensor.shape)
        fill(target, recipes[name], name=name)
        assert torch.equal(target, tensor)


def test_unknown_weights_are_named(tmp_path: Path) -> None:
    for source in (MemoryWeights({}), SafetensorsWeights({})):
        assert not source.has("w")
        with pytest.raises(InvalidInputError, match="'w'"):
            source.fill("w", torch.empty(1))
        with pytest.raises(InvalidInputError, match="'w'"):
            source.recipes(["w"], directory=tmp_path)


# --- damaged files -----------------------------------------------------------------------------


def written(path: Path, header: object, data: bytes = b"\0" * 16) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 10_000,
        {"t": {}},
        {"t": {**ENTRY, "dtype": "F31"}},
        {"t": {**ENTRY, "shape": [5]}},
        {"t": {**ENTRY, "shape": [-4]}},
        {"t": {**ENTRY, "shape": [-2, -2]}},
        {"t": {**ENTRY, "shape": "4"}},
        {"t": {**ENTRY, "data_offsets": [16, 32]}},
        {"t": {**ENTRY, "data_offsets": [-16, 0]}},
        {"t": {**ENTRY, "data_offsets": [0]}},
        {"t": {**ENTRY, "data_offsets": [0, 10**30]}},
        {"t": None},
    ],
)
def test_headers_that_cannot_be_right_are_refused(header: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        stored_tensors(written(tmp_path / "t.safetensors", header))


@given(content=st.binary(max_size=64))
def test_no_bytes_do_worse_than_an_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("bytes") / "t.safetensors"
    file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=re.escape(str(file))):
        stored_tensors(file)


def test_a_file_cut_short_after_its_header_was_read_is_no_wrong_weight(stored: Path) -> None:
    found = stored_tensors(stored)
    stored.write_bytes(stored.read_bytes()[:-150])
    with pytest.raises(InvalidInputError, match="ends after"):
        read_into(found["matrix"], torch.empty(4, 6))


def test_a_file_written_anew_is_read_anew(stored: Path) -> None:
    assert "matrix" in stored_tensors(stored)
    save_file({"new": torch.ones(2)}, stored)
    assert set(stored_tensors(stored)) == {"new"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"there is no file .*gone\.safetensors"):
        fill(torch.empty(1), part(tmp_path / "gone.safetensors", "t"), name="w")


def shard_of(dim: int, *runs: tuple[int, int], shape: tuple[int, ...]) -> Shard:
    return Shard(dim=dim, runs=runs, whole=shape)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("recipe", ["stored", "stack", "concat", "transpose", "chunk"])
def test_a_shard_holds_what_cutting_the_whole_would_give(
    tmp_path: Path, recipe: str, dim: int
) -> None:
    file = tmp_path / "w.safetensors"
    stored = {f"p{i}": torch.randn(4, 6) for i in range(2)}
    stored |= {"wide": torch.randn(2, 4, 6), "long": torch.randn(4, 4, 6)}
    stored |= {"turned": torch.randn(2, 6, 4), "a": torch.randn(1, 4, 6), "b": torch.randn(1, 4, 6)}
    save_file(stored, file)

    def at(key: str) -> Recipe:
        return {"file": str(file), "key": key}

    made: Recipe = {
        "stored": at("wide"),
        "stack": {"op": "stack", "dim": 0, "parts": [at("p0"), at("p1")]},
        "concat": {"op": "concat", "dim": 0, "parts": [at("a"), at("b")]},
        "transpose": {"op": "transpose", "dims": [1, 2], "parts": [at("turned")]},
        "chunk": {"op": "chunk", "dim": 0, "chunks": 2, "index": 1, "parts": [at("long")]},
    }[recipe]
    whole = torch.empty(2, 4, 6)
    fill(whole, made, name="w")
    runs = {0: [(1, 2)], 1: [(0, 1), (2, 3)], 2: [(1, 3), (4, 6)]}[dim]
    shard = shard_of(dim, *runs, shape=(2, 4, 6))
    expected = cut(whole, shard)
    found = torch.full_like(expected, float("nan"))
    fill_shard(found, made, shard, name="w")
    assert torch.equal(found, expected)


def test_a_shard_of_concatenated_parts_reads_each_part_where_it_is_met(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"gate": torch.randn(5, 3), "up": torch.randn(5, 3)}, file)
    parts = [{"file": str(file), "key": key} for key in ("gate", "up")]
    recipe: Recipe = {"op": "concat", "dim": 0, "parts": parts}
    whole = torch.empty(10, 3)
    fill(whole, recipe, name="w")
    for runs in (((1, 3), (6, 8)), ((3, 7),)):
        shard = shard_of(0, *runs, shape=(10, 3))
        found = torch.empty(sum(b - a for a, b in runs), 3)
        fill_shard(found, recipe, shard, name="w")
        assert torch.equal(found, cut(whole, shard))


def test_a_shard_of_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.randn(4, 6)}, file)
    shard = shard_of(0, (0, 2), shape=(5, 6))
    with pytest.raises(InvalidInputError, match=r"shape \[4, 6\], the model needs \[5, 6\]"):
        fill_shard(torch.empty(2, 6), {"file": str(file), "key": "w"}, shard, name="w")
