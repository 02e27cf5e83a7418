"""How long the stages of the engine take, told to whoever measures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backend.core import cancellation

OnStage = Callable[[str, float], None]
"""Called with a stage's name and its seconds, from whichever thread ran it."""


class StageTimer:
    """Times stages by name; without a listener it does nothing.

    Args:
        on_stage: the listener, called once for each image that went through the stage: images that share a pass share
            its time evenly.
    """

    def __init__(self, on_stage: OnStage | None = None) -> None:
        self._on_stage = on_stage

    @contextmanager
    def __call__(self, name: str, *, images: int = 1) -> Iterator[None]:
        """Time the block as the stage `name` of so many images.

        Raises:
            CancelledWorkError: see `cancellation.check`; asked before the block. No stage is long.
        """
        cancellation.check()
        start = time.perf_counter()
        yield
        if self._on_stage is not None and images:
            share_s = (time.perf_counter() - start) / images
            for _ in range(images):
                self._on_stage(name, share_s)
