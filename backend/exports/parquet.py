"""Parquet: a row an image, with its objects as a list; read by pandas, polars, pyarrow and Hugging Face `datasets`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from backend.core.types import Json
from backend.exports.coco import box_xywh, mask_to_coco_rle
from backend.exports.options import ExportOptions
from backend.exports.records import ImageRecord
from backend.exports.sinks import Sink

_ROWS_AT_ONCE = 100
_BYTES_AT_ONCE = 32_000_000
"""Bytes kept in memory until they are written as a row group."""
_BYTES_A_FILE = 200_000_000
_CHUNK_BYTES = 1 << 20

_OBJECT = {
    "id": "int64", "label": "string", "label_id": "int32", "bbox": ["int32"], "area": "int64", "rle_counts": "string",
    "source": "string", "source_id": "int64", "region_id": "string", "origin": "string", "annotator": "int64",
    "score": "float64", "model_version": "string", "reference_ids": ["int64"], "created_at": "string",
    "updated_at": "string",
}  # fmt: skip
_IMAGE: Json = {
    "file_name": "string", "task": "int64", "sha256": "string", "width": "int32", "height": "int32",
    "objects": [_OBJECT],
}  # fmt: skip


def to_row(image: ImageRecord, labels: Sequence[str], *, with_image: bool) -> Json:
    """Return an image as a row. `rle_counts` with `[height, width]` is pycocotools' RLE; `label_id` counts from 0."""
    height, width = image.file.size_hw
    objects = [
        {
            "id": one.id, "label": one.label, "label_id": labels.index(one.label), "bbox": box_xywh(one.mask),
            "area": int(np.count_nonzero(one.mask)), "rle_counts": mask_to_coco_rle(one.mask)["counts"],
            **one.provenance.to_json(),
        }
        for one in image.masks
    ]  # fmt: skip
    shown = {"image": {"bytes": image.read(), "path": image.file_name}} if with_image else {"address": image.address}
    return {
        **shown, "file_name": image.file_name, "task": image.task_id, "sha256": image.file.sha256,
        "width": width, "height": height, "objects": objects,
    }  # fmt: skip


def schema(*, with_image: bool) -> pa.Schema:
    """Return the schema of a file; its metadata tell `datasets` to decode the images."""
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    shown = pa.field("image", image_type) if with_image else pa.field("address", pa.string())
    columns = [shown, *(pa.field(name, _arrow(kind)) for name, kind in _IMAGE.items())]
    features = {"image": {"_type": "Image"}} if with_image else {"address": _feature("string")}
    features |= {name: _feature(kind) for name, kind in _IMAGE.items()}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _arrow(kind: Any) -> pa.DataType:
    if isinstance(kind, list):
        return pa.list_(_arrow(kind[0]))
    if isinstance(kind, dict):
        return pa.struct([(name, _arrow(each)) for name, each in kind.items()])
    return {"int32": pa.int32(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}[kind]


def _feature(kind: Any) -> Any:
    if isinstance(kind, list):
        return [_feature(kind[0])]
    if isinstance(kind, dict):
        return {name: _feature(each) for name, each in kind.items()}
    return {"dtype": kind, "_type": "Value"}


class ParquetWriter:
    """Row groups of bounded size, in files of bounded size: `data/<split>-00000.parquet`."""

    def __init__(self, labels: Sequence[str], options: ExportOptions, title: str, sink: Sink) -> None:
        self._labels = list(labels)
        self._with_image = options.images == "include"
        self._schema = schema(with_image=self._with_image)
        self._sink = sink
        self._shards = {split: _Shards(split, self._schema, sink) for split in options.splits}

    @property
    def notes(self) -> list[str]:
        """Return what a row is."""
        return [
            "`data/<split>-*.parquet`: one row per image; `rle_counts` with `[height, width]` is COCO's run-length "
            "code."
        ]

    def add(self, image: ImageRecord) -> None:
        """Add a row."""
        row = to_row(image, self._labels, with_image=self._with_image)
        size = len(row["image"]["bytes"]) if self._with_image else 0
        size += sum(len(one["rle_counts"]) for one in row["objects"])
        self._shards[image.split].add(row, size)

    def finish(self) -> None:
        """Write what is left."""
        for shards in self._shards.values():
            shards.finish()


class _Shards:
    """The files of one split; a split without images has none."""

    def __init__(self, split: str, schema: pa.Schema, sink: Sink) -> None:
        self._split = split
        self._schema = schema
        self._sink = sink
        self._number = 0
        self._rows: list[Json] = []
        self._rows_bytes = 0
        self._file_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._path = sink.scratch / f"{split}.parquet"

    def add(self, row: Json, size: int) -> None:
        self._rows.append(row)
        self._rows_bytes += size
        if len(self._rows) >= _ROWS_AT_ONCE or self._rows_bytes >= _BYTES_AT_ONCE:
            self._flush()
        if self._file_bytes >= _BYTES_A_FILE:
            self._close()

    def finish(self) -> None:
        self._flush()
        self._close()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._file_bytes += self._rows_bytes
        self._rows, self._rows_bytes = [], 0

    def _close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._sink.write(f"data/{self._split}-{self._number:05d}.parquet", _chunks(self._path))
        self._path.unlink()
        self._writer, self._file_bytes, self._number = None, 0, self._number + 1


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
