"""SAM's image encoders by OpenVINO give the embeddings that PyTorch gives, under the same signature."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from backend.models.cpu_engine import CpuEngine
from backend.models.device.openvino_network import OpenVinoNetwork
from backend.models.sam.attention import fuse_attention
from backend.models.sam.networks import _import_mobile_sam
from backend.models.sam.options import SamOptions
from backend.models.sam.segmenter import SamSegmenter, sam_segmenter
from testing.small_sam import small_sam

ENGINE = CpuEngine("openvino", threads=1, calls_at_a_time=2)


def small_tiny_vit() -> nn.Module:
    """MobileSAM's TinyViT with a block in each stage, of the input and the last stage that its code is written for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = _import_mobile_sam().modeling.TinyViT(
            img_size=1024, embed_dims=[8, 8, 16, 320], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
            window_sizes=[7, 7, 14, 7], layer_lr_decay=0.8,
        )  # fmt: skip
        for parameter in network.parameters():
            if not bool(parameter.detach().any()):
                nn.init.normal_(parameter, std=0.1)
    return network.eval()


def segmenter(engine: CpuEngine | None, **options: object) -> SamSegmenter:
    return sam_segmenter(small_sam(), "small", SamOptions(working_px=96, is_half=False, **options), engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_fast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tiny_vit_gives_the_same_embedding(is_fast: bool) -> None:
    network = small_tiny_vit()
    batch = torch.randn(2, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = network(batch)
    if is_fast:
        fuse_attention(network)
    found = OpenVinoNetwork(network, batch[:1], ENGINE)(batch)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("size_hw", [(96, 128), (128, 96), (40, 200)])
def test_a_segmenter_embeds_alike_by_both_engines(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    by_openvino, by_torch = segmenter(ENGINE), segmenter(None)
    assert by_openvino.signature == by_torch.signature
    found, wanted = by_openvino.embed(image), by_torch.embed(image)
    one, other = (np.asarray(embedding["image_embedding"], np.float32) for embedding in (found, wanted))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert isinstance(by_openvino.embedder.runner.network, OpenVinoNetwork)


def test_the_packages_path_stays_pytorchs() -> None:
    assert not isinstance(segmenter(ENGINE, path="package").embedder.runner.network, OpenVinoNetwork)


def test_threads_share_a_network() -> None:
    network = OpenVinoNetwork(small_sam().get_submodule("image_encoder"), torch.zeros(1, 3, 128, 128), ENGINE)
    draw = torch.Generator().manual_seed(2)
    images = [torch.randn(1, 3, 128, 128, generator=draw) for _ in range(32)]
    alone = [network(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(network, images))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
