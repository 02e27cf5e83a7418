"""From a task to its encoded image: fetched once, decoded once, encoded once."""

import hashlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from backend.core import interruption
from backend.core.types import EncodedImage, Image
from backend.feature_cache import FeatureCache
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.images import ImageFetcher
from backend.labelstudio.label_config import ImageTag
from backend.metrics import Metrics
from backend.pipeline import PreparedImage
from backend.projects.models import Models

_KNOWN_FOR_S = 300.0
_KNOWN_AT_MOST = 1024


@dataclass(frozen=True, eq=False)
class TaskImage:
    """An image of a task, encoded.

    Attributes:
        sha256: of the file's bytes, hex.
        encoded: what the models keep of it.
        pixels: (H, W, 3) uint8, or None if the features came from the cache and the file was not decoded.
    """

    sha256: str
    encoded: EncodedImage
    pixels: Image | None


@dataclass(eq=False)
class ReadImage:
    """An image between its download and its features.

    Attributes:
        sha256: of the file's bytes, hex.
        cache: where its features are kept.
        prepared: for the models; None if it is encoded.
        encoded: None if it is not.
        is_new: the cache does not have it yet.
    """

    sha256: str
    cache: FeatureCache
    prepared: PreparedImage | None = None
    encoded: EncodedImage | None = None
    is_new: bool = False

    @property
    def features(self) -> EncodedImage:
        """Its encoded self, once `encode_read` has seen it."""
        assert self.encoded is not None
        return self.encoded

    def keep(self) -> None:
        """See that the cache has its features."""
        if self.is_new:
            self.cache.put(self.sha256, self.features)


class TaskImages:
    """Fetches and encodes images; remembers for minutes which address held which content, to skip the download."""

    def __init__(self, models: Models, metrics: Metrics, *, max_pixels: int) -> None:
        self._models = models
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._known: OrderedDict[tuple[str, object], tuple[str, float]] = OrderedDict()
        self._awaited: Counter[str] = Counter()
        self._lock = threading.Lock()

    def load(
        self,
        task: Mapping[str, Any],
        tag: ImageTag,
        fetcher: ImageFetcher,
        *,
        is_interactive: bool,
        with_pixels: bool = False,
        content: bytes | None = None,
        wait_s: float = 60.0,
    ) -> TaskImage:
        """The encoded image that a task shows in an image tag.

        Args:
            task: as Label Studio gives it.
            tag: of the label config.
            fetcher: of the project.
            is_interactive: a labeler waits for it.
            with_pixels: decode the file even where its features are known.
            content: the file, if `download` fetched it before.
            wait_s: for the models.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
            ModelUnavailableError: no models after `wait_s` seconds.
        """
        fields = task.get("data")
        url = tag.address(fields if isinstance(fields, Mapping) else {})
        softmatcher, cache = self._models.get(wait_s)
        known_as = (url, _task_id(task))
        if not with_pixels and (sha256 := self._recall(known_as)) is not None:
            encoded = cache.get(sha256)
            if encoded is not None:
                return TaskImage(sha256, encoded, None)
        if content is None:
            with self._metrics.stage("fetch"):
                content = fetcher.fetch(url, _task_id(task))
        file = content
        sha256 = hashlib.sha256(file).hexdigest()
        pixels: list[Image] = []

        def decode() -> Image:
            if not pixels:
                with self._metrics.stage("read"):
                    pixels.append(decode_image(file, self._max_pixels))
            return pixels[0]

        def encode() -> EncodedImage:
            image = decode()
            # An interactive call may come to wait for this very encoding: then it is as urgent as that.
            gate = self._models.gate
            with gate.turn(is_interactive=is_interactive, is_urgent=lambda: self._awaited[sha256] > 0):
                return softmatcher.encode(image)

        if with_pixels:
            decode()
        with self._awaiting(sha256, is_interactive=is_interactive):
            encoded = cache.get_or_encode(sha256, encode)
        self._remember(known_as, sha256)
        return TaskImage(sha256, encoded, pixels[0] if pixels else None)

    def look_ahead(self, task: Mapping[str, Any], tag: ImageTag, fetcher: ImageFetcher) -> str:
        """Encode the image of a task that may be opened soon, giving way to whoever wants the models now.

        Returns:
            `encoded`, or `known` if it was there or is being encoded.

        Raises:
            InterruptedWorkError: somebody wanted the models.
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had.
            ModelUnavailableError: no models yet.
        """
        fields = task.get("data")
        url = tag.address(fields if isinstance(fields, Mapping) else {})
        softmatcher, cache = self._models.get(0)
        known_as = (url, _task_id(task))
        if (sha256 := self._recall(known_as)) is not None and cache.get(sha256) is not None:
            return "known"
        content = fetcher.fetch(url, _task_id(task))
        sha256 = hashlib.sha256(content).hexdigest()
        interruption.check()
        if cache.get(sha256) is not None:
            self._remember(known_as, sha256)
            return "known"
        image = decode_image(content, self._max_pixels)
        # The turn comes before the entry is marked as being made: nobody ever waits for a prefetch that waits itself.
        with self._models.gate.turn(is_prefetch=True):
            is_new = cache.encode_if_absent(sha256, lambda: softmatcher.encode(image))
        self._remember(known_as, sha256)
        return "encoded" if is_new else "known"

    @property
    def good_batch(self) -> int:
        """Images that are worth giving `encode_read` at a time; 1 where it gains nothing."""
        return max(1, self._models.get(60.0)[0].good_batch)

    def read(self, task: Mapping[str, Any], tag: ImageTag, fetcher: ImageFetcher) -> "ReadImage":
        """A task's image, ready for `encode_read`; needs no turn on the models. For threads that run ahead.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
            ModelUnavailableError: no models.
        """
        fields = task.get("data")
        url = tag.address(fields if isinstance(fields, Mapping) else {})
        softmatcher, cache = self._models.get(60.0)
        known_as = (url, _task_id(task))
        if (known := self._recall(known_as)) is not None and (encoded := cache.get(known)) is not None:
            return ReadImage(known, cache, encoded=encoded)
        with self._metrics.stage("fetch"):
            content = fetcher.fetch(url, _task_id(task))
        sha256 = hashlib.sha256(content).hexdigest()
        self._remember(known_as, sha256)
        if (encoded := cache.get(sha256)) is not None:
            return ReadImage(sha256, cache, encoded=encoded)
        with self._metrics.stage("read"):
            image = decode_image(content, self._max_pixels)
        return ReadImage(sha256, cache, prepared=softmatcher.prepare(image))

    def encode_read(self, images: "Sequence[ReadImage]") -> None:
        """Encode what is not encoded yet, together. The caller holds a turn on the models."""
        softmatcher, _ = self._models.get(60.0)
        new: dict[str, list[ReadImage]] = {}
        for image in images:
            if image.encoded is None:
                new.setdefault(image.sha256, []).append(image)
        if not new:
            return
        together = [alike[0].prepared for alike in new.values() if alike[0].prepared is not None]
        for alike, encoded in zip(new.values(), softmatcher.encode_prepared(together), strict=True):
            for image in alike:
                image.encoded, image.prepared = encoded, None
            alike[0].is_new = True

    @contextmanager
    def _awaiting(self, sha256: str, *, is_interactive: bool) -> Iterator[None]:
        with self._lock:
            self._awaited[sha256] += is_interactive
        try:
            yield
        finally:
            with self._lock:
                self._awaited[sha256] -= is_interactive
                if not self._awaited[sha256]:
                    del self._awaited[sha256]

    def download(self, task: Mapping[str, Any], tag: ImageTag, fetcher: ImageFetcher) -> bytes | None:
        """The file that `load` will need, for threads that fetch ahead; None if its features are known already.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
        """
        fields = task.get("data")
        url = tag.address(fields if isinstance(fields, Mapping) else {})
        _, cache = self._models.get(60.0)
        sha256 = self._recall((url, _task_id(task)))
        if sha256 is not None and cache.get(sha256) is not None:
            return None
        with self._metrics.stage("fetch"):
            return fetcher.fetch(url, _task_id(task))

    def picture(self, task: Mapping[str, Any], tag: ImageTag, fetcher: ImageFetcher) -> Image:
        """The decoded image, (H, W, 3) uint8, for showing; needs no model.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
        """
        fields = task.get("data")
        url = tag.address(fields if isinstance(fields, Mapping) else {})
        return decode_image(fetcher.fetch(url, _task_id(task)), self._max_pixels)

    def _recall(self, known_as: tuple[str, object]) -> str | None:
        with self._lock:
            entry = self._known.get(known_as)
            return entry[0] if entry and time.monotonic() - entry[1] < _KNOWN_FOR_S else None

    def _remember(self, known_as: tuple[str, object], sha256: str) -> None:
        with self._lock:
            self._known[known_as] = (sha256, time.monotonic())
            self._known.move_to_end(known_as)
            while len(self._known) > _KNOWN_AT_MOST:
                self._known.popitem(last=False)


def _task_id(task: Mapping[str, Any]) -> int | None:
    task_id = task.get("id")
    return task_id if isinstance(task_id, int) and not isinstance(task_id, bool) else None
