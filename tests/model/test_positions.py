"""Tables of positions on another grid."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.positions import on_grid
from model.transformer import positions

SIDES = st.integers(1, 12)


def table_of(grid: Tensor, slot: float = 9.0) -> Tensor:
    """A table (1, 1 + h * w, D) with the rows of a grid (h, w, D)."""
    rows = grid.reshape(-1, grid.shape[-1])
    return torch.cat([torch.full((1, rows.shape[1]), slot), rows])[None]


def grid_of(table: Tensor, height: int, width: int) -> Tensor:
    return table[0, 1:].reshape(height, width, -1)


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, which is PyTorch's."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_each_position_is_the_sum_of_4_x_4_trained_ones() -> None:
    """Those beyond an edge are the edge's."""
    torch.manual_seed(0)
    rows, (height, width) = torch.randn(4, 4, 8), (6, 3)
    found = grid_of(on_grid(table_of(rows), height, width), height, width)
    for y in range(height):
        for x in range(width):
            at_y, at_x = (y + 0.5) * 4 / height - 0.5, (x + 0.5) * 4 / width - 0.5
            expected = sum(
                cubic(at_y - i) * cubic(at_x - j) * rows[min(max(i, 0), 3), min(max(j, 0), 3)]
                for i in range(int(at_y // 1) - 1, int(at_y // 1) + 3)
                for j in range(int(at_x // 1) - 1, int(at_x // 1) + 3)
            )
            torch.testing.assert_close(found[y, x], expected)


@given(SIDES, SIDES, SIDES)
def test_what_is_constant_stays_so_and_the_class_slot_is_apart(g: int, h: int, w: int) -> None:
    table = on_grid(table_of(torch.full((g, g, 2), 0.25)), h, w)
    assert table.shape == (1, 1 + h * w, 2) and torch.equal(
        table[:, :1], torch.full((1, 1, 2), 9.0)
    )
    torch.testing.assert_close(table[:, 1:], torch.full((1, h * w, 2), 0.25))


@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12))
def test_rows_and_columns_keep_their_order(g: int, h: int, w: int) -> None:
    """A channel that grows from row to row, and one that grows from column to column."""
    y, x = torch.meshgrid(torch.arange(g).float(), torch.arange(g).float(), indexing="ij")
    found = grid_of(on_grid(table_of(torch.stack([y, x], -1)), h, w), h, w)
    assert bool((found[1:, :, 0] > found[:-1, :, 0]).all())
    assert bool((found[:, 1:, 1] > found[:, :-1, 1]).all())
    torch.testing.assert_close(found[:, :1, 0].expand(h, w), found[..., 0])
    torch.testing.assert_close(found[:1, :, 1].expand(h, w), found[..., 1])


@given(st.integers(4, 12))
def test_there_and_back_comes_near(g: int) -> None:
    """Of sines, which neighbours share; to the own grid, it is the table itself."""
    table = positions("sincos", g, 16).detach()
    back = on_grid(on_grid(table, 2 * g, 2 * g), g, g)
    assert float((back - table).norm() / table.norm()) < 0.1
    assert on_grid(table, g, g) is table


def test_half_precision_and_shapes_alone() -> None:
    table = torch.randn(1, 17, 8, dtype=torch.bfloat16)
    found = on_grid(table, 2, 8)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[:, 1:], on_grid(table.float(), 2, 8)[:, 1:].bfloat16())
    assert on_grid(torch.empty(1, 17, 8, device="meta"), 3, 3).shape == (1, 10, 8)
