"""Brush RLE: identical to the SDK's, and safe against what is not RLE."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from label_studio_sdk.converter import brush as sdk
from numpy.typing import NDArray

from backend.core.types import BoxedMask, Mask
from backend.errors import BadInputError
from backend.labelstudio.rle import decode_mask, encode_mask, rle_pixels

masks = st_np.arrays(np.bool_, st_np.array_shapes(min_dims=2, max_dims=2, max_side=40))


def disc(height: int, width: int, radius: float) -> Mask:
    y, x = np.ogrid[:height, :width]
    return np.asarray((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2)


@pytest.mark.slow
@given(masks)
def test_decoding_gives_back_what_was_encoded(mask: Mask) -> None:
    rle = encode_mask(mask)

    assert np.array_equal(decode_mask(rle, (mask.shape[0], mask.shape[1])), mask)
    assert rle_pixels(rle) == mask.size


@pytest.mark.slow
@given(masks)
def test_encoding_gives_the_bytes_of_the_sdk(mask: Mask) -> None:
    assert encode_mask(mask) == sdk.mask2rle(mask.astype(np.uint8) * 255)


@pytest.mark.slow
@given(masks, st.tuples(*[st.integers(0, 3)] * 4))
def test_a_mask_in_its_box_gives_the_bytes_of_the_whole_mask(crop: Mask, around: tuple[int, int, int, int]) -> None:
    (height, width), (top, bottom, left, right) = crop.shape, around
    boxed = BoxedMask((height + top + bottom, width + left + right), top, left, crop)
    assert encode_mask(boxed) == encode_mask(boxed.to_mask())


@pytest.mark.parametrize("shape", [(1, 1), (480, 640), (479, 641), (517, 333), (1, 16385), (128, 512), (3, 21846)])
def test_long_runs_are_cut_where_the_sdk_cuts_them(shape: tuple[int, int]) -> None:
    for mask in (np.zeros(shape, np.bool_), np.ones(shape, np.bool_), disc(*shape, radius=min(shape) / 3)):
        rle = encode_mask(mask)

        assert rle == sdk.mask2rle(mask.astype(np.uint8) * 255)
        assert np.array_equal(decode_mask(rle, shape), mask)


def test_runs_are_encoded_alike_across_the_chunks_of_encoding() -> None:
    mask = np.random.default_rng(0).random((40, 50)) < 0.4
    whole = encode_mask(mask)

    for runs_at_once in (1, 2, 7):
        assert encode_mask(mask, runs_at_once=runs_at_once) == whole


@pytest.mark.slow
@given(
    st_np.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(4))),
    st.lists(st.integers(1, 16), min_size=4, max_size=4).map(sorted),
)
def test_any_rgba_of_the_format_is_read_by_its_alpha(rgba: NDArray[Any], run_bits: list[int]) -> None:
    """Runs that begin within a pixel, single words, other run sizes: what another encoder may write."""
    rle = pack(rgba.reshape(-1), run_bits)

    assert np.array_equal(sdk.decode_rle(rle), rgba.reshape(-1))
    alpha = rgba[:, :, 3]
    assert np.array_equal(decode_mask(rle, (rgba.shape[0], rgba.shape[1])), alpha > alpha.max() // 2)


@pytest.mark.parametrize("largest", [1, 2, 100, 127, 128, 255])
def test_a_mask_is_read_whatever_alpha_its_painted_pixels_have(largest: int) -> None:
    """Palette colours with alpha 100, masks of 0 and 1: the editor shows them, the SDK reads them."""
    mask = disc(40, 60, 12)
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[mask, 3] = largest
    assert np.array_equal(decode_mask(pack(rgba.reshape(-1), [3, 4, 8, 16]), (40, 60)), mask)


def test_the_soft_outline_of_a_stroke_is_cut_at_half() -> None:
    rgba = np.zeros((1, 5, 4), np.uint8)
    rgba[0, :, 3] = [0, 100, 127, 128, 255]
    assert decode_mask(pack(rgba.reshape(-1), [3, 4, 8, 16]), (1, 5)).tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize("name", ["alpha1", "alpha100"])
def test_a_recorded_region_of_low_alpha_has_all_its_pixels(name: str) -> None:
    case = json.loads((Path(__file__).parents[1] / "cases" / f"{name}.json").read_text())
    (region,) = case["annotation_of_task_0"]
    mask = decode_mask(region["value"]["rle"], (region["original_height"], region["original_width"]))
    assert np.count_nonzero(mask) == case["pixels"]


def test_no_alpha_at_all_is_an_empty_mask() -> None:
    assert not decode_mask(pack(np.zeros(48, np.uint8), [3, 4, 8, 16]), (3, 4)).any()


def pack(words: NDArray[Any], run_bits: list[int]) -> list[int]:
    """A plain rle-pack encoder that takes the longest fitting run and groups of single words."""
    bits = f"{len(words):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in run_bits)
    index = 0
    while index < len(words):
        limit = min(len(words) - index, 1 << run_bits[3])
        run = next((n for n in range(1, limit) if words[index + n] != words[index]), limit)
        if run > 1:
            bits += f"111{run - 1:0{run_bits[3]}b}{words[index]:08b}"
            index += run
        else:
            count = min(3, len(words) - index, 1 << run_bits[0])
            bits += f"000{count - 1:0{run_bits[0]}b}" + "".join(f"{word:08b}" for word in words[index : index + count])
            index += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_alpha_of_127_is_outside_and_of_128_inside() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 127, 128, 255
    rgba[0, 0, :3] = 255

    assert decode_mask(pack(rgba.reshape(-1), [3, 4, 8, 16]), (1, 3)).tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([], "header of 7 bytes"),
        ([0, 0, 1], "header of 7 bytes"),
        ("0,18,192", "list of ints in 0..255, got str"),
        (10**12, "list of ints in 0..255, got int"),
        ({"0": 1}, "list of ints in 0..255, got dict"),
        (None, "list of ints in 0..255, got NoneType"),
        ([0, 18, 192, 256] + [0] * 9, "list of ints in 0..255"),
        ([0, 18, 192, -1] + [0] * 9, "list of ints in 0..255"),
        ([0.5] * 20, "list of ints in 0..255"),
        ([None] * 20, "list of ints in 0..255"),
        (["a"] * 20, "list of ints in 0..255"),
        ([0, 0, 0, 40, 128, 0, 0, 0], "words of 8 bits, got 8 bytes, words of 17 bits"),
    ],
)
def test_what_is_not_rle_is_refused(rle: list[int], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        decode_mask(rle, (2, 5))


def test_rle_of_another_size_is_refused_before_a_mask_is_made() -> None:
    rle = encode_mask(np.ones((480, 640), np.bool_))

    with pytest.raises(BadInputError, match="333 x 517 px must be of 688644 words, got 1228800"):
        decode_mask(rle, (517, 333))


def test_rle_cut_short_anywhere_is_refused() -> None:
    mask = disc(40, 60, 15)
    rle = encode_mask(mask)
    for kept in range(7, len(rle) - 1):
        with pytest.raises(BadInputError, match=r"9600 words, got .* cut short"):
            decode_mask(rle[:kept], (mask.shape[0], mask.shape[1]))


@given(st.lists(st.integers(0, 255), max_size=60))
def test_any_bytes_give_a_mask_or_a_clear_error(tail: list[int]) -> None:
    rle = [0, 0, 0, 160, 57, 27, 248, *tail]
    try:
        mask = decode_mask(rle, (5, 8))
    except BadInputError:
        return
    assert mask.shape == (5, 8)


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 3), np.uint8), np.zeros((0, 3), np.bool_), np.zeros((2, 3, 1), np.bool_)]
)
def test_only_masks_are_encoded(mask: Mask) -> None:
    with pytest.raises(ValueError, match=r"mask must be \(H, W\) bool"):
        encode_mask(mask)


@pytest.mark.slow
def test_a_mask_of_108_megapixels_needs_little_beside_itself() -> None:
    mask = np.zeros((9000, 12000), np.bool_)
    mask[1000:8000:2, 3000:9000] = True
    tracemalloc.start()
    rle = encode_mask(mask)
    decoded = decode_mask(rle, mask.shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert np.array_equal(decoded, mask)
    assert peak < 300e6
