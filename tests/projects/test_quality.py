"""What of a found mask counts where only one of several objects was marked."""

import numpy as np

from backend.projects.quality import _touching


def test_only_what_touches_the_marked_object_counts() -> None:
    marked = np.zeros((20, 40), bool)
    marked[5:15, 5:15] = True
    found = np.zeros_like(marked)
    found[6:16, 5:15] = True
    elsewhere = found.copy()
    elsewhere[5:15, 25:35] = True
    assert np.array_equal(_touching(elsewhere, marked), found)
    assert not _touching(elsewhere & ~found, marked).any()
    assert not _touching(np.zeros_like(marked), marked).any()
