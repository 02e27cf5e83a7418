"""Text encoders and text features: their values are transformers' own, on random weights in the official layouts."""

import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.loading import ModelSource, load_profile
from backend.models.profiles import find_profile
from backend.models.text.clip import TOKENIZER as CLIP_TOKENIZER
from backend.models.text.clip import ClipTextEncoder
from backend.models.text.loading import load_text_encoder
from backend.models.text.spaces import CLIP_MODEL, TIPS_MODEL, TextSpace, clip_text_space, tips_text_space
from backend.models.text.tipsv2 import TOKENIZER, Tipsv2TextEncoder
from backend.models.text.tokenizer import load_tokenizer
from backend.models.weights.catalogue import known_weights, weights_of
from backend.models.weights.store import WeightsStore
from testing.tips_layout import dense_features, official_layout

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[text]'")
sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed: pip install '.[text]'")

SIDE_PX = 56
TOKENS = 400
NETWORK = {"depth": 3, "embed_dim": 128, "num_heads": 2, "img_size": SIDE_PX}
PHRASES = ["orange rust on steel", "RUST", "a " * 200]
WORDS = [
    "<pad>",
    "<unk>",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"▁{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    "▁",
]

pytestmark = pytest.mark.slow


def tiny_model() -> Any:
    torch.manual_seed(3)
    text = transformers.Tipsv2TextConfig(
        vocab_size=TOKENS, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2
    )
    vision = transformers.Tipsv2VisionConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE_PX, layer_norm_eps=1e-6
    )
    model = transformers.Tipsv2Model(transformers.Tipsv2Config(text_config=text, vision_config=vision)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


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
        dense = dense_features(vision, inputs)
    side = SIDE_PX // 14
    torch.testing.assert_close(features.reshape(side * side, -1), F.normalize(patches, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(text.reshape(side * side, -1), F.normalize(dense, dim=-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_plain", [False, True])
def test_text_features_pass_every_block_once(is_plain: bool) -> None:
    encoder = TimmEncoder(
        TIPS_MODEL, None, VitOptions(side_px=SIDE_PX), network_options=NETWORK, text=TextSpace("tips", is_plain, 7)
    )
    network: Any = encoder.runner.network
    passed: list[int] = []
    for number, block in enumerate(network.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: passed.append(number))
    encoder.encode_both_async([encoder.prepare(image())])()
    assert passed == [0, 1, 2]


def test_an_encoder_without_a_space_has_no_text_features() -> None:
    assert TimmEncoder("vit_small_patch14_dinov2", None, network_options={"depth": 2}).text_space is None


CLIP_SIDE_PX = 64
CLIP_VOCABULARY = {
    **{letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")},
    "<|startoftext|>": 28,
    "<|endoftext|>": 29,
}
CLIP_NETWORK = {"depth": 3, "embed_dim": 128, "num_heads": 2, "img_size": CLIP_SIDE_PX, "num_classes": 16}


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(3)
    text = transformers.CLIPTextConfig(
        vocab_size=30, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, eos_token_id=29,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=2, projection_dim=16,
        image_size=CLIP_SIDE_PX, patch_size=16,
    )  # fmt: skip
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def clip_files(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clip")
    # As older releases wrote it, the official file has the numbers of the positions, too.
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save({**clip.state_dict(), **positions}, folder / "pytorch_model.bin")
    start, end = "<|startoftext|>", "<|endoftext|>"
    content = {
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [
                {"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": end, "type_id": 0}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [CLIP_VOCABULARY[name]], "tokens": [name]} for name in (start, end)
            },
        },
        "model": {"type": "WordLevel", "vocab": CLIP_VOCABULARY, "unk_token": "a"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return {CLIP_MODEL: folder / "pytorch_model.bin", CLIP_TOKENIZER: folder / "tokenizer.json"}


def test_clips_phrases_are_encoded_as_by_transformers(clip: Any, clip_files: dict[str, Path]) -> None:
    own = ClipTextEncoder(clip_files)
    ids = torch.tensor([[28, *(CLIP_VOCABULARY[letter] for letter in "red disc"), 29]])
    with torch.inference_mode():
        expected = clip.get_text_features(input_ids=ids).pooler_output
    found = torch.from_numpy(own.encode(["Red disc", "a longer phrase than that"]))
    torch.testing.assert_close(found[:1], F.normalize(expected, dim=-1), atol=1e-4, rtol=0)
    assert found.shape == (2, 16)
    assert own.text_space == clip_text_space(clip_files[CLIP_MODEL])
    assert own.encode([]).shape == (0, 16)


def test_clips_image_and_text_features_are_those_of_transformers(clip: Any, clip_files: dict[str, Path]) -> None:
    encoder = TimmEncoder(
        CLIP_MODEL, clip_files[CLIP_MODEL], VitOptions(side_px=CLIP_SIDE_PX), network_options=CLIP_NETWORK,
        text=TextSpace("clip", is_plain=True, width=16),
    )  # fmt: skip
    pixels = image(CLIP_SIDE_PX, CLIP_SIDE_PX)
    ((features, text),) = encoder.encode_both_async([encoder.prepare(pixels)])()
    vision = clip.vision_model
    inputs = encoder.normalised(encoder.prepare(pixels)[None])
    with torch.inference_mode():
        tokens = vision.pre_layrnorm(vision.embeddings(inputs))
        for layer in vision.encoder.layers[:-1]:
            tokens = layer(tokens, None)
        last = vision.encoder.layers[-1]
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(tokens)))
        dense = clip.visual_projection(vision.post_layernorm(values))[0, 1:]
        patches = vision.post_layernorm(vision(pixel_values=inputs).last_hidden_state)[0, 1:]
    torch.testing.assert_close(features.reshape(16, -1), F.normalize(patches, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(text.reshape(16, -1), F.normalize(dense, dim=-1), atol=1e-4, rtol=0)


def test_clips_colours_and_width_are_the_models(clip_files: dict[str, Path]) -> None:
    encoder, _ = load_profile("clip", ModelSource(is_random=True))
    assert isinstance(encoder, TimmEncoder)
    pixels = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    white = transformers.image_utils
    expected = (1 - torch.tensor(white.OPENAI_CLIP_MEAN)) / torch.tensor(white.OPENAI_CLIP_STD)
    torch.testing.assert_close(encoder.normalised(pixels)[0, :, 0, 0], expected)
    ((features, text),) = encoder.encode_both_async([torch.zeros((32, 48, 3), dtype=torch.uint8)])()
    assert (features.shape, text.shape) == ((2, 3, 768), (2, 3, 512))


def test_weights_of_something_else_are_no_clip(files: dict[str, Path], clip_files: dict[str, Path]) -> None:
    with pytest.raises(ModelUnavailableError, match="must hold CLIP's text encoder"):
        ClipTextEncoder({**clip_files, CLIP_MODEL: files[TIPS_MODEL]})
    with pytest.raises(ModelUnavailableError, match=f"must hold {CLIP_MODEL}"):
        TimmEncoder(CLIP_MODEL, files[TIPS_MODEL], text=TextSpace("clip", is_plain=True, width=512))


SENTENCES = ("orange rust on steel", "red paint on a disc", "corroded metal", "a blue disc beside a red one")


def sentencepiece_model() -> bytes:
    """A small model as TIPSv2's: pairs of bytes, padding first, no start and no end."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 50), model_writer=written, model_type="bpe", vocab_size=320, pad_id=0,
        unk_id=1, bos_id=-1, eos_id=-1, hard_vocab_limit=False, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


@pytest.mark.parametrize("phrases", [[*SENTENCES, "unknown Letters: Ω", "a " * 100], ["rust"], []])
def test_a_sentencepiece_model_gives_the_tokens_of_transformers(phrases: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    tokenize = load_tokenizer(path, vocabulary=TOKENS, most_tokens=64, pads_to_most=True)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    vocabulary = {pieces.id_to_piece(number): number for number in range(pieces.vocab_size())}
    merges = importlib.import_module("transformers.convert_slow_tokenizer").generate_merges(vocabulary)
    theirs = transformers.models.tipsv2.tokenization_tipsv2.Tipsv2Tokenizer(vocab=vocabulary, merges=merges)
    lower = [phrase.lower() for phrase in phrases]
    ids, mask = tokenize(lower)
    assert ids.shape == mask.shape == (len(phrases), 64)
    if phrases:
        expected = theirs(lower, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
        assert torch.equal(ids, expected["input_ids"])
        assert torch.equal(mask, expected["attention_mask"])
    assert load_tokenizer(path, vocabulary=TOKENS, most_tokens=8)(["rust"])[0].shape[1] < 8


def test_tips_reads_either_kind_of_tokenizer(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "any name"
    path.write_bytes(sentencepiece_model())
    stored = WeightsStore(tmp_path / "weights").add(path, name=TOKENIZER, source="here")
    assert (stored.file_name, stored.checked) == ("tokenizer.model", "recorded")
    found = Tipsv2TextEncoder({**files, TOKENIZER: stored.path}).encode(["rust", "metal"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert not np.allclose(found[0], found[1])


@pytest.mark.parametrize(
    "content", [b"", b"\n\x0e\n\x05<pad", b"\n\x03\n\xff" + b"\xff" * 60, b"text" * 100, b"<html>"]
)
def test_what_is_no_tokenizer_is_not_kept(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"a SentencePiece model, got|a web page"):
        WeightsStore(tmp_path / "weights").add(path, name=TOKENIZER, source="here")
    with pytest.raises(ModelUnavailableError, match=r"must be a tokenizer\.json or a SentencePiece model"):
        load_tokenizer(path, vocabulary=TOKENS, most_tokens=64)


def test_a_tokenizer_of_another_model_is_named(files: dict[str, Path], clip_files: dict[str, Path]) -> None:
    with pytest.raises(ModelUnavailableError, match="which knows 30 tokens, got one of 55"):
        ClipTextEncoder({**clip_files, CLIP_TOKENIZER: files[TOKENIZER]})


def test_a_tokenizer_that_is_missing_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="must be a tokenizer that can be read"):
        Tipsv2TextEncoder({**files, TOKENIZER: tmp_path / "none"})


@pytest.mark.parametrize(("name", "model"), [("text", TIPS_MODEL), ("clip", CLIP_MODEL)])
def test_all_files_of_a_profile_with_phrases_can_be_fetched(name: str, model: str) -> None:
    profile = find_profile(name)
    assert profile.encoder == model
    assert [known.name for known in weights_of(name)] == list(profile.weights)
    for known in weights_of(name):
        assert known.url is not None
        # A tokenizer alone may be without a digest, which is recorded then.
        assert known.sha256 is not None or known.is_tokenizer


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
