"""Which image to label next: the rules, on pooled whose answer is known."""

import numpy as np
import pytest

from backend.core.task_selection import RULES, PooledFeatures, choose_next, cluster_images, pool_features
from backend.errors import BadInputError


def at(*degrees: float) -> PooledFeatures:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


NONE = np.zeros((0, 2), np.float32)


def test_the_least_certain_comes_first() -> None:
    chosen = choose_next([0.9, 0.1, 0.5], at(0, 1, 2), NONE, 2, rule="uncertain")
    assert [one.index for one in chosen] == [1, 2]
    assert chosen[0].score == 0.1


def test_unlike_images_avoid_the_labeled_and_each_other() -> None:
    chosen = choose_next([0.5] * 4, at(0, 85, 90, 40), at(2), 2, rule="unlike")
    assert [one.index for one in chosen] == [2, 3]
    assert chosen[0].similarity == pytest.approx(np.cos(np.radians(88)), abs=1e-5)


def test_both_prefers_what_is_uncertain_and_unlike() -> None:
    chosen = choose_next([0.3, 0.2, 0.9], at(0, 60, 90), at(1), 1, rule="both")
    assert chosen[0].index == 1


def test_a_typical_image_speaks_for_the_others() -> None:
    chosen = choose_next([0.5] * 4, at(0, 10, 20, 190), NONE, 2, rule="typical")
    assert chosen[0].index == 1
    assert chosen[0].similarity is None
    assert chosen[1].index == 3


@pytest.mark.parametrize("rule", RULES)
def test_every_candidate_is_chosen_once(rule: str) -> None:
    scores = [0.1, 0.9, 0.4]
    chosen = choose_next(scores, at(0, 30, 60), at(10), 9, rule=rule)  # type: ignore[arg-type]
    assert sorted(one.index for one in chosen) == [0, 1, 2]
    assert choose_next([], NONE, NONE, 3) == []


def test_wrong_input_is_refused() -> None:
    with pytest.raises(BadInputError, match="one row of features per score"):
        choose_next([0.1], at(0, 1), NONE, 1)
    with pytest.raises(BadInputError, match="rule must be one of"):
        choose_next([0.1], at(0), NONE, 1, rule="loud")  # type: ignore[arg-type]


def test_pooled_are_of_unit_length() -> None:
    features = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float16)
    found = pool_features(features)
    assert found.shape == (7,)
    assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-5)


def test_clusters_are_of_images_alike() -> None:
    owner = cluster_images(at(0, 2, 4, 90, 92, 179), 3)
    assert len(set(owner)) == 3
    assert owner[0] == owner[1] == owner[2]
    assert owner[3] == owner[4] != owner[5]
    assert np.array_equal(cluster_images(at(0, 1), 5), [0, 1])
