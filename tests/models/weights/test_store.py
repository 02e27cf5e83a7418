"""Weights on disk: known by content, held to what they were, and a missing one names the command that helps."""

import hashlib
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.models.profiles import PROFILES
from backend.models.weights import catalogue
from backend.models.weights.catalogue import KNOWN_WEIGHTS, KnownWeights, known_weights, weights_of
from backend.models.weights.store import WeightsStore

CONTENT = safetensors.torch.save({"a": torch.arange(2000.0), "b": torch.ones(3, 4)})
OTHER = safetensors.torch.save({"a": torch.zeros(7)})


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path / "weights")


def _file(tmp_path: Path, name: str, content: bytes = CONTENT) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_the_catalogue_is_consistent() -> None:
    assert len({known.name for known in KNOWN_WEIGHTS}) == len(KNOWN_WEIGHTS)
    assert len({known.sha256 for known in KNOWN_WEIGHTS}) == len(KNOWN_WEIGHTS)
    for known in KNOWN_WEIGHTS:
        assert known.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", known.sha256)
        assert known.url is None or (known.url.startswith("https://") and known.url.endswith(known.file_name))
        # The digits in SAM's file names are its MD5's.
        digits = re.search(r"_([0-9a-f]{6})\.pth", known.file_name)
        assert (digits.group(1) if digits else None) == known.md5_start
    for profile in PROFILES.values():
        assert all(known_weights(name) is not None for name in profile.weights)
    assert [known.name for known in weights_of("mobile")] == ["vit_small_patch14_dinov2", "mobile_sam"]
    assert weights_of("lite") == []
    with pytest.raises(ConfigurationError, match="mobile, base, large"):
        weights_of("gigantic")


def test_missing_weights_name_the_command(store: WeightsStore) -> None:
    with pytest.raises(ModelUnavailableError, match="run `python -m backend weights fetch base`"):
        store.require(["vit_base_patch14_dinov2", "sam_vit_b"], profile="base")
    with pytest.raises(ModelUnavailableError, match=r"weights import PATH --as vit_base_patch16_dinov3`$"):
        store.require(["vit_base_patch16_dinov3"])
    # All of them at once, so that the second is not asked for when the first is there.
    with pytest.raises(ModelUnavailableError, match=r"run `python -m backend weights fetch sam_vit_b mobile_sam`$"):
        store.require(["sam_vit_b", "mobile_sam"])
    both = "fetch sam_vit_b`, then `python -m backend weights import PATH --as vit_base_patch16_dinov3`"
    with pytest.raises(ModelUnavailableError, match=both):
        store.require(["vit_base_patch16_dinov3", "sam_vit_b"])


def test_official_file_is_known_by_its_content(
    store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KnownWeights("some_sam", "some.pth", None, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), None, "MIT")
    monkeypatch.setattr(catalogue, "KNOWN_WEIGHTS", (known,))
    stored = store.add(_file(tmp_path, "renamed.bin"), name=None, source="here")
    assert (stored.name, stored.checked, stored.file_name) == ("some_sam", "catalogue", "some.pth")
    assert store.find("some_sam") == stored
    assert store.verify(stored) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"short", "cut off: 5 of 375042383 bytes"),
        (b"<html>sign in</html>", "web page"),
    ],
)
def test_wrong_content_under_an_official_name_is_refused(
    store: WeightsStore, tmp_path: Path, content: bytes, reason: str
) -> None:
    with pytest.raises(BadInputError, match=reason):
        store.add(_file(tmp_path, "sam_vit_b_01ec64.pth", content), name=None, source="here")
    with pytest.raises(BadInputError, match=reason):
        store.add(_file(tmp_path, "x.pth", content), name="sam_vit_b", source="here")
    assert store.all() == []


def test_digits_in_the_name_vouch_where_nothing_else_does(
    store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    known = KnownWeights("named", f"named_{md5[:6]}.pth", None, None, None, md5[:6], "MIT")
    monkeypatch.setattr(catalogue, "KNOWN_WEIGHTS", (known,))
    with pytest.raises(BadInputError, match=f"does not begin with {md5[:6]}"):
        store.add(_file(tmp_path, "x.pth", CONTENT + b"!"), name="named", source="here")
    stored = store.add(_file(tmp_path, "x.pth"), name="named", source="here")
    assert stored.checked == "recorded"


def test_unknown_file_needs_a_name_and_is_then_held_to_what_it_was(store: WeightsStore, tmp_path: Path) -> None:
    path = _file(tmp_path, "dinov3.safetensors")
    with pytest.raises(BadInputError, match="--as"):
        store.add(path, name=None, source="here")
    stored = store.add(path, name="vit_base_patch16_dinov3", source="here")
    assert stored.checked == "recorded"
    assert path.exists()
    assert store.add(path, name="vit_base_patch16_dinov3", source="again").sha256 == stored.sha256
    with pytest.raises(BadInputError, match="other weights already"):
        store.add(_file(tmp_path, "b.pth", OTHER), name="vit_base_patch16_dinov3", source="here")
    with pytest.raises(BadInputError, match="name"):
        store.add(path, name="../../etc/passwd", source="here")


def test_damage_is_found(store: WeightsStore, tmp_path: Path) -> None:
    stored = store.add(_file(tmp_path, "w.pth"), name="resnet18", source="here")
    stored.path.write_bytes(CONTENT[:-1] + b"W")
    assert "not " + stored.sha256 in str(store.verify(stored))
    stored.path.write_bytes(CONTENT[:-3])
    with pytest.raises(ModelUnavailableError, match=f"{len(CONTENT) - 3} of {len(CONTENT)} bytes"):
        store.require(["resnet18"])
    store.add(_file(tmp_path, "w.pth"), name="resnet18", source="here")  # importing it again mends it
    assert store.verify(store.require(["resnet18"])[0]) is None


def test_unreadable_notes_are_no_weights(store: WeightsStore, tmp_path: Path) -> None:
    store.add(_file(tmp_path, "w.pth"), name="resnet18", source="here")
    (store.folder / "models" / "resnet18.json").write_text("{broken")
    assert store.find("resnet18") is None
    (store.folder / "models" / "resnet18.json").write_text('{"sha256": "../../x"}')
    assert store.find("resnet18") is None
    with pytest.raises(BadInputError, match="file that can be read"):
        store.add(tmp_path / "absent.pth", name="resnet18", source="here")
