"""Turns a task into its encoded image: fetched once, decoded once, encoded once."""

import hashlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from backend.core import cancellation
from backend.core.types import EncodedImage, Image
from backend.engine.plans import PreparedImage
from backend.engine.softmatcher import Softmatcher
from backend.feature_cache import FeatureCache
from backend.labelstudio.decoding_pool import DecodedFile
from backend.labelstudio.image_decoding import decode_image, decode_reduced
from backend.labelstudio.images import Validators
from backend.labelstudio.label_config import ImageTag
from backend.metrics import Metrics
from backend.projects.model_host import Models
from backend.projects.task_source import ImageFiles

_KNOWN_AT_MOST = 1024


@dataclass(frozen=True)
class ImageVersion:
    """Which content an image's address had, and how to ask whether it still has it.

    Attributes:
        address: sha256 of the address, hex.
        sha256: of the file's bytes, hex.
        validators: what its server said of it; None if it has to be downloaded to be compared.
    """

    address: str
    sha256: str
    validators: Validators | None = None

    def is_same(self, other: "ImageVersion") -> bool:
        """Return whether address and content are those of the other."""
        return (self.address, self.sha256) == (other.address, other.sha256)


def versions_to_json(versions: Mapping[str, ImageVersion]) -> str:
    """Return the versions of a task's images by image tag, for the store."""
    return json.dumps({tag: asdict(version) for tag, version in versions.items()}, sort_keys=True)


def versions_from_json(text: str | None) -> dict[str, ImageVersion]:
    """Read what `versions_to_json` wrote; None gives no version."""
    found = {}
    for tag, stored in (json.loads(text) if text else {}).items():
        validators = Validators(**stored["validators"]) if stored["validators"] else None
        found[tag] = ImageVersion(**{**stored, "validators": validators})
    return found


@dataclass(frozen=True, eq=False)
class ImageFile:
    """The file behind an address as it is now.

    Attributes:
        version: of the file.
        content: None if its features are known and it was not downloaded.
    """

    version: ImageVersion
    content: bytes | None


@dataclass(frozen=True, eq=False)
class TaskImage:
    """An image of a task, encoded.

    Attributes:
        version: which content it is.
        encoded: what the models keep of it.
        pixels: (H, W, 3) uint8 at natural size, or None if they were not asked for.
    """

    version: ImageVersion
    encoded: EncodedImage
    pixels: Image | None

    @property
    def sha256(self) -> str:
        """Return the sha256 of the file's bytes, hex."""
        return self.version.sha256


@dataclass(eq=False)
class ReadImage:
    """An image between its download and its features.

    Attributes:
        version: which content it is.
        cache: where its features are kept.
        prepared: for the models; None if it is encoded.
        encoded: None if it is not.
        is_new: the cache does not have it yet.
    """

    version: ImageVersion
    cache: FeatureCache
    prepared: PreparedImage | None = None
    encoded: EncodedImage | None = None
    is_new: bool = False

    @property
    def sha256(self) -> str:
        """Return the sha256 of the file's bytes, hex."""
        return self.version.sha256

    @property
    def features(self) -> EncodedImage:
        """Return its encoded self; `encode_read` must have seen it."""
        assert self.encoded is not None
        return self.encoded

    def keep(self) -> None:
        """See that the cache has its features."""
        if self.is_new:
            self.cache.put(self.sha256, self.features)


class TaskImages:
    """Fetches and encodes images; remembers which address held which content, and asks whether it still does.

    An image may be replaced under its address at any time, so nothing is written to Label Studio without asking: with a
    conditional request where the server takes one (ETag, or time and size), else with a download.
    """

    def __init__(self, models: Models, metrics: Metrics, *, max_pixels: int) -> None:
        self._models = models
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._known: OrderedDict[tuple[str, object], ImageVersion] = OrderedDict()
        self._awaited: Counter[str] = Counter()
        self._lock = threading.Lock()

    def load(
        self,
        task: Mapping[str, Any],
        tag: ImageTag,
        fetcher: ImageFiles,
        *,
        is_interactive: bool,
        with_pixels: bool = False,
        file: ImageFile | None = None,
        wait_s: float = 60.0,
        with_text: bool = False,
        trusts_known: bool = False,
    ) -> TaskImage:
        """Return the encoded image that a task shows in an image tag.

        Args:
            task: as Label Studio gives it.
            tag: of the label config.
            fetcher: of the project.
            is_interactive: a labeler waits for it.
            with_pixels: decode the file even where its features are known.
            file: if `download` fetched it a moment ago.
            wait_s: for the models.
            with_text: with text features, see `Softmatcher.encode`.
            trusts_known: see `download`.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
            ModelUnavailableError: no models after `wait_s` seconds.
        """
        softmatcher, cache = self._get(wait_s, with_text=with_text)
        if file is None:
            file = self._file(
                task, tag, fetcher, cache, needs_content=with_pixels, trusts_known=trusts_known and not with_pixels
            )
        if file.content is None:
            encoded = cache.get(file.version.sha256)
            if encoded is not None and not with_pixels:
                return TaskImage(file.version, encoded, None)
            file = self._file(task, tag, fetcher, cache, needs_content=True)
        content, sha256 = file.content, file.version.sha256
        assert content is not None
        decoded: list[DecodedFile] = []

        def encode() -> EncodedImage:
            # Reduced whether the pixels are wanted or not: the features of a file are always the same.
            with self._metrics.stage("read"):
                image = self._reduced(content, softmatcher)
            decoded.append(image)
            # An interactive call may come to wait for this very encoding: then it is as urgent as that.
            scheduler = self._models.scheduler
            with scheduler.slot(is_interactive=is_interactive, is_urgent=lambda: self._awaited[sha256] > 0):
                return _encode(softmatcher, image, with_text=with_text)

        with self._awaiting(sha256, is_interactive=is_interactive):
            encoded = cache.get_or_encode(sha256, encode)
        if not with_pixels:
            return TaskImage(file.version, encoded, None)
        if decoded and not decoded[0].is_reduced:
            return TaskImage(file.version, encoded, decoded[0].pixels)
        with self._metrics.stage("read"):
            return TaskImage(file.version, encoded, decode_image(content, self._max_pixels))

    def look_ahead(
        self, task: Mapping[str, Any], tag: ImageTag, fetcher: ImageFiles, *, with_text: bool = False
    ) -> str:
        """Encode the image of a task that may be opened soon, giving way to any other call of the models.

        Returns:
            `encoded`, or `known` if it was there or is being encoded.

        Raises:
            CancelledWorkError: somebody wanted the models.
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had.
            ModelUnavailableError: no models yet.
        """
        softmatcher, cache = self._get(0, with_text=with_text)
        file = self._file(task, tag, fetcher, cache)
        cancellation.check()
        sha256 = file.version.sha256
        if file.content is None or cache.get(sha256) is not None:
            return "known"
        image = self._reduced(file.content, softmatcher)
        # The slot comes before the entry is marked as being made: nobody ever waits for a prefetch that waits itself.
        with self._models.scheduler.slot(is_prefetch=True):
            is_new = cache.encode_if_absent(sha256, lambda: _encode(softmatcher, image, with_text=with_text))
        return "encoded" if is_new else "known"

    @property
    def preferred_batch_size(self) -> int:
        """Return how many images are worth giving `encode_read` at a time; 1 if several gain nothing."""
        return max(1, self._models.get(60.0)[0].preferred_batch_size)

    def read(
        self,
        task: Mapping[str, Any],
        tag: ImageTag,
        fetcher: ImageFiles,
        *,
        with_text: bool = False,
        trusts_known: bool = False,
    ) -> "ReadImage":
        """Read a task's image for `encode_read`, without a slot on the models; for threads that run ahead.

        Arguments are those of `download`.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
            ModelUnavailableError: no models.
        """
        softmatcher, cache = self._get(60.0, with_text=with_text)
        file = self._file(task, tag, fetcher, cache, trusts_known=trusts_known)
        if (encoded := cache.get(file.version.sha256)) is not None:
            return ReadImage(file.version, cache, encoded=encoded)
        if file.content is None:  # its features left the cache this moment
            file = self._file(task, tag, fetcher, cache, needs_content=True)
        assert file.content is not None
        with self._metrics.stage("read"):
            image = self._reduced(file.content, softmatcher)
        return ReadImage(file.version, cache, prepared=softmatcher.prepare(image.pixels, image.size_hw))

    def encode_read(self, images: "Sequence[ReadImage]", *, with_text: bool = False) -> None:
        """Encode what is not encoded yet, together, as `read` was asked. The caller holds a slot of the models."""
        softmatcher, _ = self._models.get(60.0)
        new: dict[str, list[ReadImage]] = {}
        for image in images:
            if image.encoded is None:
                new.setdefault(image.sha256, []).append(image)
        if not new:
            return
        together = [alike[0].prepared for alike in new.values() if alike[0].prepared is not None]
        made = (
            softmatcher.encode_prepared(together, with_text=True)
            if with_text
            else softmatcher.encode_prepared(together)
        )
        for alike, encoded in zip(new.values(), made, strict=True):
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

    def download(
        self,
        task: Mapping[str, Any],
        tag: ImageTag,
        fetcher: ImageFiles,
        *,
        with_text: bool = False,
        trusts_known: bool = False,
    ) -> ImageFile:
        """Download the file that `load` will need, for threads that fetch ahead; no content if its features are known.

        Args:
            task: as Label Studio gives it.
            tag: of the label config.
            fetcher: of the project.
            with_text: with text features.
            trusts_known: don't ask whether an image that was seen before is still the same: the caller asks later,
                with `is_unchanged`.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
        """
        cache = self._get(60.0, with_text=with_text)[1]
        return self._file(task, tag, fetcher, cache, trusts_known=trusts_known)

    def _reduced(self, content: bytes, softmatcher: Softmatcher) -> DecodedFile:
        return decode_reduced(content, self._max_pixels, least_side_px=softmatcher.decode_side_px)

    def _get(self, wait_s: float, *, with_text: bool) -> tuple[Softmatcher, FeatureCache]:
        return self._models.get_with_text(wait_s) if with_text else self._models.get(wait_s)

    def is_unchanged(
        self, task: Mapping[str, Any], tag: ImageTag, fetcher: ImageFiles, version: ImageVersion | None
    ) -> bool:
        """Return whether the image is still the one of `version`; False without one. Needs no models.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
        """
        url = _address(task, tag)
        if version is None or version.address != _digest(url):
            return False
        fetched = fetcher.fetch_if_changed(url, _task_id(task), version.validators)
        return fetched.content is None or hashlib.sha256(fetched.content).hexdigest() == version.sha256

    def picture(self, task: Mapping[str, Any], tag: ImageTag, fetcher: ImageFiles) -> Image:
        """Return the decoded image, (H, W, 3) uint8, for showing; needs no model.

        Raises:
            BadInputError, NotFoundError, LabelStudioError: the image cannot be had; the message says why.
        """
        return decode_image(fetcher.fetch(_address(task, tag), _task_id(task)), self._max_pixels)

    def _file(
        self,
        task: Mapping[str, Any],
        tag: ImageTag,
        fetcher: ImageFiles,
        cache: FeatureCache,
        *,
        needs_content: bool = False,
        trusts_known: bool = False,
    ) -> ImageFile:
        url, task_id = _address(task, tag), _task_id(task)
        known_as = (_digest(url), task_id)
        with self._lock:
            known = self._known.get(known_as)
        if trusts_known and known is not None and cache.get(known.sha256) is not None:
            return ImageFile(known, None)
        if needs_content or known is None or known.validators is None or cache.get(known.sha256) is None:
            known = None
        with self._metrics.stage("fetch"):
            fetched = fetcher.fetch_if_changed(url, task_id, known.validators if known else None)
        if fetched.content is None:
            assert known is not None  # nothing else was asked about
            return ImageFile(known, None)
        version = ImageVersion(known_as[0], hashlib.sha256(fetched.content).hexdigest(), fetched.validators)
        with self._lock:
            self._known[known_as] = version
            self._known.move_to_end(known_as)
            while len(self._known) > _KNOWN_AT_MOST:
                self._known.popitem(last=False)
        return ImageFile(version, fetched.content)


def _encode(softmatcher: Softmatcher, image: DecodedFile, *, with_text: bool) -> EncodedImage:
    return softmatcher.encode(image.pixels, size_hw=image.size_hw, with_text=with_text)


def _address(task: Mapping[str, Any], tag: ImageTag) -> str:
    fields = task.get("data")
    return tag.address(fields if isinstance(fields, Mapping) else {})


def _digest(address: str) -> str:
    return hashlib.sha256(address.encode(errors="surrogatepass")).hexdigest()


def _task_id(task: Mapping[str, Any]) -> int | None:
    task_id = task.get("id")
    return task_id if isinstance(task_id, int) and not isinstance(task_id, bool) else None
