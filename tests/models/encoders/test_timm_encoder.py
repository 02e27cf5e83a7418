"""timm encoders: their values are timm's own, whatever the layout of features and weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions, positional_basis

DINOV2, DINOV2_REGISTERS, DINOV3 = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
)
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
OPTIONS = VitOptions(side_px=112)


def _image(height: int = 90, width: int = 150) -> NDArray[Any]:
    rng = np.random.default_rng(3)
    return np.kron(rng.integers(0, 255, (height // 10, width // 10, 3), np.uint8), np.ones((10, 10, 1), np.uint8))


def _encoder(name: str = DINOV2, weights: Path | None = None, **options: Any) -> TimmEncoder:
    return TimmEncoder(name, weights, VitOptions(**{"side_px": 112, **options}), network_options=TINY)


@pytest.mark.parametrize(("name", "patch", "prefix"), [(DINOV2, 14, 1), (DINOV2_REGISTERS, 14, 5), (DINOV3, 16, 5)])
def test_patches_are_those_of_timms_own_forward(name: str, patch: int, prefix: int) -> None:
    encoder = _encoder(name)
    network = encoder.runner.network
    image = _image()
    features = encoder.encode(image)
    inputs = encoder.normalised(encoder.prepare(image)[None])[0]
    assert inputs.shape[1] % patch == 0
    assert inputs.shape[2] % patch == 0
    with torch.inference_mode():
        tokens: Tensor = network.forward_features(inputs[None])  # type: ignore[operator]
    expected = F.normalize(tokens[0, prefix:], dim=-1).reshape(inputs.shape[1] // patch, inputs.shape[2] // patch, -1)
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:2]))


def test_input_is_what_timm_expects() -> None:
    encoder = _encoder()
    height, width = encoder.input_hw(90, 150)
    image = np.full((height, width, 3), (124, 116, 104), np.uint8)
    mean, std = timm.get_pretrained_cfg(DINOV2).mean, timm.get_pretrained_cfg(DINOV2).std
    expected = (torch.tensor([124, 116, 104]) / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(encoder.normalised(encoder.prepare(image)[None])[0, :, 0, 0], expected)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (100, 1000), (1, 1), (37, 41)])
def test_sides_are_whole_patches_near_the_aspect_ratio(height: int, width: int) -> None:
    encoder = TimmEncoder(DINOV2, None, VitOptions(side_px=448), network_options=TINY)
    rows, columns = (side / 14 for side in encoder.input_hw(height, width))
    assert rows == int(rows) >= 1
    assert columns == int(columns) >= 1
    assert max(rows, columns) * 14 <= 1344
    assert abs(columns - rows * width / height) <= 0.5 + 0.5 * width / height


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "grid_hw"),
    [
        ("resnet18", {}, (3, 5)),  # feature map, channels first
        ("convnext_atto", {}, (3, 5)),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, (7, 7)),  # channels last, one input size only
        ("vit_tiny_patch16_224", {"depth": 1}, (5, 9)),
    ],
)
def test_any_grid_of_features_will_do(name: str, options: dict[str, Any], grid_hw: tuple[int, int]) -> None:
    encoder = TimmEncoder(name, None, OPTIONS, network_options=options)
    assert tuple(encoder.encode(_image()).shape[:2]) == grid_hw


def test_model_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no_such_dinov2.*near it.*dinov2"):
        TimmEncoder("no_such_dinov2", None)


def _facebook_layout(network: torch.nn.Module, registers: int) -> dict[str, Tensor]:
    """The same weights as facebookresearch/dinov2 names and shapes them."""
    state = dict(network.state_dict())
    facebook: dict[str, Tensor] = {"mask_token": torch.zeros(1, TINY["embed_dim"])}
    if registers:
        # Facebook's table has a place for the class token; timm has added it to the token itself.
        place = torch.randn(1, 1, TINY["embed_dim"])
        facebook["pos_embed"] = torch.cat([place, state.pop("pos_embed")], dim=1)
        facebook["cls_token"] = state.pop("cls_token") - place
        facebook["register_tokens"] = state.pop("reg_token")
    return {**facebook, **state}


@pytest.mark.parametrize(("name", "registers"), [(DINOV2, 0), (DINOV2_REGISTERS, 4)])
@pytest.mark.parametrize("kind", ["timm .pth", "timm .safetensors", "facebook .pth", "facebook in a wrapper"])
def test_weights_come_in_the_layouts_of_timm_and_facebook(name: str, registers: int, kind: str, tmp_path: Path) -> None:
    source = _encoder(name)
    network = source.runner.network
    for parameter in network.parameters():  # position tables and scales must matter
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    state = _facebook_layout(network, registers) if kind.startswith("facebook") else network.state_dict()
    path = tmp_path / "weights"
    if kind.endswith("safetensors"):
        safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    else:
        torch.save({"model": state} if "wrapper" in kind else state, path)
    loaded = _encoder(name, path)
    torch.testing.assert_close(loaded.encode(_image()), source.encode(_image()), atol=1e-5, rtol=0)
    assert loaded.signature != source.signature


def test_dinov3s_weights_come_in_facebooks_layout(tmp_path: Path) -> None:
    source = _encoder(DINOV3)
    network = source.runner.network
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    renamed = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
    # What facebookresearch/dinov3 has beside: a token for masked training, the table of its rotations, a bias of zeros.
    facebook: dict[str, Tensor] = {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(4)}
    for key, tensor in network.state_dict().items():
        name = key
        for own, theirs in renamed.items():
            name = name.replace(own, theirs)
        facebook[name] = tensor
        if key.endswith("qkv.weight"):
            stem = name.removesuffix("weight")
            facebook[f"{stem}bias"] = torch.zeros(len(tensor))
            facebook[f"{stem}bias_mask"] = torch.ones(len(tensor))
    assert {"storage_tokens", "blocks.0.ls1.gamma", "blocks.1.attn.qkv.bias_mask"} <= set(facebook)
    path = tmp_path / "dinov3_vits16_pretrain.pth"
    torch.save(facebook, path)
    loaded = _encoder(DINOV3, path)
    torch.testing.assert_close(loaded.encode(_image()), source.encode(_image()), atol=1e-5, rtol=0)
    del facebook["storage_tokens"]
    torch.save(facebook, path)
    with pytest.raises(ModelUnavailableError, match="must hold vit_small_patch16_dinov3"):
        _encoder(DINOV3, path)


@pytest.mark.slow
def test_other_models_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ModelUnavailableError, match="must hold vit_small_patch14_dinov2"):
        _encoder(DINOV2, path)
    smaller = TimmEncoder(DINOV2, None, OPTIONS, network_options={**TINY, "embed_dim": 24})
    torch.save(smaller.runner.network.state_dict(), path)
    with pytest.raises(ModelUnavailableError, match="got other tensors"):
        TimmEncoder(DINOV2, path, OPTIONS, network_options=TINY)


def test_pickles_with_code_are_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": Path("anything")}, path)
    with pytest.raises(ModelUnavailableError, match="weights_only"):
        _encoder(DINOV2, path)
    path.write_bytes(b"not weights at all")
    with pytest.raises(ModelUnavailableError, match="got"):
        _encoder(DINOV2, path)


def test_batch_gives_what_single_images_give() -> None:
    encoder = _encoder(batch_size=2)
    images = [_image(), _image(150, 90), _image()[:, ::-1].copy(), _image(), _image(100, 100)]
    for batched, image in zip(encoder.encode_batch(images), images, strict=True):
        torch.testing.assert_close(batched, encoder.encode(image), atol=1e-5, rtol=0)
    assert encoder.encode_batch([]) == []


def test_positional_directions_are_gone() -> None:
    plain, without = _encoder(), _encoder(positional_rank=4)
    assert plain.signature != without.signature
    features = without.encode(_image())
    basis = positional_basis(plain.blank_features(plain.input_hw(90, 150)), 4)
    assert float((features @ basis).abs().max()) < 1e-5


def test_a_blank_image_keeps_nothing_of_the_directions_taken_out() -> None:
    """They are its own leading ones: what is left of it holds none, and less of it the more are taken."""
    plain = _encoder()
    blank = plain.blank_features((112, 112)).flatten(0, 1)
    left = []
    for rank in (1, 4, 16):
        basis = positional_basis(blank.reshape(8, 8, -1), rank)
        assert basis.shape == (48, rank)
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank), atol=1e-5, rtol=0)
        left.append(float((blank - (blank @ basis) @ basis.T).square().sum()))
    assert left == sorted(left, reverse=True)
    energy = torch.linalg.svdvals(blank).square()
    assert left == pytest.approx([float(energy[rank:].sum()) for rank in (1, 4, 16)], rel=1e-3)


def test_where_position_dominates_the_same_content_elsewhere_gets_more_alike() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, (12, 12))
    patches = rng.integers(0, 256, (4, 14, 14, 3), np.uint8)
    image = np.concatenate([np.concatenate(list(patches[row]), axis=1) for row in kinds])
    is_same = torch.from_numpy(kinds.ravel()[:, None] == kinds.ravel()[None])

    def alike(rank: int) -> tuple[float, float]:
        """Mean similarity of patches of the same content, and of different content."""
        encoder = _encoder(side_px=168, positional_rank=rank)
        network: Any = encoder.runner.network
        with torch.no_grad():
            network.pos_embed.mul_(100)
        features = encoder.encode(image).flatten(0, 1)
        similarity = features @ features.T
        same = is_same & ~torch.eye(len(features), dtype=torch.bool)
        return float(similarity[same].mean()), float(similarity[~is_same].mean())

    (same, other), (same_without, other_without) = alike(0), alike(16)
    assert same < 0.8, "position must dominate"
    assert same_without > same + 0.05
    assert same_without - other_without > same - other + 0.03


def test_positional_basis_finds_a_planted_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    content, position = torch.eye(32)[0], torch.eye(32)[1]
    ramp = torch.linspace(-1, 1, 60).reshape(6, 10, 1)
    blank = 0.01 * torch.randn(6, 10, 32, generator=generator) + ramp * position
    basis = positional_basis(blank, 1)
    assert basis.shape == (32, 1)
    assert abs(float(basis[:, 0] @ position)) > 0.999
    assert abs(float(basis[:, 0] @ content)) < 0.05


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(bad: NDArray[Any]) -> None:
    with pytest.raises(BadInputError, match=r"\(H, W, 3\) uint8"):
        _encoder().encode(bad)
