"""Do TIPSv2's text and image features equal transformers' own, at full size on random weights?

    python -m benchmarks.text_parity [--seed 0] [--json FILE]

A `Tipsv2Model` of ViT-B is written to a temporary file in the publisher's layout (784 MB), which our text encoder and
timm's network read. A SentencePiece model is trained on the pages in docs/; its tokens are compared with those of
transformers' tokenizer. The largest differences of unit vectors; `class token` is that of the last norm, unnormalised.
"""

import argparse
import importlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.encoders.timm_networks import forward_features
from backend.models.text.spaces import TIPS_MODEL, TextSpace
from backend.models.text.tipsv2 import MOST_TOKENS, TOKENIZER, Tipsv2TextEncoder
from backend.models.text.tokenizer import load_tokenizer
from testing.tips_layout import dense_features, official_layout

SIDE_PX = 448
_TOKENS = 8000
_SPREAD = 0.05
"""Of the random weights: with less, a block does little; with more, everything becomes one direction."""
PHRASES = ("orange rust on steel", "A Red Disc", "corroded metal; flaking paint", "ржавчина", "crack " * 100)


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Return the largest differences."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(seed)
    vision = transformers.Tipsv2VisionConfig(image_size=SIDE_PX, layer_norm_eps=1e-6)
    model = transformers.Tipsv2Model(transformers.Tipsv2Config(vision_config=vision)).eval()
    for parameter in model.parameters():  # as they are made, many are 0 or 1
        torch.nn.init.normal_(parameter, std=_SPREAD)
    files = {TIPS_MODEL: folder / "model.safetensors", TOKENIZER: folder / "tokenizer.model"}
    safetensors.torch.save_file(official_layout(model), files[TIPS_MODEL])
    lines = [line for page in sorted(Path("docs").glob("*.md")) for line in page.read_text().splitlines() if line]
    files[TOKENIZER].write_bytes(_trained(lines))
    figures: dict[str, Any] = {"seed": seed, "bytes": files[TIPS_MODEL].stat().st_size}
    figures |= _of_tokens(files[TOKENIZER], [line.lower() for line in lines], model.config.text_config.vocab_size)
    figures |= _of_phrases(model, files)
    return figures | _of_image(model, files[TIPS_MODEL])


def _trained(lines: list[str]) -> bytes:
    trainer: Any = importlib.import_module("sentencepiece").SentencePieceTrainer
    written = io.BytesIO()
    trainer.train(
        sentence_iterator=iter(line.lower() for line in lines), model_writer=written, model_type="bpe",
        vocab_size=_TOKENS, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, hard_vocab_limit=False, byte_fallback=True,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


def _of_tokens(path: Path, lines: list[str], vocabulary: int) -> dict[str, Any]:
    """Compare tokens; those of transformers come from the same pieces and the merges that it derives of them."""
    pieces: Any = importlib.import_module("sentencepiece").SentencePieceProcessor(model_proto=path.read_bytes())
    known = {pieces.id_to_piece(number): number for number in range(pieces.vocab_size())}
    merges = importlib.import_module("transformers.convert_slow_tokenizer").generate_merges(known)
    tokenization: Any = importlib.import_module("transformers.models.tipsv2.tokenization_tipsv2")
    theirs = tokenization.Tipsv2Tokenizer(vocab=known, merges=merges)
    ids, mask = load_tokenizer(path, vocabulary=vocabulary, most_tokens=MOST_TOKENS, pads_to_most=True)(lines)
    expected = theirs(lines, padding="max_length", truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    same = (ids == expected["input_ids"]).all(dim=1) & (mask == expected["attention_mask"]).all(dim=1)
    return {"lines": len(lines), "lines with the same tokens": int(same.sum())}


def _of_phrases(model: Any, files: dict[str, Path]) -> dict[str, Any]:
    own = Tipsv2TextEncoder(files)
    ids, mask = load_tokenizer(files[TOKENIZER], vocabulary=_TOKENS + 1000, most_tokens=MOST_TOKENS, pads_to_most=True)(
        [phrase.lower() for phrase in PHRASES]
    )
    with torch.inference_mode():
        expected = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return {"phrases": _apart(torch.from_numpy(own.encode(PHRASES)), F.normalize(expected, dim=-1))}


def _of_image(model: Any, path: Path) -> dict[str, Any]:
    encoder = TimmEncoder(TIPS_MODEL, path, VitOptions(side_px=SIDE_PX), text=TextSpace("tips"))
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
    ((features, text),) = encoder.encode_both_async([encoder.prepare(pixels)])()
    inputs = torch.from_numpy(pixels / 255.0).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        whole = model.vision_model(pixel_values=inputs)
        pooled = forward_features(encoder.runner.network, inputs)[:, 0]
        dense = dense_features(model.vision_model, inputs)
    return {
        "class token": _apart(pooled, whole.last_hidden_state[:, 0]),
        "patch features": _apart(features.flatten(0, 1), F.normalize(whole.last_hidden_state[0, 2:], dim=-1)),
        "dense features": _apart(text.flatten(0, 1), F.normalize(dense, dim=-1)),
        "spread of the patches": float(features.flatten(0, 1).std(dim=0).mean()),
    }


def _apart(own: Tensor, expected: Tensor) -> float:
    return float((own - expected).abs().max())


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.seed, Path(folder))
    for name, value in figures.items():
        print(f"{name}: {value:.1e}" if isinstance(value, float) else f"{name}: {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
