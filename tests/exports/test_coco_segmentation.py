"""Run lengths and polygons as masks: as pycocotools reads them, and nothing else is decoded."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backend.errors import BadInputError
from backend.exports.coco_segmentation import segmentation_to_mask
from tests.exports.scene import box
from tests.fuzzing import FILES

SIZE = (48, 64)
SQUARE = [4, 4, 20, 4, 20, 12, 4, 12]
quick = settings(**FILES)


def _compressed(mask: NDArray[Any]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def _counts(mask: NDArray[Any]) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.concatenate([np.flatnonzero(flat[1:] != flat[:-1]), [flat.size - 1]])
    return [int(each) for each in np.diff(ends, prepend=0)]


@pytest.mark.slow
@quick
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_run_lengths_come_back_as_they_were(mask: NDArray[Any]) -> None:
    size_hw = (mask.shape[0], mask.shape[1])
    assert np.array_equal(segmentation_to_mask(_compressed(mask), size_hw), mask)
    counts = {"size": list(size_hw), "counts": _counts(mask)}
    assert np.array_equal(segmentation_to_mask(counts, size_hw), mask)


@pytest.mark.slow
@quick
@given(
    st.lists(st.lists(st.floats(-64, 128), min_size=3, max_size=12).map(lambda xs: [*xs, *xs]), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_polygons_are_drawn_as_pycocotools_does_in_any_order(polygons: list[list[float]], random: Any) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE))) > 0
    random.shuffle(polygons)
    assert np.array_equal(segmentation_to_mask(polygons, SIZE), expected)


@pytest.mark.parametrize("short", [[1, 1, 9, 9], [1, 1], [], [1, 1, 9, 9, 9]])
def test_a_polygon_too_short_is_refused_wherever_it_stands(short: list[int]) -> None:
    for polygons in ([short, SQUARE], [SQUARE, short]):
        with pytest.raises(BadInputError, match=r"polygon \d must be a list x, y, x, y"):
            segmentation_to_mask(polygons, SIZE)


PIXELS = SIZE[0] * SIZE[1]
WRONG_COUNTS: list[Any] = [
    None, 7, {}, [], [1], [PIXELS - 1], [PIXELS + 1], [PIXELS, 1], [10**9], [2**32, PIXELS], [-1, PIXELS + 1],
    [PIXELS + 5, -5], [math.nan, PIXELS], [float(PIXELS)], [True] * PIXELS, ["3072"], [10**400], [2**63, 2**63],
    "", "0", "PP", "o" * 50, "\x7f", "\u00e9", "\ud800", "p0", "0" * 100_000, "P" * 20 + "0", "oooooo7", "@@@",
]  # fmt: skip
WRONG: list[Any] = [
    None, [], {}, 7, "0", [[]], [7], [None], [{"x": 1}], [[[1, 1], [2, 2], [3, 3]]], [SQUARE, None],
    *([[*SQUARE[:-1], wrong]] for wrong in (
        math.nan, math.inf, -math.inf, 1e18, -1e18, 1e400, 10**400, -(10**30), True, None, "12", [1],
    )),
    {"counts": [PIXELS]},
    *({"size": size, "counts": [PIXELS]} for size in (
        None, [64, 48], [48], [48, 64, 1], [48.0, 64.0], "48", [10**9, 10**9], [True, 64],
    )),
    *({"size": list(SIZE), "counts": counts} for counts in WRONG_COUNTS),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_no_mask_of_this_image_is_refused_before_it_is_decoded(number: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError) as refused:
            segmentation_to_mask(WRONG[number], SIZE)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 300


def test_a_polygon_that_runs_to_and_fro_is_refused_before_it_is_drawn() -> None:
    size_hw = (4000, 4000)
    with pytest.raises(BadInputError, match="must be at most 1048576 px long"):
        segmentation_to_mask([[0, 0, 4000, 4000] * 1000], size_hw)


_pieces = st.one_of(
    st.integers(-5, PIXELS + 5), st.sampled_from([2**31, 2**32, 2**63, -1, 10**30]), st.floats(), st.none(),
    st.text(max_size=3), st.booleans(),
)  # fmt: skip
_anything = st.one_of(
    st.lists(st.lists(_pieces, max_size=9), max_size=4),
    st.fixed_dictionaries({
        "size": st.just(list(SIZE)) | st.lists(_pieces, max_size=3),
        "counts": st.lists(_pieces, max_size=6) | st.text(st.characters(min_codepoint=40, max_codepoint=120)),
    }),
    _pieces,
)  # fmt: skip


@pytest.mark.slow
@quick
@given(_anything)
def test_any_segmentation_is_a_mask_or_refused(segmentation: Any) -> None:
    try:
        mask = segmentation_to_mask(segmentation, SIZE)
    except BadInputError:
        return
    assert mask.shape == SIZE
    assert mask.dtype == np.bool_


@pytest.mark.slow
@quick
@given(st.integers(0, 10**6), st.integers(0, 126), st.booleans())
def test_compressed_run_lengths_with_a_changed_character_are_a_mask_or_refused(
    place: int, character: int, is_cut: bool
) -> None:
    code = _compressed(box(5, 7, 40, 33) ^ box(9, 3, 12, 47))
    text, place = code["counts"], place % len(code["counts"])
    code["counts"] = text[:place] + ("" if is_cut else chr(character) + text[place + 1 :])
    try:
        assert segmentation_to_mask(code, SIZE).shape == SIZE
    except BadInputError:
        return
