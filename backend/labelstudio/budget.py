"""Bounds of what one annotation, draft or context may cost to read."""

import time
from collections.abc import Callable

from backend.errors import BadInputError

MOST_REGIONS = 20_000
MOST_PROMPTS = 2_000
"""Key points and boxes: each box is a cut of 40 ms on a processor."""
MOST_POINTS = 200_000
"""Points of strokes (`touches`): an hour of painting has some thousands."""
MOST_STROKE_PIXELS = 1 << 32
"""Pixels looked at while strokes are drawn, each as often as a piece of a stroke is near it: about a minute."""
MOST_RLE_BYTES = 128 << 20
MOST_SECONDS = 60.0


class ReadingBudget:
    """Count what reading costs, and refuse what is beyond the bounds above. One for each annotation.

    Args:
        seconds: from now until reading is refused.
        clock: monotonic seconds.
    """

    def __init__(self, *, seconds: float = MOST_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._deadline = clock() + seconds
        self._spent = {
            "regions": 0,
            "key points and boxes": 0,
            "points of strokes": 0,
            "pixels near strokes": 0,
            "bytes of masks": 0,
        }

    def spend(
        self, *, regions: int = 0, prompts: int = 0, points: int = 0, stroke_pixels: int = 0, rle_bytes: int = 0
    ) -> None:
        """Take the cost of the next step, before it is done.

        Raises:
            BadInputError: it is beyond the budget, or the time is over.
        """
        for name, cost, most in (
            ("regions", regions, MOST_REGIONS),
            ("key points and boxes", prompts, MOST_PROMPTS),
            ("points of strokes", points, MOST_POINTS),
            ("pixels near strokes", stroke_pixels, MOST_STROKE_PIXELS),
            ("bytes of masks", rle_bytes, MOST_RLE_BYTES),
        ):
            if cost and self._spent[name] + cost > most:
                raise BadInputError(
                    f"an annotation may have up to {most} {name}, got {self._spent[name] + cost}: this region was left "
                    "out; delete regions, or draw with fewer and thinner strokes"
                )
            self._spent[name] += cost
        if self._clock() > self._deadline:
            raise BadInputError(
                f"an annotation must be readable within {self._seconds:g} s, this one is not: this region was left "
                "out; delete regions, or draw with fewer and thinner strokes"
            )
