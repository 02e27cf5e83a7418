"""The real service and the workers' own code around a profile that is timed, with images from memory."""

import io
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from werkzeug.serving import make_server

from backend.cli.bench.timing import Bench
from backend.core.types import Image, Mask
from backend.jobs.redis_queue import RedisQueue
from backend.labelstudio.image_decoding import decode_image
from backend.labelstudio.images import FetchedFile, Validators
from backend.labelstudio.label_config import parse_label_config
from backend.metrics import Metrics
from backend.own_http import Session
from backend.projects.composition import Projects
from backend.projects.model_host import Models
from backend.projects.options import match_options
from backend.projects.prediction.reference_banks import Banks, PredictionContext
from backend.settings import load_settings
from backend.store import Store
from backend.store.records import ProjectKey
from backend.web.app import create_app

_LABEL_CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Thing"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Thing"/></KeyPointLabels></View>"""
_PROJECT_KEY = "1.1"
MOST_PIXELS = 200_000_000


@contextmanager
def service(
    bench: Bench,
) -> Iterator[tuple[Callable[[int, bytes], None], Callable[[Sequence[int], Sequence[bytes]], int]]]:
    """Run the real service on loopback, with this one project.

    Gives a function that clicks on a task, and one that predicts many tasks as a worker does and returns how many have
    masks.
    """
    files: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(data_dir=Path(folder), prefetch_tasks=0, min_score=0.0)
        store, metrics = Store(settings.store_url), Metrics()
        store.create_tables()
        store.save_project(_PROJECT_KEY, label_config=_LABEL_CONFIG)
        metrics.on_stage = bench.on_stage  # type: ignore[method-assign]
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        models = Models(settings, metrics, load=lambda profile, on_stage: bench.softmatcher)
        projects = Projects(settings, store, metrics, models, _LocalImages(files))  # type: ignore[arg-type]
        models.get(60)
        server = make_server("127.0.0.1", 0, create_app(projects, RedisQueue("redis://127.0.0.1:1")), threaded=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        session = Session()

        def add(number: int, content: bytes) -> dict[str, Any]:
            if number not in files:
                # A comment after the picture: the same pixels, another file, so nothing of it is cached.
                files[number] = content + number.to_bytes(4, "big")
            return {"id": number + 1, "data": {"image": f"/{number}"}}

        @cache
        def references() -> Banks:
            engine, image = bench.softmatcher, decode_image(photograph(), MOST_PIXELS)
            bank = engine.gather([engine.describe(image, engine.encode(image), square(image))])
            return {"image": {"Thing": bank}}

        def predict(numbers: Sequence[int], contents: Sequence[bytes]) -> int:
            tasks = [add(number, contents[number % len(contents)]) for number in numbers]
            project = projects.store.project(_PROJECT_KEY)
            assert project is not None  # saved above
            config, options = parse_label_config(_LABEL_CONFIG), match_options(settings, project)
            context = PredictionContext(project, config, "bench", references(), options)
            each = projects.predictions.predict_each(context, tasks, lambda: False)
            return sum(one() is not None for _, one in each)

        def click(number: int, content: bytes) -> None:
            task = add(number, content)
            width, height = PIL.Image.open(io.BytesIO(content)).size
            point = {
                "id": "p", "type": "keypointlabels", "from_name": "point", "to_name": "image", "origin": "manual",
                "original_width": width, "original_height": height, "image_rotation": 0,
                "value": {"x": 45.0, "y": 40.0, "width": 0.5, "keypointlabels": ["Thing"]},
            }  # fmt: skip
            body = {
                "tasks": [task], "project": _PROJECT_KEY,
                "label_config": _LABEL_CONFIG, "params": {"context": {"result": [point]}},
            }  # fmt: skip
            answer = session.post(f"http://127.0.0.1:{server.server_port}/predict", json=body, timeout=600)
            answer.raise_for_status()

        try:
            yield click, predict
        finally:
            server.shutdown()
            thread.join(10)
            projects.close()


class _LocalImages:
    """In place of Label Studio: images from memory."""

    def __init__(self, files: Mapping[int, bytes]) -> None:
        self._files = files

    def fetcher(self, project_key: ProjectKey) -> "_LocalImages":
        return self

    def fetch(self, url: str, task_id: int | None) -> bytes:
        return self._files[int(url.strip("/"))]

    def fetch_if_changed(self, url: str, task_id: int | None, known: Validators | None) -> FetchedFile:
        """Answer like a server that knows its files have not changed."""
        if known is not None:
            return FetchedFile(None, known)
        return FetchedFile(self.fetch(url, task_id), Validators(etag=url))

    def close(self) -> None:
        pass


def square(image: Image) -> Mask:
    """Return a mask in the middle of the upper left."""
    mask = np.zeros(image.shape[:2], bool)
    mask[image.shape[0] // 4 : image.shape[0] // 2, image.shape[1] // 4 : image.shape[1] // 2] = True
    return mask


def photograph() -> bytes:
    """scikit-image's astronaut as a 640 x 480 px JPEG."""
    import cv2
    from skimage import data

    crop = cv2.resize(data.astronaut()[:384], (640, 480), interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    PIL.Image.fromarray(crop).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
