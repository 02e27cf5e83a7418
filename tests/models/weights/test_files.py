"""What is brought as weights: nothing else than weights comes in, under whatever name; checkpoints of one's own do."""

import hashlib
import io
import json
import pickle
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segment_anything
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from backend.cli import app
from backend.errors import BadInputError
from backend.models.loading import ModelSource, load_profile
from backend.models.sam.networks import build_sam
from backend.models.weights.files import known_layout, reason_not_weights
from backend.models.weights.state_dict import read_state_dict
from backend.models.weights.store import WeightsStore
from tests import fuzzing

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 375042383\n"  # noqa: E501
TENSORS = {"a": torch.arange(2000.0), "b": torch.ones(3, 4)}
SAFETENSORS = safetensors.torch.save(TENSORS)


def _saved(content: Any, **more: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **more)
    return buffer.getvalue()


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PTH = _saved(TENSORS)
LEGACY = _saved(TENSORS, _use_new_zipfile_serialization=False)
NO_WEIGHTS = {
    "pointer": (POINTER, "Git LFS"),
    "page": (b"\n<!DOCTYPE html><html>sign in</html>", "web page"),
    "empty": (b"", "empty"),
    "zeros": (b"\0" * 5000, "PyTorch weights or safetensors|must hold tensors only"),
    "text": (b"weights" * 1000, "must"),
    "json": (b'{"error": "not found"}', "must"),
    "cut safetensors": (SAFETENSORS[:-3], "SafetensorError"),
    "longer safetensors": (SAFETENSORS + b"\0\0\0", "SafetensorError"),
    "header of safetensors": (SAFETENSORS[:100], "must"),
    "cut zip": (PTH[:-3], "cut off|must"),
    "half zip": (PTH[: len(PTH) // 2], "cut off"),
    "another zip": (_zip(readme=b"hello"), "must"),
    "code": (pickle.dumps(print), "tensors only"),
    "cut legacy": (_saved(TENSORS, _use_new_zipfile_serialization=False)[:-100], "must"),
    "no tensors": (_saved({"epoch": 3}), "tensors by name"),
    "no entries": (_saved({}), "tensors by name"),
    "empty tensors": (safetensors.torch.save({"a": torch.zeros(0)}), "empty"),
    "no safetensors": (struct.pack("<Q", 2) + b"{}", "must hold tensors by name"),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMATCHER_WEIGHTS_DIR", str(tmp_path / "weights"))


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["weights", *map(str, arguments)])


def _file(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize("arguments", [(), ("--as", "my_sam"), ("--as", "sam_vit_b"), ("--as", "resnet18")])
def test_what_holds_no_weights_is_refused_under_any_name(tmp_path: Path, kind: str, arguments: tuple[str, ...]) -> None:
    content, reason = NO_WEIGHTS[kind]
    for name in ("x.safetensors", "sam_vit_b_01ec64.pth"):
        done = _run("import", _file(tmp_path, name, content), *arguments)
        assert done.exit_code == 2, done.output
        assert done.output.startswith("error: ")
        assert not (tmp_path / "weights").exists(), "nothing is recorded"
    assert reason_not_weights(tmp_path / "x.safetensors") is not None
    with pytest.raises(BadInputError, match=reason):
        WeightsStore(tmp_path / "weights").add(tmp_path / "x.safetensors", name="my_sam", source="here")


@pytest.mark.parametrize(
    "content",
    [SAFETENSORS, PTH, _saved(TENSORS, _use_new_zipfile_serialization=False), _saved({"model": TENSORS, "epoch": 3})],
)
def test_weights_of_each_format_come_in(tmp_path: Path, content: bytes) -> None:
    done = _run("import", _file(tmp_path, "x.bin", content), "--as", "resnet18")
    assert done.exit_code == 0, done.output
    assert "resnet18: ok, by the sha256 recorded at import" in _run("verify").output


def test_weights_that_begin_like_a_web_page_are_weights(tmp_path: Path) -> None:
    """Safetensors begin with the length of their header: of 0x3c20 bytes it reads ` <`."""
    for padding in range(15_000, 15_800):
        content = safetensors.torch.save({"a": torch.ones(2)}, {"note": "x" * padding})
        if content[:2] == b" <":
            break
    assert content[:2] == b" <"
    assert reason_not_weights(_file(tmp_path, "x.bin", content)) is None


def test_telling_tensors_without_sizes_are_of_no_layout(tmp_path: Path) -> None:
    for name in ("image_encoder.pos_embed", "image_encoder.trunk.patch_embed.proj.weight", "cls_token"):
        state = {name: torch.tensor(1.0), "patch_embed.proj.weight": torch.zeros(1, 3, 14, 14)}
        assert known_layout(_file(tmp_path, "x.bin", _saved(state))) is None


@pytest.mark.parametrize("checked", ["recorded", "catalogue"])
def test_verify_does_not_pass_what_an_earlier_release_took_in(tmp_path: Path, checked: str) -> None:
    _run("import", _file(tmp_path, "x.bin", SAFETENSORS), "--as", "resnet18")
    store = WeightsStore(tmp_path / "weights")
    note = tmp_path / "weights" / "models" / "resnet18.json"
    digest = hashlib.sha256(POINTER).hexdigest()
    (tmp_path / "weights" / "sha256" / digest).write_bytes(POINTER)
    before = json.loads(note.read_text())
    del before["layout"]  # which earlier releases did not note
    note.write_text(json.dumps({**before, "sha256": digest, "size_bytes": len(POINTER), "checked": checked}))
    assert store.find("resnet18") is not None
    done = _run("verify")
    assert done.exit_code == 1
    assert "resnet18: holds no weights, it is a pointer of Git LFS" in done.output.replace("\n", " ")


@pytest.mark.slow
def test_a_fine_tuned_checkpoint_goes_by_its_own_name(tmp_path: Path) -> None:
    """Also under the file name of the official one, as training scripts leave it; and it can be used."""
    sam = build_sam("mobile_sam", None, seed=3)
    path = tmp_path / "mobile_sam.pt"
    torch.save({"model": sam.state_dict()}, path)
    for arguments in ((), ("--as", "mobile_sam")):
        refused = _run("import", path, *arguments)
        assert refused.exit_code == 2
        assert "a name of its own" in refused.output.replace("\n", " ")
    done = _run("import", path, "--as", "coins_sam")
    assert done.exit_code == 0, done.output
    assert "SOFTMATCHER_SEGMENTER=coins_sam" in done.output
    (stored,) = WeightsStore(tmp_path / "weights").all()
    assert (stored.name, stored.layout, stored.checked) == ("coins_sam", "mobile_sam", "recorded")
    encoder = tmp_path / "encoder.pth"
    torch.save(timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict(), encoder)
    assert "SOFTMATCHER_ENCODER=coins_dino" in _run("import", encoder, "--as", "coins_dino").output
    source = ModelSource(tmp_path / "weights", encoder="coins_dino", segmenter="coins_sam")
    _, segmenter = load_profile("mobile", source)
    assert segmenter.signature.startswith("coins_sam:")


def _sizes(name: str) -> dict[str, torch.Tensor]:
    """Tensors of the official names and sizes in a file of a few kilobytes: one number each, stretched."""
    if name == "mobile_sam":
        return _stretched(build_sam(name, None).state_dict())
    with torch.device("meta"):
        if name.startswith("sam"):
            return _stretched(getattr(segment_anything, f"build_{name}")().state_dict())
        return _stretched(timm.create_model(name, num_classes=0).state_dict())


def _stretched(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h", "vit_small_patch14_dinov2", "vit_large_patch14_reg4_dinov2"],
)
def test_layouts_are_told_by_all_their_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pth"
    sizes = _sizes(name)
    torch.save({"state_dict": sizes}, path)
    assert known_layout(path) == name
    last = next(reversed(sizes))
    for other in ({}, {last: torch.zeros(3, 5)}):
        torch.save({**{key: tensor for key, tensor in sizes.items() if key != last}, **other}, path)
        assert known_layout(path) is None


@st.composite
def changed_weights(draw: st.DrawFn) -> bytes:
    """A weights file with some bytes changed, cut out or put in, most of them in its head or its end."""
    content = bytearray(draw(st.sampled_from([SAFETENSORS, PTH, LEGACY])))
    for _ in range(draw(st.integers(1, 4))):
        near = min(len(content), 400)
        place = draw(
            st.integers(0, near) | st.integers(len(content) - near, len(content)) | st.integers(0, len(content))
        )
        what = draw(st.sampled_from(["cut", "change", "change", "insert", "remove"]))
        if what == "cut":
            del content[place:]
        elif what == "remove":
            del content[place : place + draw(st.integers(1, 8))]
        elif what == "insert":
            content[place:place] = draw(st.binary(max_size=8))
        elif place < len(content):
            content[place] = draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.slow
@settings(**fuzzing.FILES)
@given(changed_weights() | st.binary(max_size=200))
def test_files_with_other_bytes_are_weights_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, fuzzing.no_hang(), fuzzing.bounded_memory():
        path = Path(folder) / "x.pth"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about what it reads
            reason = reason_not_weights(path)
            if reason is None:
                assert known_layout(path) is None
                assert read_state_dict(path)
            else:
                assert "\n" not in reason
