"""SAMs of a few thousand parameters, and of the official layout; what is asked of any segmenter."""

import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from backend.core.types import Image, Mask, Scribble
from backend.models.segmenters import Prompt, Segmenter


def small_sam(seed: int = 0, *, image_px: int = 128) -> nn.Module:
    """A `Sam` of segment-anything with two blocks: one with windows, one global, as the real ones have."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    cells = image_px // 16
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam: nn.Module = Sam(
            image_encoder=ImageEncoderViT(
                depth=2, embed_dim=32, img_size=image_px, mlp_ratio=2, norm_layer=partial(nn.LayerNorm, eps=1e-6),
                num_heads=2, patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=[1], window_size=3,
                out_chans=32,
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=32, image_embedding_size=(cells, cells), input_image_size=(image_px, image_px),
                mask_in_chans=16,
            ),
            mask_decoder=MaskDecoder(
                num_multimask_outputs=3,
                transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2),
                transformer_dim=32, iou_head_depth=3, iou_head_hidden_dim=32,
            ),
        )  # fmt: skip
        for parameter in sam.parameters():  # position tables start at zero, and would hide mistakes about them
            if not bool(parameter.detach().any()):
                nn.init.normal_(parameter, std=0.1)
    return sam.eval()


def mixed_up(segmenter: Segmenter, images: Sequence[Image]) -> list[int]:
    """Ask about images from eight threads at once: the indices of those that were answered unlike in one thread."""

    def answer(image: Image) -> list[Mask]:
        embedding = segmenter.embed(image)
        hw = segmenter.working_hw(embedding)
        scribble = Scribble(hw, positive_xy=np.array([[hw[1] / 2, hw[0] / 2]], np.float32))
        return [candidate.mask for candidate in segmenter.decode(embedding, [Prompt(scribble)])]

    expected = [answer(image) for image in images]
    mixed: list[int] = []

    def work(number: int) -> None:
        for turn in range(6):
            chosen = (number + turn) % len(images)
            found = answer(images[chosen])
            if not all(np.array_equal(one, other) for one, other in zip(found, expected[chosen], strict=True)):
                mixed.append(chosen)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return mixed
