"""The attention of SAM's networks with PyTorch's fused kernel: the same values in less time."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelativeAttention(nn.Module):
    """Attends with several heads whose logits get a bias of the relative position, one for each axis.

        softmax(q k^T / sqrt(c) + q R_h[y_q - y_k] + q R_w[x_q - x_k]) v

    segment-anything's own writes the logits four times and looks the biases up by an index that it makes on the CPU in
    every pass, for which a GPU has to wait. On a GPU the bias itself is not written either: queries get q R_h and q R_w
    as further channels, keys a one for their row and one for their column, and the product of both is the logits with
    their bias. On a CPU, where products are what costs, it is added.

    Args:
        original: `segment_anything.modeling.image_encoder.Attention` with relative positions, its weights loaded.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.qkv: nn.Module = original.qkv
        self.proj: nn.Module = original.proj
        self.writes_bias = True
        """On a CPU."""
        self._heads = int(original.num_heads)
        self._scale = float(original.scale)
        rows, columns = (_by_distance(table.detach()) for table in (original.rel_pos_h, original.rel_pos_w))
        self._rows, self._columns = nn.Buffer(rows), nn.Buffer(columns)
        self._places = nn.Buffer(_one_hot_places(len(rows), len(columns)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, h, w, C) into (B, h, w, C), on the grid that the relative positions were made for."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self._heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        by_place = q.reshape(batch, self._heads, height, width, -1)
        rows = torch.einsum("bnhwc,hkc->bnhwk", by_place, self._rows)
        columns = torch.einsum("bnhwc,wkc->bnhwk", by_place, self._columns)
        if self.writes_bias and not x.is_cuda:
            bias = rows[..., :, None] + columns[..., None, :]
            mixed = F.scaled_dot_product_attention(q, k, v, bias.flatten(4).flatten(2, 3), scale=self._scale)
        else:
            mixed = self._with_places(q, k, v, rows.flatten(2, 3), columns.flatten(2, 3))
        answer: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, height, width, channels))
        return answer

    def _with_places(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Attend with (B, heads, N, c) q, k, v and the biases (B, heads, N, h) and (B, heads, N, w) of the queries."""
        channels = q.shape[-1]
        places = self._places.to(q.dtype).expand(*k.shape[:2], -1, -1)
        queries = torch.cat([q * self._scale, rows.to(q.dtype), columns.to(q.dtype)], dim=-1)
        keys = torch.cat([k, places], dim=-1)
        # Kernels want a multiple of eight channels, the flash kernel as many of the values as of the queries.
        width = -(-keys.shape[-1] // 8) * 8
        queries, keys, v = (F.pad(one, (0, width - one.shape[-1])) for one in (queries, keys, v))
        return F.scaled_dot_product_attention(queries, keys, v, scale=1.0)[..., :channels]


def fuse_attention(image_encoder: Any) -> None:
    """Replace segment-anything's attention in an image encoder by `RelativeAttention`; leave other networks alone."""
    for block in getattr(image_encoder, "blocks", ()):
        attention = getattr(block, "attn", None)
        if attention is not None and getattr(attention, "use_rel_pos", False):
            block.attn = RelativeAttention(attention)


def _by_distance(table: Tensor) -> Tensor:
    """Turn (2n - 1, c) by distance into (n, n, c) by the places of query and key."""
    places = torch.arange((len(table) + 1) // 2)
    return table[places[:, None] - places[None, :] + len(places) - 1]


def _one_hot_places(height: int, width: int) -> Tensor:
    """Return (h w, h + w) float32: for each place a one for its row and one for its column."""
    row = torch.eye(height).repeat_interleave(width, dim=0)
    return torch.cat([row, torch.eye(width).repeat(height, 1)], dim=1)
