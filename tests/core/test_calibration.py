"""What decides whether a mask is returned, and with which score."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.calibration import Calibration, MaskFeatures, log_odds, logistic, mask_features
from backend.errors import ConfigurationError
from backend.models.calibrations import read_calibration

LITE = read_calibration("lite.json")
SHARES = st.floats(0, 1)
COSINES = st.floats(-1, 1)
FEATURES = st.builds(MaskFeatures, COSINES, COSINES, SHARES, SHARES, SHARES, SHARES, st.floats(0.001, 1))


def test_weights_of_lite_are_those_fitted() -> None:
    assert LITE.expected_iou_weights == {
        "constant": -2.7, "foreground_posterior": 0.32, "soft_iou": 0.45, "agreement": 3.9,
    }  # fmt: skip
    assert LITE.presence_weights == {
        "constant": -4.6, "object_similarity": 13.4, "intra_reference_similarity": -4.5, "foreground_posterior": 0.23,
        "agreement": 3.15,
    }  # fmt: skip


@pytest.mark.slow
@given(FEATURES)
def test_score_and_presence_are_probabilities(features: MaskFeatures) -> None:
    assert 0 <= LITE.expected_iou(features) <= 1
    assert 0 <= LITE.presence_probability(features) <= 1


@given(FEATURES, st.sampled_from(["foreground_posterior", "soft_iou", "agreement"]), SHARES)
def test_expected_iou_grows_with_what_supports_the_mask(features: MaskFeatures, name: str, other: float) -> None:
    low, high = sorted([other, getattr(features, name)])
    assert LITE.expected_iou(replace(features, **{name: low})) <= LITE.expected_iou(replace(features, **{name: high}))


@pytest.mark.slow
@given(FEATURES, st.sampled_from(["object_similarity", "foreground_posterior", "agreement"]), SHARES)
def test_presence_grows_with_what_supports_the_object(features: MaskFeatures, name: str, other: float) -> None:
    low, high = sorted([other, getattr(features, name)])
    chances = [LITE.presence_probability(replace(features, **{name: value})) for value in (low, high)]
    assert chances[0] <= chances[1]


@given(FEATURES)
def test_similar_references_ask_for_a_similar_object(features: MaskFeatures) -> None:
    stricter = replace(features, intra_reference_similarity=1.0)
    assert LITE.presence_probability(stricter) <= LITE.presence_probability(features)


def test_an_empty_mask_has_score_and_presence_zero() -> None:
    empty = mask_features(
        np.zeros((4, 4), bool), np.ones((4, 4), np.float32), np.ones((4, 4), np.float32),
        object_similarity=1.0, intra_reference_similarity=0.5,
    )  # fmt: skip
    assert empty.area == 0
    assert LITE.expected_iou(empty) == LITE.presence_probability(empty) == 0.0


def test_features_of_a_mask_are_counted_by_hand() -> None:
    mask = np.array([[True, True], [False, False]])
    posterior = np.array([[0.8, 0.6], [0.2, 0.0]], np.float32)
    prior = np.array([[0.9, 0.1], [0.6, 0.1]], np.float32)
    found = mask_features(mask, posterior, prior, object_similarity=0.3, intra_reference_similarity=0.4)
    assert found.foreground_posterior == pytest.approx(0.7)
    assert found.background_posterior == pytest.approx(0.1)
    assert found.soft_iou == pytest.approx(1.4 / 2.2)
    assert found.agreement == pytest.approx(1 / 3)
    assert (found.area, found.object_similarity, found.intra_reference_similarity) == (0.5, 0.3, 0.4)


@given(st.floats(0.001, 0.999))
def test_logistic_is_the_inverse_of_log_odds(probability: float) -> None:
    assert logistic(log_odds(probability)) == pytest.approx(probability)


def test_logistic_never_overflows() -> None:
    assert (logistic(-1e6), logistic(1e6)) == (0.0, 1.0)


def test_calibration_survives_its_file() -> None:
    again = Calibration.from_json(LITE.to_json(), name="again")
    assert again == LITE
    assert again.digest() == LITE.digest()


@pytest.mark.parametrize("part", ["expected_iou", "presence"])
def test_digest_changes_with_every_coefficient(part: str) -> None:
    content = json.loads(LITE.to_json())
    for name in content[part]:
        other = {**content, part: {**content[part], name: content[part][name] + 0.01}}
        assert Calibration.from_json(json.dumps(other), name="other").digest() != LITE.digest()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, '"format": 1'),
        ({"presence": None}, '"presence" must have finite numbers'),
        ({"presence": {"constant": 1.0}}, "must have finite numbers for constant, object_similarity"),
        ({"expected_iou": {**LITE.expected_iou_weights, "agreement": float("nan")}}, '"expected_iou" must have finite'),
        ({"expected_iou": {**LITE.expected_iou_weights, "agreement": "3"}}, '"expected_iou" must have finite'),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**json.loads(LITE.to_json()), **change}))
    with pytest.raises(ConfigurationError, match=reason):
        read_calibration("lite.json", path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.json cannot be read .*SOFTMATCHER_CALIBRATION"):
        read_calibration("lite.json", tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_calibration("lite.json", tmp_path / "binary.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ConfigurationError, match="must be JSON"):
        read_calibration("lite.json", tmp_path / "text.json")


def test_every_feature_but_two_is_used_by_the_fits() -> None:
    used = {*LITE.expected_iou_weights, *LITE.presence_weights}
    assert {one.name for one in fields(MaskFeatures)} - used == {"background_posterior", "area"}
