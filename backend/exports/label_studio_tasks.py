"""Tasks that Label Studio imports: images on its disk, annotations and predictions as brush regions, a label config."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from backend.core.types import Json
from backend.exports.options import ExportOptions
from backend.exports.records import ImageRecord, MaskRecord
from backend.exports.sinks import Sink
from backend.labelstudio.codec import mask_to_region
from backend.labelstudio.label_config import BrushControl, parse_label_config
from backend.labelstudio.sample_label_config import make_label_config

TASKS, CONFIG = "tasks.json", "label-config.xml"
_IMAGE = "image"
_LOCAL_FILES = "/data/local-files/?d="


def to_task(image: ImageRecord, address: str, brush: BrushControl) -> Json:
    """Return a task with an annotation of the masks that people made, and a prediction of those that a model made."""
    drawn = [one for one in image.masks if one.provenance.source == "annotation"]
    predicted = [one for one in image.masks if one.provenance.source == "prediction"]
    task: Json = {"data": {_IMAGE: address}}
    if drawn or not image.masks:
        task["annotations"] = [{"result": [_region(one, brush) for one in drawn]}]
    if predicted:
        scores = [one.provenance.score for one in predicted if one.provenance.score is not None]
        prediction: Json = {"result": [_region(one, brush) for one in predicted]}
        if scores:
            prediction["score"] = min(scores)
        if predicted[0].provenance.model_version is not None:
            prediction["model_version"] = predicted[0].provenance.model_version
        task["predictions"] = [prediction]
    return task


class LabelStudioWriter:
    """One task for each image, with `annotations` where people made masks, else with `predictions`."""

    def __init__(self, labels: Sequence[str], options: ExportOptions, title: str, sink: Sink) -> None:
        self._config = make_label_config(*labels)
        (self._brush,) = parse_label_config(self._config).brushes
        self._options = options
        self._sink = sink
        self._count = 0

    @property
    def notes(self) -> list[str]:
        """Return how the files are imported."""
        images = (
            "Start Label Studio with LOCAL_FILES_SERVING_ENABLED=true and LOCAL_FILES_DOCUMENT_ROOT=<this folder>, and "
            "add the folder `images` as Local Files under Settings > Cloud Storage, without synchronising it."
            if self._options.images == "include"
            else "The images are where their addresses say."
        )
        return [f"A project whose labeling interface is `{CONFIG}` imports `{TASKS}`.", images]

    def add(self, image: ImageRecord) -> None:
        """Add the task of an image."""
        stored = f"{_LOCAL_FILES}{quote(f'images/{image.split}/{image.file_name}')}"
        address = stored if self._options.images == "include" else image.address
        task = json.dumps(to_task(image, address, self._brush), separators=(",", ":"), ensure_ascii=False)
        with self._scratch.open("a") as file:
            file.write((",\n" if self._count else "[\n") + task)
        self._count += 1

    def finish(self) -> None:
        """Write tasks and label config."""
        with self._scratch.open("a") as file:
            file.write("\n]\n")
        self._sink.write(TASKS, self._chunks())
        self._sink.write(CONFIG, [f"{self._config}\n".encode()])

    @property
    def _scratch(self) -> Path:
        return self._sink.scratch / "tasks"

    def _chunks(self) -> Iterator[bytes]:
        with self._scratch.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk


def _region(one: MaskRecord, brush: BrushControl) -> Json:
    score = one.provenance.score
    region = mask_to_region(
        one.mask, brush=brush, label=one.label, score=score or 0.0, region_id=one.provenance.region_id
    )
    if score is None:
        del region["score"]
    return {**region, "origin": one.provenance.origin}
