"""File names for images: safe on every file system, unique in a data set, still to be recognised."""

import re
import unicodedata
from urllib.parse import parse_qs, unquote, urlsplit

_LONGEST = 60
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")


def original_name(address: str) -> str:
    """Return an image's file name before Label Studio: "a.jpg" of "/data/upload/3/1a2b3c4d-a.jpg"; may be "".

    Args:
        address: as in task data; a data: URI has no name.
    """
    path, is_upload = image_path(address)
    name = path.rpartition("/")[2]
    return _UPLOAD_PREFIX.sub("", name, count=1) if is_upload else name


def image_path(address: str) -> tuple[str, bool]:
    """Return the path of an image, decoded ("" if its address has none), and whether it is an upload to Label Studio.

    Args:
        address: as in task data; a data: URI has no path.
    """
    if address[:5].lower() == "data:":
        return "", False
    try:
        parts = urlsplit(address)
    except ValueError:  # brackets that are no IPv6 address
        return "", False
    is_local = parts.path.rstrip("/").endswith("/data/local-files")
    path = parse_qs(parts.query).get("d", [""])[0] if is_local else unquote(parts.path)
    return path.rstrip("/"), "/data/upload/" in parts.path


def export_name(task_id: int, address: str, extension: str, tag: str | None = None) -> str:
    """Return the name of a task's image in a data set: "<task>-<original name>.<extension>", ASCII only.

    Args:
        task_id: makes it unique.
        address: as in task data.
        extension: with its dot; of what the file is, whatever it was called.
        tag: of the image, where tasks have several.
    """
    stem = original_name(address).rpartition(".")[0] or original_name(address)
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:_LONGEST].strip("-")
    parts = [str(task_id), *([re.sub(r"[^A-Za-z0-9]+", "-", tag).strip("-")[:_LONGEST]] if tag else []), safe]
    return "-".join(part for part in parts if part) + extension
