"""`weights`: which there are, fetch, verify, import."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from backend.models.profiles import PROFILES
from backend.models.weights.catalogue import KNOWN_WEIGHTS, known_weights, weights_of
from backend.models.weights.download import fetch_weights
from backend.models.weights.store import StoredWeights, WeightsStore, stored_as_dict
from backend.settings import Settings

_PIPED_WIDTH = 120


def list_weights(settings: Settings, *, as_json: bool, console: Console | None = None) -> None:
    """Known files and stored ones."""
    store = WeightsStore(settings.weights_folder)
    stored = {one.name: one for one in store.all()}
    if as_json:
        print(json.dumps([_row(name, stored.get(name)) for name in _names(stored)], indent=1))
        return
    # Names are what the other commands take: on a narrow terminal they go on in the next line, nothing is cut off.
    columns = [Column(name, overflow="fold") for name in ("model", "profile", "file", "MB", "sha256", "here")]
    table = Table(*columns, title=f"weights in {store.folder}")
    for name in _names(stored):
        row = _row(name, stored.get(name))
        here = "" if row["stored"] is None else "yes" if row["checked"] == "catalogue" else "yes, as imported"
        size = "" if row["size_bytes"] is None else f"{int(str(row['size_bytes'])) / 1e6:.0f}"
        table.add_row(
            name, str(row["profiles"]), str(row["file_name"]), size, str(row["sha256"] or "at import")[:12], here
        )
    (console or Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)).print(table)


def fetch(settings: Settings, what: Sequence[str], mirror: str | None, console: Console | None = None) -> None:
    """Have the files of profiles or models; progress on a terminal, one line a file elsewhere.

    Raises:
        ConfigurationError, ModelUnavailableError, BadInputError: see `fetch_weights`.
    """
    console = console or Console()
    store = WeightsStore(settings.weights_folder)
    wanted = {known.name: known for one in what for known in weights_of(one)}
    if not wanted:
        console.print(f"profile {', '.join(what)} needs no download")
    for known in wanted.values():
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console, disable=not sys.stderr.isatty() and not console.is_terminal,
        ) as progress:  # fmt: skip
            line = progress.add_task(known.file_name, total=known.size_bytes)
            stored = fetch_weights(
                store,
                known,
                mirror=mirror or settings.weights_mirror,
                on_progress=lambda done, total, line=line, progress=progress: progress.update(  # type: ignore[misc]
                    line, completed=done, total=total
                ),
            )
        _tell(console, stored)


def verify(settings: Settings, console: Console | None = None) -> bool:
    """Read every stored file; True if all are what they were."""
    console = console or Console()
    store = WeightsStore(settings.weights_folder)
    stored = store.all()
    if not stored:
        console.print(f"no weights in {store.folder}: fetch some with `python -m backend weights fetch PROFILE`")
    is_ok = True
    for one in stored:
        problem = store.verify(one)
        is_ok &= problem is None
        held_to = "the catalogue's sha256" if one.checked == "catalogue" else "the sha256 recorded at import"
        console.print(f"{one.name}: {problem or f'ok, by {held_to}'}")
    return is_ok


def import_file(settings: Settings, path: str, name: str | None, console: Console | None = None) -> None:
    """Take in a file.

    Raises:
        BadInputError: not the file that the catalogue means, or nothing says whose weights these are.
    """
    store = WeightsStore(settings.weights_folder)
    _tell(console or Console(), store.add(Path(path), name=name, source=str(Path(path).resolve())))


def _tell(console: Console, stored: StoredWeights) -> None:
    how = (
        "its sha256 is that of the official file"
        if stored.checked == "catalogue"
        else "nobody told its sha256 before: recorded, and held to from now on"
    )
    console.print(f"{stored.name}: {stored.path} ({stored.size_bytes / 1e6:.0f} MB; {how})", soft_wrap=True)
    if stored.layout is not None:
        setting = "SEGMENTER" if "sam" in stored.layout else "ENCODER"
        console.print(f"it has the layout of {stored.layout}: SOFTMATCHER_{setting}={stored.name}", soft_wrap=True)
    elif stored.checked == "recorded" and known_weights(stored.name) is None:
        console.print(
            f"it has the layout of no model of `weights list`: SOFTMATCHER_ENCODER={stored.name} takes it if timm has "
            "a model of this name and layout",
            soft_wrap=True,
        )


def _names(stored: dict[str, StoredWeights]) -> list[str]:
    known = [one.name for one in KNOWN_WEIGHTS]
    return [*known, *(name for name in stored if name not in known)]


def _row(name: str, stored: StoredWeights | None) -> dict[str, object]:
    known = next((one for one in KNOWN_WEIGHTS if one.name == name), None)
    return {
        "model": name,
        "profiles": ", ".join(profile.name for profile in PROFILES.values() if name in profile.weights),
        "file_name": known.file_name if known else stored.file_name if stored else "",
        "url": known.url if known else None,
        "size_bytes": known.size_bytes if known and known.size_bytes else stored.size_bytes if stored else None,
        "sha256": known.sha256 if known and known.sha256 else stored.sha256 if stored else None,
        "licence": known.licence if known else None,
        "checked": stored.checked if stored else None,
        "stored": stored_as_dict(stored) if stored else None,
    }
