"""Attention of SAM's networks against segment-anything's own."""

import copy

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from backend.models.sam.attention import RelativeAttention


@pytest.mark.parametrize(("grid", "heads"), [((14, 14), 2), ((8, 5), 3)])
def test_relative_positions_as_bias_and_as_channels(grid: tuple[int, int], heads: int) -> None:
    torch.manual_seed(0)
    original = Attention(24 * heads, num_heads=heads, use_rel_pos=True, input_size=grid).eval()
    for table in (original.rel_pos_h, original.rel_pos_w):
        torch.nn.init.normal_(table)
    fused = RelativeAttention(copy.deepcopy(original))
    x = torch.randn(2, *grid, 24 * heads)
    with torch.inference_mode():
        expected = original(x)
        torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-4)
        fused.writes_bias = False  # as on a GPU
        torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-4)
