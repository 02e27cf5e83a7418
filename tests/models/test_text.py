"""Text encoders and text features: their values are transformers' own, on random weights in the official layouts."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.models.encoders.timm_encoder import TextSpace, TimmEncoder, VitOptions
from backend.models.loading import ModelSource
from backend.models.profiles import find_profile
from backend.models.text.clip import MODEL as CLIP_MODEL
from backend.models.text.clip import TOKENIZER as CLIP_TOKENIZER
from backend.models.text.clip import ClipTextEncoder
from backend.models.text.loading import load_text_encoder
from backend.models.text.spaces import TIPS_MODEL, tips_text_space
from backend.models.text.tipsv2 import TOKENIZER, Tipsv2TextEncoder
from backend.models.weights.catalogue import known_weights
from backend.models.weights.store import WeightsStore

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[text]'")

SIDE_PX = 56
NETWORK = {"depth": 3, "embed_dim": 128, "num_heads": 2, "img_size": SIDE_PX}
PHRASES = ["orange rust on steel", "RUST", "a " * 200]
WORDS = [
    "<pad>",
    "<unk>",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"▁{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    "▁",
]


def tiny_model() -> Any:
    torch.manual_seed(3)
    text = transformers.Tipsv2TextConfig(
        vocab_size=len(WORDS), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2
    )
    vision = transformers.Tipsv2VisionConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE_PX, layer_norm_eps=1e-6
    )
    model = transformers.Tipsv2Model(transformers.Tipsv2Config(text_config=text, vision_config=vision)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def official_layout(model: Any) -> dict[str, Tensor]:
    """The model's tensors by the publisher's names."""
    names = (
        (r"^text_model\.embeddings\.token_embedding", "text_encoder.token_embedding"),
        (r"^text_model\.final_layer_norm", "text_encoder.ln_final"),
        (r"^text_model\.encoder\.layers", "text_encoder.transformer.resblocks"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"self_attn", "attn"),
        (r"^(text.*)mlp\.fc1", r"\1mlp.c_fc"),
        (r"^(text.*)mlp\.fc2", r"\1mlp.c_proj"),
        (r"^vision_model\.embeddings\.patch_embeddings\.projection", "vision_encoder.patch_embed.proj"),
        (r"^vision_model\.embeddings\.position_embeddings", "vision_encoder.pos_embed"),
        (r"^vision_model\.embeddings\.", "vision_encoder."),
        (r"^vision_model\.layernorm", "vision_encoder.norm"),
        (r"^vision_model\.encoder\.layer", "vision_encoder.blocks"),
        (r"attention\.o_proj", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    )
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    for name in [one for one in found if re.search(r"\.q_proj\.", one)]:
        joined = torch.cat([found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"])
        kind = name.rpartition(".")[2]
        is_text = name.startswith("text")
        stem = re.sub(r"\.(attn|attention)\.q_proj\..*", "", name)
        found[f"{stem}.attn.in_proj_{kind}" if is_text else f"{stem}.attn.qkv.{kind}"] = joined
    return {name: tensor.contiguous() for name, tensor in found.items()}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tips")
    safetensors.torch.save_file(official_layout(model), folder / "model.safetensors")
    tokenizer = transformers.models.tipsv2.tokenization_tipsv2.Tipsv2Tokenizer(
        vocab={word: number for number, word in enumerate(WORDS)}, merges=[("▁", letter) for letter in "abcdefg"]
    )
    tokenizer.save_pretrained(folder)
    return {TIPS_MODEL: folder / "model.safetensors", TOKENIZER: folder / "tokenizer.json"}


def image(height: int = SIDE_PX, width: int = SIDE_PX) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def test_phrases_are_encoded_as_by_transformers(model: Any, files: dict[str, Path]) -> None:
    own = Tipsv2TextEncoder(files)
    tokenizer = transformers.models.tipsv2.tokenization_tipsv2.Tipsv2Tokenizer.from_pretrained(files[TOKENIZER].parent)
    tokens = tokenizer(PHRASES, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
    found = torch.from_numpy(own.encode(PHRASES))
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), atol=1e-4, rtol=0)
    assert own.text_space == tips_text_space(files[TIPS_MODEL])
    assert own.encode([]).shape == (0, 128)


def test_image_and_text_features_are_those_of_transformers(model: Any, files: dict[str, Path]) -> None:
    encoder = TimmEncoder(
        TIPS_MODEL, files[TIPS_MODEL], VitOptions(side_px=SIDE_PX), network_options=NETWORK, text=TextSpace("tips")
    )
    pixels = image()
    ((features, text),) = encoder.encode_both_async([encoder.prepare(pixels)])()
    torch.testing.assert_close(features, encoder.encode(pixels), atol=1e-6, rtol=0)
    vision = model.vision_model
    inputs = torch.from_numpy(pixels / 255.0).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        whole = vision(pixel_values=inputs)
        patches = whole.last_hidden_state[0, 2:]
        tokens = vision.embeddings(inputs)
        for layer in vision.encoder.layer[:-1]:
            tokens = layer(tokens)
        last = vision.encoder.layer[-1]
        values = last.attention.o_proj(last.attention.v_proj(last.norm1(tokens)))
        tokens = tokens + last.layer_scale1(values)
        tokens = tokens + last.layer_scale2(last.mlp(last.norm2(tokens)))
        dense = vision.layernorm(tokens)[0, 2:]
    side = SIDE_PX // 14
    torch.testing.assert_close(features.reshape(side * side, -1), F.normalize(patches, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(text.reshape(side * side, -1), F.normalize(dense, dim=-1), atol=1e-4, rtol=0)


def test_an_encoder_without_a_space_has_no_text_features() -> None:
    assert TimmEncoder("vit_small_patch14_dinov2", None, network_options={"depth": 2}).text_space is None


def test_clip_is_a_second_text_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.CLIPTextConfig(
        vocab_size=30, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, eos_token_id=29,
    )  # fmt: skip
    network = transformers.CLIPTextModelWithProjection(config).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    vocabulary = {
        **{letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")},
        "<|startoftext|>": 28,
        "<|endoftext|>": 29,
    }
    content = {
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [
                {"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]}
                for name in ("<|startoftext|>", "<|endoftext|>")
            },
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    own = ClipTextEncoder({CLIP_MODEL: tmp_path / "model.safetensors", CLIP_TOKENIZER: tmp_path / "tokenizer.json"})
    ids = torch.tensor([[28, *(vocabulary[letter] for letter in "red disc"), 29]])
    with torch.inference_mode():
        expected = network(input_ids=ids).text_embeds
    found = torch.from_numpy(own.encode(["Red disc", "a longer phrase than that"]))
    torch.testing.assert_close(found[:1], F.normalize(expected, dim=-1), atol=1e-4, rtol=0)
    assert found.shape == (2, 16)


def test_clips_dense_features_take_the_plain_value_path() -> None:
    encoder = TimmEncoder(
        "vit_base_patch16_clip_quickgelu_224", None, VitOptions(side_px=64), text=TextSpace("clip", is_plain=True),
        network_options={"depth": 3, "embed_dim": 96, "num_heads": 3, "num_classes": 20},
    )  # fmt: skip
    network: Any = encoder.runner.network
    ((features, text),) = encoder.encode_both_async([encoder.prepare(image(64, 64))])()
    assert (features.shape, text.shape) == ((4, 4, 96), (4, 4, 20))
    with torch.inference_mode():
        tokens = network.norm_pre(
            network._pos_embed(network.patch_embed(encoder.normalised(encoder.prepare(image(64, 64))[None])))
        )
        for block in network.blocks[:-1]:
            tokens = block(tokens)
        attention = network.blocks[-1].attn
        values = attention.qkv(network.blocks[-1].norm1(tokens))[..., 2 * 96 :]
        expected = network.head(network.norm(attention.proj(values)))[0, 1:]
    torch.testing.assert_close(text.reshape(16, 20), F.normalize(expected, dim=-1), atol=1e-4, rtol=0)


def test_the_profile_is_made_of_files_that_are_stored(files: dict[str, Path], tmp_path: Path) -> None:
    profile = find_profile("text")
    assert profile.weights == (TIPS_MODEL, "sam_vit_b", TOKENIZER)
    store = WeightsStore(tmp_path / "weights")
    source = ModelSource(tmp_path / "weights")
    with pytest.raises(ModelUnavailableError, match="weights fetch text"):
        load_text_encoder("text", source)
    stored = store.add(files[TOKENIZER], name=TOKENIZER, source="here")
    assert stored.checked == "recorded"
    assert store.verify(stored) is None
    with pytest.raises(BadInputError, match=r"is not model.safetensors of vit_base"):
        store.add(files[TIPS_MODEL], name=TIPS_MODEL, source="here")  # random weights are not the official ones
    known = known_weights(TIPS_MODEL)
    assert known is not None
    assert known.size_bytes == 783830160


def test_what_cannot_be_used_is_said(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="need a profile with a text encoder"):
        load_text_encoder("lite", ModelSource())
    odd = tmp_path / "tokenizer.json"
    odd.write_text('{"a": 1}')
    with pytest.raises(ModelUnavailableError, match=r"must be a tokenizer.json"):
        Tipsv2TextEncoder({**files, TOKENIZER: odd})
    with pytest.raises(BadInputError, match=r"must be a tokenizer.json"):
        WeightsStore(tmp_path / "weights").add(odd, name=TOKENIZER, source="here")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"text_encoder.ln_final.weight": torch.ones(3)}, other)
    with pytest.raises(ModelUnavailableError, match="must hold TIPSv2's text encoder"):
        Tipsv2TextEncoder({**files, TIPS_MODEL: other})
