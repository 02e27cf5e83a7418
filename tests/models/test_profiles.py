"""Profiles from files in the official layouts, through the command line, offline."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from typer.testing import CliRunner

from backend.cli import app
from backend.engine.loading import load_softmatcher
from backend.errors import ConfigurationError, ModelUnavailableError
from backend.metrics import Metrics
from backend.models import loading
from backend.models.encoders.efficientnet_lite import EncoderOptions
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.models.loading import ModelSource, load_profile, missing_weights
from backend.models.profiles import PROFILES
from backend.models.sam.options import KEEP_EVERYTHING, SamOptions, SelectionOptions
from backend.models.weights import catalogue
from backend.models.weights.store import WeightsStore
from backend.projects.model_host import Models
from backend.settings import load_settings
from tests.engine.test_softmatcher import scene
from tests.models.official_files import catalogue_of, random_official_files


@pytest.mark.slow
def test_mobile_from_official_layouts_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    paths = random_official_files(mirror)
    run = CliRunner().invoke
    monkeypatch.setenv("SOFTMATCHER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SOFTMATCHER_PROFILE", "mobile")

    refused = run(app, ["weights", "fetch", "mobile", "--mirror", mirror.as_uri()])
    assert refused.exit_code == 2
    assert "dinov2_vits14_pretrain.pth" in refused.stderr  # random weights are not the official ones

    known_files = catalogue_of(paths)
    monkeypatch.setattr(catalogue, "KNOWN_WEIGHTS", known_files)

    settings = load_settings()
    models = Models(settings, Metrics())
    with pytest.raises(ModelUnavailableError, match="run `python -m backend weights fetch mobile`"):
        models.get(60)
    assert "weights fetch mobile" in models.state

    fetched = run(app, ["weights", "fetch", "mobile", "--mirror", mirror.as_uri()])
    assert fetched.exit_code == 0, fetched.output
    assert run(app, ["weights", "import", str(paths["mobile_sam"])]).exit_code == 0
    listed = json.loads(run(app, ["weights", "list", "--json"]).stdout)
    assert {row["model"] for row in listed if row["stored"]} == set(paths)
    verified = run(app, ["weights", "verify"])
    assert verified.exit_code == 0
    assert verified.stdout.count("ok, by the catalogue's sha256") == 2

    softmatcher = load_softmatcher("mobile", source=ModelSource(settings.weights_folder))
    for known in known_files:
        assert (f"{known.name}:{str(known.sha256)[:12]}" in softmatcher.signature) == (known.name in paths)
    _evaluate_with_and_without_positions(tmp_path)
    encoder, _ = load_profile("mobile", ModelSource(settings.weights_folder))
    features = encoder.encode(np.zeros((480, 640, 3), np.uint8))
    assert features.shape == (28, 37, 384)

    blob = WeightsStore(settings.weights_folder).require(["mobile_sam"])[0].path
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.unlink()
    blob.write_bytes(content)
    assert run(app, ["weights", "verify"]).exit_code == 1
    from backend.models.weights.digest import weights_sha256

    weights_sha256.cache_clear()  # as in the next process
    with pytest.raises(ModelUnavailableError, match=r"mobile_sam are damaged.*weights fetch mobile_sam"):
        load_softmatcher("mobile", source=ModelSource(settings.weights_folder))


def _evaluate_with_and_without_positions(tmp_path: Path) -> None:
    """Side by side in one run, with the weights that are stored."""
    folder = tmp_path / "sets" / "one" / "disc"
    folder.mkdir(parents=True)
    for index in range(2):
        image, masks = scene(red=(50 + 40 * index, 80, 30))
        PillowImage.fromarray(image).save(folder / f"{index}.jpg")
        PillowImage.fromarray(masks["red"]).save(folder / f"{index}.png")
    figures = tmp_path / "figures.json"
    arguments = ["--profile", "mobile", "--positional-ranks", "0,4", "--json", str(figures)]
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "sets"), *arguments])
    assert done.exit_code == 0, done.output
    variants = json.loads(figures.read_text())["variants"]
    assert list(variants) == ["posterior prior rank 0", "posterior prior rank 4"]
    signatures = [one["settings"]["signature"] for one in variants.values()]
    assert [":448px:p4:" in signature for signature in signatures] == [False, True]
    assert not list(tmp_path.glob("*.progress.jsonl"))
    refused = CliRunner().invoke(app, ["evaluate", str(tmp_path / "sets"), "--positional-ranks", "-1"])
    assert refused.exit_code == 2
    assert "POSITIONAL_RANK" in refused.output


def test_unknown_profile_and_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="lite, mobile, base, large"):
        load_softmatcher("huge")
    with pytest.raises(ConfigurationError, match="lite has no table of positions"):
        load_softmatcher("lite", source=ModelSource(positional_rank=4))
    with pytest.raises(ConfigurationError, match="lite has its own encoder"):
        load_softmatcher("lite", source=ModelSource(encoder="resnet18"))
    with pytest.raises(ModelUnavailableError, match="weights import PATH --as vit_base_patch16_dinov3"):
        load_softmatcher("base", source=ModelSource(tmp_path, encoder="vit_base_patch16_dinov3"))
    with pytest.raises(ModelUnavailableError, match="weights fetch vit_base_patch14_reg4_dinov2 sam_vit_b"):
        load_softmatcher("base", source=ModelSource(tmp_path, encoder="vit_base_patch14_reg4_dinov2"))
    assert missing_weights("base", tmp_path) == ["vit_base_patch14_dinov2", "sam_vit_b"]
    assert missing_weights("lite", tmp_path) == []


def test_a_profile_with_an_encoder_of_its_own_is_a_row_and_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colours:
        signature, temperature, similarity_floor = "colours", 0.1, 0.0

    row = replace(PROFILES["lite"], name="colours", encoder="colours", temperature=0.2)
    monkeypatch.setitem(PROFILES, "colours", row)
    asked: list[loading.ModelRequest] = []

    def build(request: loading.ModelRequest) -> Any:
        asked.append(request)
        return Colours()

    monkeypatch.setattr(loading, "OWN_ENCODERS", {**loading.OWN_ENCODERS, "colours": build})
    encoder, segmenter = load_profile("colours")
    assert isinstance(encoder, Colours)
    assert isinstance(segmenter, LiteSegmenter)
    assert (asked[0].profile.temperature, asked[0].name) == (0.2, "colours")
    with pytest.raises(ConfigurationError, match="lite, mobile, base, large, text, clip, sam2, colours"):
        load_profile("huge")


@pytest.mark.slow
def test_numbers_of_a_row_reach_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(
        PROFILES["mobile"], encoder="vit_tiny_patch16_224", segmenter="mobile_sam",
        side_px=112, temperature=0.11, similarity_floor=0.12, points=5,
    )  # fmt: skip
    monkeypatch.setitem(PROFILES, "mobile", row)
    encoder, segmenter = load_profile("mobile", ModelSource(tmp_path, is_random=True, sam_path="package"))
    assert (encoder.temperature, encoder.similarity_floor) == (0.11, 0.12)
    assert ":112px:" in encoder.signature
    expected = SamOptions(path="package", most_points=5, selection=KEEP_EVERYTHING).signature()
    assert segmenter.signature == f"mobile_sam:random0:{expected}"
    for name in ("mobile", "base", "large", "sam2"):
        assert PROFILES[name].thresholds == SelectionOptions()
    lite = PROFILES["lite"]
    options = EncoderOptions()
    assert (lite.side_px, lite.temperature, lite.similarity_floor) == (
        options.side_px, options.temperature, options.similarity_floor,
    )  # fmt: skip


def test_nothing_compares_the_name_of_a_profile() -> None:
    """What tells profiles apart is a field of their row."""
    root = Path(__file__).parents[2] / "backend"
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                words = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
                if words & set(PROFILES):
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert found == []


def test_the_table_needs_no_pytorch() -> None:
    """`weights list` starts without it."""
    code = "import sys, backend.models.weights.catalogue, backend.models.profiles; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
