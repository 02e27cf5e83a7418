"""Products that are kept for the next bank: the same bits as computed anew, bounded, forgotten with their image."""

import gc

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core import known_products
from backend.core.arrays import unit
from backend.core.known_products import KnownProducts, rows_are_independent
from backend.core.types import EncodedImage

CHANNELS, PATCHES, TEMPERATURE = 96, 12 * 16, 0.05


def encoded_image(seed: int = 0) -> EncodedImage:
    features = unit(np.random.default_rng(seed).standard_normal((12, 16, CHANNELS), np.float32)).astype(np.float16)
    return EncodedImage((48, 64), features, {}, "test")


def patches_of(encoded: EncodedImage) -> NDArray[np.float32]:
    return encoded.features.reshape(-1, CHANNELS).astype(np.float32)


def bank_of(kept: NDArray[np.float32], new: int, seed: int) -> NDArray[np.float32]:
    """Return a bank of the same size, of which so many rows are new and all are in another order."""
    draw = np.random.default_rng(seed)
    fresh = unit(draw.standard_normal((new, CHANNELS), np.float32))
    rows = np.concatenate([kept[draw.permutation(len(kept))[: len(kept) - new]], fresh])
    return np.ascontiguousarray(rows[draw.permutation(len(rows))])


def multiplied(known: KnownProducts, encoded: EncodedImage, features: NDArray[np.float32]) -> NDArray[np.float32]:
    return known.multiply(encoded, features, patches_of(encoded), TEMPERATURE)


@pytest.mark.parametrize("new", [0, 1, 7, 40, 200, 390, 400])
def test_products_have_the_bits_of_those_computed_anew(new: int) -> None:
    known, encoded = KnownProducts(), encoded_image()
    features = unit(np.random.default_rng(1).standard_normal((400, CHANNELS), np.float32))
    for step in range(4):
        anew = features @ (patches_of(encoded) / TEMPERATURE).T
        np.testing.assert_array_equal(multiplied(known, encoded, features), anew)
        features = bank_of(features, new, step)


@pytest.mark.parametrize("is_independent", [True, False])
def test_only_new_rows_are_multiplied_where_rows_do_not_depend_on_each_other(
    is_independent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_products, "rows_are_independent", lambda *_: is_independent)
    known, encoded = KnownProducts(), encoded_image()
    features = unit(np.random.default_rng(1).standard_normal((400, CHANNELS), np.float32))
    multiplied(known, encoded, features)[:] = 7.0
    sevens = (multiplied(known, encoded, bank_of(features, 50, 2)) == 7.0).all(axis=1)
    assert int(sevens.sum()) == (350 if is_independent else 0)


def test_products_of_another_temperature_do_not_count() -> None:
    known, encoded = KnownProducts(), encoded_image()
    features = unit(np.random.default_rng(1).standard_normal((400, CHANNELS), np.float32))
    multiplied(known, encoded, features)
    other = known.multiply(encoded, features, patches_of(encoded), 0.1)
    np.testing.assert_array_equal(other, features @ (patches_of(encoded) / 0.1).T)


def test_what_is_kept_is_bounded_and_goes_with_its_image() -> None:
    features = unit(np.random.default_rng(1).standard_normal((400, CHANNELS), np.float32))
    known = KnownProducts(most_bytes=3 * 400 * PATCHES * 4)
    images = [encoded_image(seed) for seed in range(5)]
    for image in images:
        multiplied(known, image, features)
    assert len(known) == 3
    del image, images[-1]
    gc.collect()
    assert len(known) == 2
    known.forget()
    assert len(known) == 0


def test_rows_that_depend_on_each_other_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        found = left @ right
        found[len(found) // 4 * 4 :] += np.float32(1e-5)  # what is left over has another kernel
        return found

    monkeypatch.setattr(known_products, "_product", product)
    assert not rows_are_independent.__wrapped__(300, CHANNELS, PATCHES)
