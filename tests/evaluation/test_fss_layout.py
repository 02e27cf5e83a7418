"""FSS-1000's layout: classes without sets, and its own list of test classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from backend.errors import BadInputError
from backend.evaluation.datasets import find_classes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("abacus", "ab_wheel", "zebra"):
        folder = tmp_path / "fewshot_data" / name
        folder.mkdir(parents=True)
        for index in (1, 2):
            PillowImage.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f"{index}.jpg")
            PillowImage.fromarray(np.zeros((4, 4), np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "fewshot_data"


def test_without_a_list_every_class_counts(root: Path) -> None:
    assert [one.name for one in find_classes(root)] == [
        "fewshot_data/ab_wheel", "fewshot_data/abacus", "fewshot_data/zebra",
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["fss_test_set.txt", "../fss_test_set.txt", "../splits/test.txt"])
def test_the_list_chooses(root: Path, place: str) -> None:
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_text("zebra\nfewshot_data/abacus/\n\nnot_here\n")
    assert [one.class_name for one in find_classes(root)] == ["abacus", "zebra"]


def test_the_folder_above_is_as_good(root: Path) -> None:
    (root.parent / "fss_test_set.txt").write_text("zebra\nab_wheel\n")
    assert [one.name for one in find_classes(root.parent)] == ["fewshot_data/ab_wheel", "fewshot_data/zebra"]


@pytest.mark.slow
def test_the_whole_data_set_has_its_240_test_classes(tmp_path: Path) -> None:
    names = [f"class_{index:03d}" for index in range(1000)]
    for name in names:
        folder = tmp_path / "fewshot_data" / name
        folder.mkdir(parents=True)
        for index in range(1, 11):
            (folder / f"{index}.jpg").touch()
            (folder / f"{index}.png").touch()
    (tmp_path / "fss_test_set.txt").write_text("\n".join(names[3::4][:240]) + "\n")
    found = find_classes(tmp_path)
    assert len(found) == 240
    assert {len(one.images) for one in found} == {10}


def test_a_list_of_other_classes_is_refused(root: Path) -> None:
    (root / "test.txt").write_text("lion\n")
    with pytest.raises(BadInputError, match=r"test.txt must name folders"):
        find_classes(root)
