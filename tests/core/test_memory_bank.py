"""A bounded bank answers as all the references would."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.core.arrays import unit as unit_length
from backend.core.cancellation import CancelledWorkError, cancellable
from backend.core.matching import gather_references, match_posterior
from backend.core.memory_bank import build_bank, read_bank
from backend.core.patches import Indices, PatchesDrawnBefore, PatchesInMemory, PatchRows
from backend.core.types import Reference
from backend.errors import BadInputError

DIMS, SIGNATURE = 32, "unit-vectors"


def _reference(seed: int, patches: int = 300) -> Reference:
    draw = np.random.default_rng(seed)
    directions = unit_length(np.random.default_rng(0).standard_normal((6, DIMS), np.float32))
    kind = draw.integers(6, size=patches)
    features = unit_length(directions[kind] + 0.15 * draw.standard_normal((patches, DIMS), np.float32))
    inside = (kind < 2).astype(np.float32) * draw.random(patches, np.float32).clip(min=0.2)
    known = np.where((inside == 0) & (draw.random(patches, np.float32) < 0.1), 0.0, 1.0)
    arrays = [one.astype(np.float16) for one in (features, inside, known)]
    return Reference(arrays[0], arrays[1], arrays[2], SIGNATURE)


REFERENCES = [_reference(seed) for seed in range(1, 21)]
TARGET = _reference(99).features.astype(np.float32)


def _posterior(bank: object) -> NDArray[np.float32]:
    return np.asarray(match_posterior(bank, TARGET, temperature=0.1).posterior)  # type: ignore[arg-type]


def test_bank_is_bounded_and_close_to_all_patches() -> None:
    full, bank = gather_references(REFERENCES, SIGNATURE), build_bank(REFERENCES, SIGNATURE, most_patches=600)
    assert len(bank.features) == 600
    assert float(np.abs(_posterior(bank) - _posterior(full)).mean()) < 0.02
    assert float(bank.foreground.sum()) == pytest.approx(float(full.foreground.sum()), rel=0.1)
    assert float(bank.background.sum()) == pytest.approx(float(full.background.sum()), rel=0.1)


def test_order_of_references_changes_nothing_at_all() -> None:
    one, other = (build_bank(order, SIGNATURE, most_patches=500) for order in (REFERENCES, REFERENCES[::-1]))
    for name in ("features", "foreground", "background"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_few_references_are_kept_as_they_are() -> None:
    bank = build_bank(REFERENCES[:2], SIGNATURE, most_patches=600)
    assert len(bank.features) == 600
    assert np.allclose(_posterior(bank), _posterior(gather_references(REFERENCES[:2], SIGNATURE)), atol=1e-5)


def test_both_sides_keep_half_and_what_is_free_passes_on() -> None:
    bank = build_bank(REFERENCES, SIGNATURE, most_patches=400)
    assert int((bank.foreground > 0).sum()) == 200
    small = [
        replace(one, foreground_coverage=np.where(np.arange(300) == 7, one.foreground_coverage, 0).astype(np.float16))
        for one in REFERENCES
    ]
    touched = sum(int((one.foreground_coverage * one.ignore_weight > 0).sum()) for one in small)
    bank = build_bank(small, SIGNATURE, most_patches=400)
    assert int((bank.foreground > 0).sum()) == touched
    assert len(bank.features) == 400


def test_object_smaller_than_a_patch_is_not_lost() -> None:
    inside = np.zeros(300, np.float16)
    inside[123] = 0.05
    bank = build_bank(
        [replace(one, foreground_coverage=inside, ignore_weight=np.ones(300, np.float16)) for one in REFERENCES],
        SIGNATURE,
        most_patches=100,
    )
    assert float(bank.foreground.sum()) == pytest.approx(20 * 0.05, rel=1e-2)


def test_unknown_patches_are_not_kept() -> None:
    bank = build_bank(REFERENCES, SIGNATURE, most_patches=500)
    assert bool((bank.foreground + bank.background > 0).all())


def test_without_background_there_is_none() -> None:
    everything = [
        replace(one, foreground_coverage=np.ones(300, np.float16), ignore_weight=np.ones(300, np.float16))
        for one in REFERENCES
    ]
    bank = build_bank(everything, SIGNATURE, most_patches=100)
    assert len(bank.features) == 100
    assert float(bank.background.sum()) == 0
    assert bool((_posterior(bank) > 0.999).all())


def test_a_bank_of_one_patch_is_refused() -> None:
    with pytest.raises(BadInputError, match="most_patches must be at least 2"):
        build_bank(REFERENCES, SIGNATURE, most_patches=1)


def test_two_hundred_references_are_as_many_patches_to_match_as_ten() -> None:
    many = [_reference(seed) for seed in range(200)]
    ten, all_of_them = (build_bank(many[:count], SIGNATURE, most_patches=1000) for count in (10, 200))
    assert len(ten.features) == len(all_of_them.features) == 1000
    assert len(ten.objects) == 10
    assert len(all_of_them.objects) == 200


def test_every_reference_that_marks_something_has_its_object_in_the_bank() -> None:
    marked, faint, negative = REFERENCES[:3]
    faint, negative = (
        replace(one, foreground_coverage=np.zeros_like(one.foreground_coverage)) for one in (faint, negative)
    )
    faint.foreground_coverage[0] = 2e-4
    for bank in (
        gather_references([marked, faint, negative], SIGNATURE),
        build_bank([marked, faint, negative], SIGNATURE, most_patches=100),
    ):
        assert len(bank.objects) == 2
        assert np.isfinite(bank.objects).all()


class CountedPatches(PatchesInMemory):
    """Counts the patches that are read."""

    count = 0

    def read(self, owners: Indices, rows: Indices) -> PatchRows:
        self.count += len(rows)
        return super().read(owners, rows)


def test_one_more_reference_is_read_alone_and_the_bank_is_that_of_all() -> None:
    first = PatchesDrawnBefore(PatchesInMemory(REFERENCES[:-1]), None)
    read_bank(first, SIGNATURE, most_patches=600)
    read = CountedPatches(REFERENCES)
    second = PatchesDrawnBefore(read, first.drawn)
    found = read_bank(second, SIGNATURE, most_patches=600)
    expected = build_bank(REFERENCES, SIGNATURE, most_patches=600)
    for name in ("features", "foreground", "background", "objects"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    # A twentieth of the bank is the new reference's.
    assert 20 <= read.count <= 40


def test_references_that_were_taken_out_are_not_found_again() -> None:
    first = PatchesDrawnBefore(PatchesInMemory(REFERENCES[:10]), None)
    read_bank(first, SIGNATURE, most_patches=600)
    others = REFERENCES[5:15]
    found = read_bank(PatchesDrawnBefore(PatchesInMemory(others), first.drawn), SIGNATURE, most_patches=600)
    expected = build_bank(others, SIGNATURE, most_patches=600)
    assert np.array_equal(found.features, expected.features)
    assert np.array_equal(found.foreground, expected.foreground)


def test_the_same_references_again_are_not_read() -> None:
    first = PatchesDrawnBefore(PatchesInMemory(REFERENCES), None)
    bank = read_bank(first, SIGNATURE, most_patches=600)
    assert first.drawn is not None
    assert bank.features is first.drawn.patches.features
    read = CountedPatches(REFERENCES[::-1])
    read_bank(PatchesDrawnBefore(read, first.drawn), SIGNATURE, most_patches=600)
    assert read.count == 0


def test_drawn_patches_lie_evenly_over_references_and_rows() -> None:
    numbered = []
    for number in range(20):
        features = np.full((300, DIMS), number, np.float16)
        features[:, 1] = np.arange(300)
        inside = np.arange(300) < 100
        numbered.append(Reference(features, inside.astype(np.float16), np.ones(300, np.float16), SIGNATURE))
    bank = build_bank(numbered, SIGNATURE, most_patches=400)
    for is_inside, length in ((bank.foreground > 0, 100), (bank.background > 0, 200)):
        drawn = bank.features[is_inside]
        for number in range(20):
            rows = np.sort(drawn[drawn[:, 0] == number, 1])
            assert 8 <= len(rows) <= 12
            assert np.diff(rows).max() <= 3 * length / len(rows)


def test_without_one_reference_the_bank_is_that_of_the_others() -> None:
    draw = np.random.default_rng(7)
    thin = [replace(one, fine=_reference(100 + seed)) for seed, one in enumerate(REFERENCES[:6]) if draw.random() < 0.7]
    references = [*thin, *REFERENCES[6:9]]
    source = PatchesInMemory(references)
    for number in (0, len(thin), len(references) - 1):
        left, others = source.without(number), PatchesInMemory([*references[:number], *references[number + 1 :]])
        for known, anew in ((left, others), (left.fine(), others.fine())):
            assert known is not None
            assert anew is not None
            one, other = (read_bank(each, SIGNATURE, most_patches=500) for each in (known, anew))
            for name in ("features", "foreground", "background", "objects"):
                assert np.array_equal(getattr(one, name), getattr(other, name))


def test_summaries_of_many_references_end_when_nobody_waits_for_them_any_more() -> None:
    answers = iter([False, False, True])
    with cancellable(lambda: next(answers)), pytest.raises(CancelledWorkError):
        PatchesInMemory(REFERENCES)
    assert next(answers, None) is None
