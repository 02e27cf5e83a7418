"""Two models that give other features or masks never have one signature: caches and model_version hold to it."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder, EncoderOptions
from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.models.sam.options import SamOptions
from backend.models.sam.segmenter import sam_segmenter
from testing.small_sam import small_sam

CHANGE_NOTHING = {"decode_mb", "batch_size"}
"""Options that say how many prompts or images share a pass."""
TINY = {"depth": 1, "embed_dim": 48, "num_heads": 3}


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return {"fast": "package"}[value]
    if isinstance(value, tuple):
        return (*value[:-1], value[-1] + 0.5)
    if value is None:
        return 0.013
    return value + 0.013 if isinstance(value, float) else value + 14


def _variants(options: Any) -> list[tuple[str, Any]]:
    """Return the options with one of them changed, for each; nested ones too."""
    changed: list[tuple[str, Any]] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            changed += [
                (f"{field.name}.{name}", replace(options, **{field.name: other})) for name, other in _variants(value)
            ]
        else:
            changed.append((field.name, replace(options, **{field.name: _other(value)})))
    return changed


def _assert_told_apart(signature_of: Any, options: Any) -> None:
    signatures = {"": signature_of(options)}
    for name, changed in _variants(options):
        assert changed != options
        if name in CHANGE_NOTHING:
            assert signature_of(changed) == signatures[""], name
        else:
            signatures[name] = signature_of(changed)
    assert len(set(signatures.values())) == len(signatures), signatures


def test_any_option_of_sam_changes_its_signature() -> None:
    _assert_told_apart(lambda options: f"{options.signature()}", SamOptions())
    assert sam_segmenter(small_sam(), "name:content", SamOptions()).signature == (
        f"name:content:{SamOptions().signature()}"
    )
    assert {name for name, _ in _variants(SamOptions())} >= {
        "is_half", "most_objects", "least_share", "selection.minimum_iou",
    }  # fmt: skip


def test_any_option_of_a_timm_encoder_changes_its_signature() -> None:
    def signature(options: VitOptions) -> str:
        return TimmEncoder("vit_small_patch14_dinov2", None, options, network_options=TINY).signature

    _assert_told_apart(signature, VitOptions(side_px=112))


def test_another_network_of_random_weights_has_another_signature() -> None:
    encoders = [
        TimmEncoder("vit_small_patch14_dinov2", None, network_options=network, seed=seed)
        for network, seed in ((TINY, 0), (TINY, 1), ({**TINY, "depth": 2}, 0))
    ]
    assert len({one.signature for one in encoders}) == 3


@pytest.mark.slow
def test_any_option_of_the_lite_encoder_changes_its_signature() -> None:
    _assert_told_apart(lambda options: EfficientNetLiteEncoder(options=options).signature, EncoderOptions())


def test_the_working_size_changes_the_graph_cuts_signature() -> None:
    assert LiteSegmenter(working_px=200).signature != LiteSegmenter().signature
