"""Graphs of OpenVINO that were converted once, kept in one file each: to convert takes seconds, to read hundredths."""

import hashlib
import logging
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from backend.atomic_files import replacing
from backend.models.openvino_runtime import import_openvino

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_LENGTH_BYTES = 8


def read_or_convert(path: Path, convert: Callable[[], Any]) -> Any:
    """Return the graph of a file; if it is missing or damaged, convert and write it.

    A folder that cannot be written is no error: the graph is converted at each start then.

    Args:
        path: of the file; its name says all that the graph depends on.
        convert: makes the `openvino.Model`.
    """
    found = _read(path)
    if found is not None:
        return found
    graph = convert()
    try:
        content = _pack(graph)
        with replacing(path) as file:
            file.write(hashlib.sha256(content).digest() + content)
    except OSError as error:
        logger.warning("%s: a converted network is not kept (%s); it is converted again at the next start", path, error)
    return graph


def _pack(graph: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="softmatcher-graph-") as folder:
        xml = Path(folder) / "graph.xml"
        import_openvino().save_model(graph, str(xml), compress_to_fp16=False)
        topology, weights = xml.read_bytes(), xml.with_suffix(".bin").read_bytes()
    return len(topology).to_bytes(_LENGTH_BYTES, "big") + topology + weights


def _read(path: Path) -> Any:
    content = b""
    with suppress(OSError):
        content = path.read_bytes()
    digest, packed = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if not content or hashlib.sha256(packed).digest() != digest:
        return None
    end = _LENGTH_BYTES + int.from_bytes(packed[:_LENGTH_BYTES], "big")
    return import_openvino().Core().read_model(packed[_LENGTH_BYTES:end], packed[end:])
