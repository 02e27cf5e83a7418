"""The folder of weights: files under their SHA-256, and for each model a note which of them is its own.

<folder>/sha256/<64 hex digits>      the file
<folder>/models/<model name>.json    {"sha256", "size_bytes", "file_name", "source", "checked"}
<folder>/unfinished/<model name>...  downloads that go on where they stopped
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from backend.atomic_files import replacing
from backend.errors import BadInputError, ModelUnavailableError
from backend.models.weights import catalogue
from backend.models.weights.catalogue import KnownWeights

_CHUNK_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class StoredWeights:
    """A model's weights as they lie in the folder.

    Attributes:
        name: of the model.
        path: of the file.
        sha256: of its content when it came in.
        size_bytes: likewise.
        file_name: it came under.
        source: address or path it came from.
        checked: `catalogue` if the digest is that of the official file, `recorded` if it is that of the first import.
        layout: model of the catalogue whose network it fills, under a name of its own: a fine-tuned checkpoint.
    """

    name: str
    path: Path
    sha256: str
    size_bytes: int
    file_name: str
    source: str
    checked: str
    layout: str | None = None


@dataclass(frozen=True)
class Digests:
    """The size, SHA-256 and MD5 of a file."""

    size_bytes: int
    sha256: str
    md5: str

    @classmethod
    def of(cls, path: Path, on_progress: Callable[[int], None] | None = None) -> "Digests":
        """Read a file from front to end; `on_progress` gets the bytes read so far.

        Raises:
            OSError: it cannot be read.
        """
        sha256, md5, size_bytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha256.update(chunk)
                md5.update(chunk)
                size_bytes += len(chunk)
                if on_progress is not None:
                    on_progress(size_bytes)
        return cls(size_bytes, sha256.hexdigest(), md5.hexdigest())


def rejection_reason(known: KnownWeights, found: Digests, head: bytes) -> str | None:
    """Return why a file is not the one that the catalogue means; None if it is.

    Args:
        known: the catalogue's entry.
        found: the file's digests.
        head: its first bytes: they tell a web page from weights.
    """
    if known.sha256 == found.sha256:
        return None
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: run `git lfs pull` where it comes from"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, not weights: a proxy or a login answered in its place"
    if known.size_bytes is not None and found.size_bytes < known.size_bytes:
        return f"it is cut off: {found.size_bytes} of {known.size_bytes} bytes"
    if known.size_bytes is not None and found.size_bytes != known.size_bytes:
        return f"it is another file: {found.size_bytes} bytes, not {known.size_bytes}"
    if known.sha256 is not None:
        return f"it is damaged or another file: its sha256 is {found.sha256}, not {known.sha256}"
    if known.md5_start is not None and not found.md5.startswith(known.md5_start):
        return f"it is damaged or another file: its MD5 is {found.md5}, which does not begin with {known.md5_start}"
    return None


class WeightsStore:
    """Keeps weights on this machine's disk. Processes may share the folder: files appear whole, or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> StoredWeights | None:
        """Return what is stored of a model, unread; None if nothing is.

        Raises:
            BadInputError: no name of a model.
        """
        try:
            noted = json.loads(self._note_path(name).read_text())
            stored = StoredWeights(name, self._blob_path(noted["sha256"]), **noted)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return stored if stored.path.is_file() else None

    def all(self) -> list[StoredWeights]:
        """Return everything stored, by name."""
        names = sorted(path.stem for path in (self.folder / "models").glob("*.json"))
        return [stored for name in names if _NAME.fullmatch(name) and (stored := self.find(name)) is not None]

    def require(self, names: Sequence[str], *, profile: str | None = None) -> list[StoredWeights]:
        """Return what is stored of models, their files still as long as they were.

        Args:
            names: of the models.
            profile: whose models they are; None if they are no profile's own.

        Raises:
            ModelUnavailableError: missing or cut off; names the command that helps, for all that is missing.
        """
        found = {name: stored for name in names if (stored := self.find(name)) is not None}
        missing = [name for name in names if name not in found]
        if missing:
            offered = [name for name in missing if catalogue.known_weights(name) is not None]
            commands = [f"`python -m backend weights fetch {profile or ' '.join(offered)}`"] if offered else []
            commands += [
                f"`python -m backend weights import PATH --as {name}`" for name in missing if name not in offered
            ]
            raise ModelUnavailableError(
                f"weights of {' and '.join(missing)} are missing in {self.folder}: run {', then '.join(commands)}"
            )
        for name, stored in found.items():
            if stored.path.stat().st_size != stored.size_bytes:
                raise ModelUnavailableError(
                    f"weights of {name} are damaged ({stored.path.stat().st_size} of {stored.size_bytes} bytes): "
                    f"run `python -m backend weights fetch {name}`, or import the file again"
                )
        return [found[name] for name in names]

    def verify(self, stored: StoredWeights) -> str | None:
        """Read a file again; None if it is what it was, otherwise what is wrong with it."""
        try:
            found = Digests.of(stored.path)
        except OSError as error:
            return f"cannot be read: {error}"
        if found.sha256 != stored.sha256:
            return f"its sha256 is {found.sha256}, not {stored.sha256}: fetch or import it again"
        known = catalogue.known_weights(stored.name)
        if known is not None and (known.sha256 == found.sha256 or known.is_tokenizer):
            return None
        from backend.models.weights.files import reason_not_weights

        try:
            reason = reason_not_weights(stored.path)
        except OSError as error:
            return f"cannot be read: {error}"
        # As it was when it came in, which earlier releases did not look at.
        return None if reason is None else f"holds no weights, {reason}: import the right file under this name"

    def add(
        self, path: Path, *, name: str | None, source: str, keep: bool = True, known: KnownWeights | None = None
    ) -> StoredWeights:
        """Add a file to the store.

        Args:
            path: of the file.
            known: what it has to be; None: the catalogue is asked.
            name: of its model; None: recognised by its digest or its file name.
            source: where it comes from, for the record.
            keep: copy it; otherwise it is moved.

        Raises:
            BadInputError: not the file that the catalogue means, or nothing says whose weights these are.
        """
        from backend.models.weights.files import known_layout  # PyTorch, which listing does without

        found, known = _identified(path, name, known)
        own_name = known.name if known is not None else str(name)
        layout = known_layout(path) if known is None else None
        before = self.find(own_name)
        is_recorded = known is None or known.sha256 is None
        if is_recorded and before is not None and before.sha256 != found.sha256:
            raise BadInputError(
                f"{own_name} has other weights already (sha256 {before.sha256[:12]}, recorded at import), "
                f"got {found.sha256[:12]}; remove {self._note_path(own_name)} first if these shall take their place"
            )
        blob = self._blob_path(found.sha256)
        if not blob.is_file() or blob.stat().st_size != found.size_bytes:
            _place(path, blob, keep=keep)
        elif not keep:
            path.unlink()
        noted = {
            "sha256": found.sha256,
            "size_bytes": found.size_bytes,
            "file_name": known.file_name if known is not None else path.name,
            "source": source,
            "checked": "recorded" if is_recorded else "catalogue",
            "layout": layout,
        }
        note = self._note_path(own_name)
        with replacing(note) as file:
            file.write(json.dumps(noted, indent=1).encode())
        return StoredWeights(own_name, blob, **noted)  # type: ignore[arg-type]

    def unfinished_path(self, name: str) -> Path:
        """Return the path that a download of a model's weights grows at."""
        return self.folder / "unfinished" / _safe(name)

    def _note_path(self, name: str) -> Path:
        return self.folder / "models" / f"{_safe(name)}.json"

    def _blob_path(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self.folder / "sha256" / sha256


def stored_as_dict(stored: StoredWeights) -> dict[str, object]:
    """Return what is stored of a model, for JSON."""
    return {**asdict(stored), "path": str(stored.path)}


def _safe(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadInputError(f"a model's name must be letters, digits, '.', '_' and '-', got {name!r}")
    return name


def _identified(path: Path, name: str | None, known: KnownWeights | None) -> tuple[Digests, KnownWeights | None]:
    """Return a file's digests and its entry in the catalogue, None if it has none.

    Raises:
        BadInputError: not the file that the catalogue means, or nothing says whose weights these are.
    """
    from backend.models.weights.files import require_tokenizer, require_weights  # PyTorch, which listing does without

    try:
        found = Digests.of(path)
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise BadInputError(f"weights must be a file that can be read, got {path} ({error})") from error
    if known is None and name is None:
        known = _known_by_content(found) or catalogue.known_weights(path.name)
    elif known is None:
        known = catalogue.known_weights(str(name))
    if known is None and name is None:
        require_weights(path)
        raise BadInputError(
            f"{path.name} is none of the files in `weights list` (sha256 {found.sha256}): say whose weights it "
            "holds, with --as and timm's name of the model"
        )
    if known is not None and (reason := rejection_reason(known, found, head)) is not None:
        raise BadInputError(
            f"{path} is not {known.file_name} of {known.name}: {reason}. If it is a checkpoint of your own, import "
            "it under a name of its own, with --as"
        )
    if known is not None and known.is_tokenizer:
        require_tokenizer(path)
    elif known is None or known.sha256 != found.sha256:
        require_weights(path)
    return found, known


def _known_by_content(found: Digests) -> KnownWeights | None:
    return next((known for known in catalogue.KNOWN_WEIGHTS if known.sha256 == found.sha256), None)


def _place(path: Path, blob: Path, *, keep: bool) -> None:
    """Bring a file to its place so that others see it whole or not at all."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not keep:
        try:
            os.replace(path, blob)
        except OSError:  # another file system
            keep = True
        else:
            return
    with replacing(blob) as copied, path.open("rb") as file:
        shutil.copyfileobj(file, copied)
