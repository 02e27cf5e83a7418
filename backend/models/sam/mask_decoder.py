"""SAM's mask decoder: what does not depend on a prompt is computed once for all prompts of an image.

The weights are segment-anything's, or MobileSAM's, which has the same decoder, and so are the values. The arithmetic is
ordered otherwise:

- In the first layer the image has not attended to any tokens yet: its projections are the same for all prompts with one
  image and one mask input.
- All projections of the image that a layer needs are one product, and its positions are projected once for all.
- The image attends to a few tokens only: values and output are projected together, for tokens, not for its 4096 cells.
- A transposed convolution of stride two is a linear layer of each cell. Its four cells stay side by side until there is
  one number a mask to be put where it belongs.

Source: segment_anything.modeling.mask_decoder and .transformer (Apache 2.0).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Projected:
    """Images projected as a layer needs them.

    Attributes:
        keys, values: (P, N, C') for the attention of the tokens.
        queries: (P, N, C') for their own; None after the last layer.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor | None


@dataclass(frozen=True, eq=False)
class Begun:
    """M images with their mask inputs, before they see prompts.

    Attributes:
        cells: (M, N, C) float32.
        projected: of the first layer.
        hw: N = h w.
    """

    cells: Tensor
    projected: Projected
    hw: tuple[int, int]


class MaskDecoder(nn.Module):
    """Decodes images and tokens to logits and predicted IoU.

    Args:
        original: a `MaskDecoder` of segment-anything with a `TwoWayTransformer`, its weights loaded.
        places: (1, C, h, w) float32: the image's, as `get_dense_pe` of its prompt encoder gives them.
    """

    def __init__(self, original: Any, places: Tensor) -> None:
        super().__init__()
        transformer, own_places = original.transformer, places.detach().flatten(2).transpose(1, 2)[0]
        self._layers = nn.ModuleList(_Layer(layer, own_places) for layer in transformer.layers)
        self._final = _TokensToImage(transformer.final_attn_token_to_image, None, own_places)
        self._final_norm: nn.Module = transformer.norm_final_attn
        self._tokens = nn.Buffer(torch.cat([original.iou_token.weight, original.mask_tokens.weight]).detach())
        first, norm, self._activation, second, _ = original.output_upscaling
        self._upscaling = nn.ModuleList((_Twofold(first), _Twofold(second)))
        self._upscaling_norm = nn.LayerNorm(len(norm.weight), eps=norm.eps)
        self._upscaling_norm.load_state_dict(norm.state_dict())
        self._hypernetworks: nn.ModuleList = original.output_hypernetworks_mlps
        self._iou_head: nn.Module = original.iou_prediction_head

    def begin(self, images: Tensor) -> Begun:
        """Compute what prompts share, of M images (M, C, h, w) float32 with their mask inputs added."""
        cells = images.flatten(2).transpose(1, 2).contiguous()
        return Begun(cells, self._layers[0].project(cells), (images.shape[2], images.shape[3]))  # type: ignore[operator]

    def forward(self, begun: Begun, which: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Decode P prompts to (P, K, 4h, 4w) logits, the first one of a mask alone, and (P, K) predicted IoU.

        Args:
            begun: the images.
            which: (P,) int64: each prompt's.
            sparse: (P, T, C) tokens of points and boxes.
        """
        tokens = torch.cat([self._tokens.expand(len(sparse), -1, -1), sparse], dim=1)

        def own(shared: Tensor | None) -> Any:
            if shared is None:
                return None
            return shared.expand(len(which), -1, -1) if len(shared) == 1 else shared[which]

        queries, cells = tokens, own(begun.cells)
        first = begun.projected
        projected = Projected(own(first.keys), own(first.values), own(first.queries))
        for number, layer in enumerate(self._layers):
            if number:
                projected = layer.project(cells)  # type: ignore[operator]
            queries, cells = layer(queries, tokens, cells, projected)
        answer = self._final_norm(queries + self._final(queries + tokens, self._final.project(cells)))
        weights = [network(answer[:, 1 + number]) for number, network in enumerate(self._hypernetworks)]
        return self._masks(cells, torch.stack(weights, dim=1), begun.hw), self._iou_head(answer[:, 0])

    def _masks(self, cells: Tensor, weights: Tensor, hw: tuple[int, int]) -> Tensor:
        """Turn (P, N, C) cells and (P, K, c) weights of K masks into (P, K, 4h, 4w) logits."""
        first, second = self._upscaling
        halves: Tensor = self._activation(self._upscaling_norm(first(cells)))  # (P, N, 4, C / 4)
        quarters: Tensor = self._activation(second(halves))  # (P, N, 4, 4, c)
        logits: Tensor = weights @ quarters.flatten(1, 3).transpose(1, 2)
        # Rows of cells, of halves in them, of quarters in these, and so the columns.
        parts = logits.reshape(*logits.shape[:2], *hw, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return parts.reshape(*logits.shape[:2], 4 * hw[0], 4 * hw[1])


class _Layer(nn.Module):
    """Runs a `TwoWayAttentionBlock`.

    Args:
        original: the block.
        places: (N, C) of the image.
    """

    def __init__(self, original: Any, places: Tensor) -> None:
        super().__init__()
        self._is_first = bool(original.skip_first_layer_pe)
        self._tokens_to_tokens = _TokenAttention(original.self_attn)
        self._image_to_tokens = _ImageToTokens(original.cross_attn_image_to_token)
        self._tokens_to_image = _TokensToImage(
            original.cross_attn_token_to_image, original.cross_attn_image_to_token.q_proj, places
        )
        self._mlp: nn.Module = original.mlp
        self._norms = nn.ModuleList((original.norm1, original.norm2, original.norm3, original.norm4))

    def project(self, cells: Tensor) -> Projected:
        """Project (P, N, C) cells as `forward` needs them."""
        return self._tokens_to_image.project(cells)

    def forward(self, queries: Tensor, tokens: Tensor, cells: Tensor, projected: Projected) -> tuple[Tensor, Tensor]:
        """Return (P, T, C) queries and (P, N, C) cells after each attended to the other, with the first `tokens`."""
        norm_1, norm_2, norm_3, norm_4 = self._norms
        if self._is_first:
            queries = norm_1(self._tokens_to_tokens(queries, queries, queries))
        else:
            placed = queries + tokens
            queries = norm_1(queries + self._tokens_to_tokens(placed, placed, queries))
        queries = norm_2(queries + self._tokens_to_image(queries + tokens, projected))
        queries = norm_3(queries + self._mlp(queries))
        return queries, norm_4(self._image_to_tokens(cells, projected, queries + tokens, queries))


class _TokenAttention(nn.Module):
    """Runs an `Attention` of tokens among themselves, with PyTorch's fused kernel."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self._q_proj: nn.Module = original.q_proj
        self._k_proj: nn.Module = original.k_proj
        self._v_proj: nn.Module = original.v_proj
        self._out_proj: nn.Module = original.out_proj
        self._heads = int(original.num_heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (B, N, C) queries, (B, M, C) keys and values to (B, N, C)."""
        answer: Tensor = self._out_proj(_attend(self._q_proj(q), self._k_proj(k), self._v_proj(v), self._heads))
        return answer


class _TokensToImage(nn.Module):
    """Runs an `Attention` of tokens to the image.

    Args:
        original: the attention.
        image_queries: projects the image for its own attention, that is then done here too; None: it has none.
        places: (N, C) of the image.
    """

    def __init__(self, original: Any, image_queries: Any | None, places: Tensor) -> None:
        super().__init__()
        self._q_proj: nn.Module = original.q_proj
        self._out_proj: nn.Module = original.out_proj
        self._heads = int(original.num_heads)
        parts = [original.k_proj, original.v_proj] + ([] if image_queries is None else [image_queries])
        # Values get no positions.
        offsets = [part(places * (part is not original.v_proj)) for part in parts]
        self._weight = nn.Buffer(torch.cat([part.weight for part in parts]).detach().T.contiguous())
        self._offset = nn.Buffer(torch.cat(offsets, dim=1).detach()[None])
        self._count = len(parts)

    def project(self, cells: Tensor) -> Projected:
        """Project (P, N, C) cells as `forward`, and what comes after it, need them."""
        count = len(cells)
        joined = torch.baddbmm(self._offset.expand(count, -1, -1), cells, self._weight.expand(count, -1, -1))
        keys, values, *queries = joined.chunk(self._count, dim=-1)
        return Projected(keys, values, queries[0] if queries else None)

    def forward(self, tokens: Tensor, image: Projected) -> Tensor:
        """Attend: (P, T, C) to (P, T, C)."""
        answer: Tensor = self._out_proj(_attend(self._q_proj(tokens), image.keys, image.values, self._heads))
        return answer


class _ImageToTokens(nn.Module):
    """Runs an `Attention` of the image to tokens, with its residual."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self._k_proj: nn.Module = original.k_proj
        self._v_proj: nn.Module = original.v_proj
        self._heads = int(original.num_heads)
        self._scale = float((original.k_proj.out_features // self._heads) ** -0.5)
        self._one_hot = nn.Buffer(torch.eye(self._heads), persistent=False)
        self._out_weight = nn.Buffer(original.out_proj.weight.detach().unflatten(1, (self._heads, -1)).clone())
        self._out_bias = nn.Buffer(original.out_proj.bias.detach().clone())

    def forward(self, cells: Tensor, image: Projected, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with (P, N, C) cells, projected, to (P, T, C) tokens; return (P, N, C)."""
        assert image.queries is not None
        own_keys = self._scale * self._k_proj(keys).unflatten(-1, (self._heads, -1))
        # Each key in its head's channels alone, each value as the output makes it of its head: two large products.
        by_head = torch.einsum("pthc,hg->ptghc", own_keys, self._one_hot).flatten(3).flatten(1, 2)
        seen = torch.einsum("pthc,ohc->ptho", self._v_proj(values).unflatten(-1, (self._heads, -1)), self._out_weight)
        # The weights of a head sum to one.
        seen[:, :, 0] += self._out_bias
        logits = torch.bmm(by_head, image.queries.transpose(1, 2))
        weights = logits.reshape(len(logits), -1, self._heads, cells.shape[1]).softmax(1).flatten(1, 2)
        return torch.baddbmm(cells, weights.transpose(1, 2), seen.flatten(1, 2))


class _Twofold(nn.Module):
    """Runs a `ConvTranspose2d` with kernel and stride of two: (..., C) to (..., 4, c), row by row."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self._weight = nn.Buffer(original.weight.detach().permute(2, 3, 1, 0).flatten(0, 2).contiguous())
        self._bias = nn.Buffer(original.bias.detach().repeat(4))

    def forward(self, cells: Tensor) -> Tensor:
        return F.linear(cells, self._weight, self._bias).reshape(*cells.shape[:-1], 4, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend: (B, N, C) queries, (B, M, C) keys and values to (B, N, C)."""
    q, k, v = (one.reshape(*one.shape[:2], heads, -1).transpose(1, 2) for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
