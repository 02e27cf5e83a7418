"""Data sets found, episodes drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.errors import BadInputError
from backend.evaluation.absent_targets import MAY_SHOW, THINGS, may_show
from backend.evaluation.datasets import (
    ImageClass,
    draw_absent_target,
    draw_episode,
    find_classes,
    read_image,
    read_mask,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for folder, count in (("a/cat", 6), ("a/dog", 3), ("b/cat", 2), ("b/single", 1)):
        (tmp_path / folder).mkdir(parents=True)
        for n in range(count):
            Image.new("RGB", (8, 6), (n, 0, 0)).save(tmp_path / folder / f"{n}.jpg")
            Image.fromarray(np.eye(6, 8, dtype=np.uint8) * 255).save(tmp_path / folder / f"{n}.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "a" / "cat" / "without_mask.jpg")
    return tmp_path


def test_classes_are_found_with_the_images_that_have_masks(directory: Path) -> None:
    classes = find_classes(directory)
    assert [(one.name, len(one.images)) for one in classes] == [("a/cat", 6), ("a/dog", 3), ("b/cat", 2)]
    assert read_image(classes[0].images[0]).shape == (6, 8, 3)
    assert read_mask(classes[0].images[0]).sum() == 6


def test_a_folder_without_classes_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="a data set must hold"):
        find_classes(tmp_path)


def test_references_are_never_targets_and_the_seed_decides(directory: Path) -> None:
    cats = find_classes(directory)[0]
    for seed in range(5):
        episode = draw_episode(cats, shots=2, seed=seed)
        assert len(set(episode.references)) == 2
        assert sorted(episode.references + episode.targets) == sorted(cats.images)
        assert draw_episode(cats, shots=2, seed=seed) == episode
    assert len({draw_episode(cats, shots=1, seed=seed).references for seed in range(9)}) > 2


def test_one_target_is_always_left_and_the_limit_holds(directory: Path) -> None:
    cats, dogs, _ = find_classes(directory)
    assert len(draw_episode(dogs, shots=5, seed=0).targets) == 1
    assert len(draw_episode(cats, shots=1, seed=0, limit=2).targets) == 2
    with pytest.raises(BadInputError, match="at least 1"):
        draw_episode(cats, shots=0, seed=0)


def test_absent_targets_come_from_another_set_and_class(directory: Path) -> None:
    cats, dogs, other_cats = classes = find_classes(directory)
    assert draw_absent_target(cats, classes, seed=0) is None
    assert draw_absent_target(dogs, classes, seed=0) in other_cats.images
    assert draw_absent_target(other_cats, classes, seed=0) in dogs.images


@pytest.mark.slow
def test_a_street_is_no_absent_target_of_a_car_and_each_class_keeps_some() -> None:
    classes = [
        ImageClass(set_name, name, (Path(set_name) / name / "0.jpg", Path(set_name) / name / "1.jpg"))
        for set_name in MAY_SHOW
        for name in sorted(frozenset().union(*THINGS.values()))
    ]
    for one in classes:
        drawn = {draw_absent_target(one, classes, seed=seed) for seed in range(40)}
        assert None not in drawn, one.name
        assert not any(may_show(path.parts[0], one.class_name) for path in drawn if path is not None)
    assert may_show("camvid", "car")
    assert not may_show("nuclei", "car")


def test_sets_that_nobody_checked_are_strangers_to_each_other() -> None:
    assert not may_show("own", "car")
    assert not may_show("camvid", "gearwheel")
