"""Where the root puts the parts of the answer."""

from __future__ import annotations

import torch

from executor.aggregation import InPlace


def four_items(rows: int = 1) -> InPlace:
    return InPlace(shape=(4 * rows, 3), dtype=torch.float32, batch_dim=0, rows=rows)


def test_parts_stand_in_item_order_whenever_they_come() -> None:
    sink, whole = four_items(rows=2), torch.randn(8, 3)
    sink.place(whole[4:], 2, 4)
    sink.place(whole[:4], 0, 2)
    assert torch.equal(sink.result(), whole)


def test_a_part_that_is_everything_is_not_copied() -> None:
    sink, whole = four_items(), torch.randn(4, 3)
    sink.place(whole, 0, 4)
    assert sink.result().data_ptr() == whole.data_ptr()


def test_a_view_of_something_larger_is_copied() -> None:
    sink, larger = four_items(), torch.randn(8, 3)
    sink.place(larger[:4], 0, 4)
    assert sink.result().untyped_storage().nbytes() == 4 * 3 * 4
    assert torch.equal(sink.result(), larger[:4])


def test_a_part_of_another_layout_is_copied() -> None:
    sink, part = four_items(), torch.randn(3, 4).t()
    sink.place(part, 0, 4)
    assert sink.result().is_contiguous()
    assert torch.equal(sink.result(), part)


def test_the_last_of_several_wholes_counts() -> None:
    sink, parts = four_items(), [torch.randn(4, 3) for _ in range(3)]
    for part in parts:
        sink.place(part, 0, 4)
    assert torch.equal(sink.result(), parts[-1])
