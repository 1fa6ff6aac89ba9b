"""Windows and relative positions, beside what they mean, position by position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.dense.windows import GridAttention, merge, partition, relative
from model.transformer import Attention


def filled(attention: GridAttention | Attention) -> None:
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def by_loops(attention: GridAttention, x: Tensor) -> Tensor:
    """ViTDet's attention for one window or grid after another, and one query after another."""
    _, height, width, d = x.shape
    size, heads, each = attention.size, attention.heads, d // attention.heads
    h, w = (size, size) if size else (height, width)
    result = torch.zeros_like(x)
    for b in range(len(x)):
        for top in range(0, height, h):
            for left in range(0, width, w):
                window = torch.zeros(h, w, d, dtype=x.dtype)
                inside = x[b, top : top + h, left : left + w]
                window[: inside.shape[0], : inside.shape[1]] = inside
                q, k, v = attention.qkv(window).view(h, w, 3, heads, each).unbind(2)
                for y in range(min(h, height - top)):
                    for z in range(min(w, width - left)):
                        scores = torch.einsum("ad,yxad->ayx", q[y, z], k) * each**-0.5
                        if attention.relative:
                            for i in range(h):
                                scores[:, i] += (q[y, z] @ attention.rel_pos_h[y - i + h - 1])[
                                    :, None
                                ]
                            for j in range(w):
                                scores[:, :, j] += (q[y, z] @ attention.rel_pos_w[z - j + w - 1])[
                                    :, None
                                ]
                        weights = scores.flatten(1).softmax(1).view_as(scores)
                        value = torch.einsum("ayx,yxad->ad", weights, v).flatten()
                        result[b, top + y, left + z] = attention.proj(value)
    return result


@pytest.mark.parametrize(
    ("size", "side", "grid"),
    [
        pytest.param(3, 3, (5, 7), id="windows that the grid does not fill"),
        pytest.param(0, 5, (5, 5), id="the whole grid"),
        pytest.param(2, 0, (4, 4), id="no relative positions"),
    ],
)
def test_it_equals_a_plain_loop(size: int, side: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = GridAttention(12, 3, 0.0, size=size, side=side).double()
    filled(attention)
    x = torch.randn(2, *grid, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), by_loops(attention, x))


def test_windows_that_cover_the_grid_are_full_attention() -> None:
    torch.manual_seed(0)
    plain = Attention(16, 4, 0.0)
    filled(plain)
    x = torch.randn(2, 6, 6, 16)
    expected = plain(x.flatten(1, 2)).view_as(x)
    for size, side in ((6, 0), (0, 0), (6, 6)):
        attention = GridAttention(16, 4, 0.0, size=size, side=side)
        attention.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(attention(x), expected)


def test_a_window_holds_its_part_of_the_grid() -> None:
    x = torch.randn(2, 5, 7, 3)
    windows = partition(x, 3)
    assert windows.shape == (2 * 2 * 3, 3, 3, 3)
    expected = torch.zeros(3, 3, 3)
    expected[:2] = x[0, 3:, 3:6]  # the second of the second row, filled up
    assert torch.equal(windows[4], expected)
    assert torch.equal(merge(windows, 5, 7), x)


def test_a_table_for_another_side_is_interpolated() -> None:
    """Linear, between the middles of the entries, as ViTDet does."""
    table = torch.tensor([[0.0], [1.0], [4.0]])  # of a side of 2: distances -1, 0 and 1
    pairs = relative(table, 3)[..., 0]
    # Five entries over three: entry i lies at (i + 0.5) * 3 / 5 - 0.5.
    expected = [0.0, 0.4, 1.0, 1.0 + 3 * 0.6, 4.0]
    for q in range(3):
        for k in range(3):
            assert pairs[q, k] == pytest.approx(expected[q - k + 2])
    assert torch.equal(relative(table, 2)[..., 0], torch.tensor([[1.0, 0.0], [4.0, 1.0]]))
