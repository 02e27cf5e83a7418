"""A Label Studio server of our own, for the demo and the end-to-end tests, and the calls of its API that they make."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from PIL import Image as PillowImage

from backend.cli.label_studio_env import protection_but
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup
from backend.core.types import Image, Json, Mask
from backend.errors import ConfigurationError, LabelStudioError
from backend.own_http import Session, with_loopback_direct

VERSION = "1.23.2"
USERNAME = "demo@example.com"
PASSWORD = "softmatcher-demo"  # noqa: S105  # of a server on loopback, made for looking at
TOKEN = "0123456789abcdef0123456789abcdef01234567"  # noqa: S105
FIRST_START_S = 240
NAME = "label-studio"

"""What Label Studio sends and takes; its fields are in the API reference of Label Studio."""


def label_studio_program() -> Path:
    """Path of the `label-studio` command that `make` installs.

    Raises:
        ConfigurationError: it is not there.
    """
    program = Path(".venv-label-studio/bin/label-studio").absolute()
    if not program.exists():
        raise ConfigurationError(f"Label Studio is not installed: {program} is missing; run `make install`")
    return program


def start_label_studio(
    processes: ProcessGroup, program: Path, data_dir: Path, port: int, changes: Mapping[str, str] | None = None
) -> "LabelStudio":
    """Start a server and wait until it answers: half a minute on new data, seconds after that.

    Args:
        processes: where it runs, under the name `label-studio`.
        program: path of the `label-studio` command.
        data_dir: folder of its database and uploads; created.
        port: to listen on, loopback only.
        changes: environment variables that go before ours.

    Raises:
        ProcessFailedError: it did not come up.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    url = f"http://{LOOPBACK}:{port}"
    foreign = ("SOFTMATCHER_", "LABEL_STUDIO_", "DJANGO_", "POSTGRE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data_dir.resolve()),
        "LABEL_STUDIO_USERNAME": USERNAME,
        "LABEL_STUDIO_PASSWORD": PASSWORD,
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
        # Read when the organisation is made, at the first start.
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_HOST": url,
        # By default Label Studio refuses to talk to a backend on this machine.
        **protection_but(["127.0.0.0/8"]),
        # Nothing calls out.
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LOG_LEVEL": "INFO",
    }
    command = [str(program), "start", "--no-browser", "--internal-host", LOOPBACK, "--port", str(port)]
    processes.start(NAME, command, with_loopback_direct(environment | dict(changes or {})))
    processes.wait_for_http(NAME, f"{url}/health", timeout_s=FIRST_START_S)
    return LabelStudio(url, TOKEN)


class LabelStudio:
    """The API of one server. Every call raises `LabelStudioError` with the server's own words if it refuses."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.session = Session()
        self.session.headers["Authorization"] = f"Token {token}"

    def __enter__(self) -> "LabelStudio":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.session.close()

    @contextmanager
    def authorized(self, authorization: str) -> Iterator[None]:
        """Inside, calls carry this Authorization header."""
        before = self.session.headers["Authorization"]
        self.session.headers["Authorization"] = authorization
        try:
            yield
        finally:
            self.session.headers["Authorization"] = before

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Call the API and return its answer: the JSON of the answer, None if it is empty."""
        answer = self.session.request(method, f"{self.url}{path}", timeout=180, **arguments)
        if not answer.ok:
            raise LabelStudioError(f"Label Studio: {method} {path}: {answer.status_code} {answer.text[:1000]}")
        return answer.json() if answer.content else None

    def personal_access_token(self) -> str:
        """Make the user's personal access token; possible once."""
        return str(self.call("POST", "/api/token/")["token"])

    def create_project(self, title: str, label_config: str, **settings: Any) -> int:
        """Make a project; its id."""
        body = {"title": title, "label_config": label_config, **settings}
        return int(self.call("POST", "/api/projects/", json=body)["id"])

    def project(self, project: int) -> Json:
        """Return everything about a project."""
        found: Json = self.call("GET", f"/api/projects/{project}/")
        return found

    def update_project(self, project: int, **changes: Any) -> None:
        """Change fields of a project."""
        self.call("PATCH", f"/api/projects/{project}/", json=changes)

    def upload_images(self, project: int, images: Mapping[str, Image | bytes]) -> dict[str, int]:
        """Upload images, one task each.

        Args:
            project: id.
            images: file name without its ending -> (H, W, 3) uint8 RGB, or the bytes of a file as they are.

        Returns:
            File name without its ending -> id of the task.
        """
        tasks: dict[str, int] = {}
        for name, image in images.items():
            content = image if isinstance(image, bytes) else _png(image)
            tasks[name] = self.upload_file(project, f"{name}.png", content)
        return tasks

    def upload_file(self, project: int, name: str, content: bytes) -> int:
        """Upload a file as a task; its id."""
        imported = self.call(
            "POST", f"/api/projects/{project}/import?return_task_ids=true", files={"file": (name, content)}
        )
        (task,) = imported["task_ids"]
        return int(task)

    def import_tasks(self, project: int, tasks: Sequence[Json]) -> list[int]:
        """Import tasks as JSON, perhaps with annotations; their ids."""
        imported = self.call("POST", f"/api/projects/{project}/import?return_task_ids=true", json=list(tasks))
        return [int(task) for task in imported["task_ids"]]

    def task(self, task: int) -> Json:
        """Return a task with its annotations and predictions; asks the backend for a prediction as opening it does."""
        found: Json = self.call("GET", f"/api/tasks/{task}/")
        return found

    def delete_task(self, task: int) -> None:
        """Delete a task."""
        self.call("DELETE", f"/api/tasks/{task}/")

    def connect_backend(
        self, project: int, url: str, *, basic_auth: tuple[str, str] | None = None, extra_params: Any = None
    ) -> int:
        """Connect a backend to a project, as its settings page does; the id of the connection."""
        body: Json = {"project": project, "url": url, "title": "Softmatcher", "is_interactive": True}
        if basic_auth is not None:
            user, password = basic_auth
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
        if extra_params is not None:
            body["extra_params"] = extra_params
        return int(self.call("POST", "/api/ml/", json=body)["id"])

    def backend(self, backend: int) -> Json:
        """Return everything about a connection: its state (`CO`: connected) and the model version; asks the backend."""
        found: Json = self.call("GET", f"/api/ml/{backend}")
        return found

    def webhooks(self, project: int) -> list[Json]:
        """Return the webhooks of a project."""
        found: list[Json] = self.call("GET", f"/api/webhooks/?project={project}")
        return found

    def train(self, backend: int) -> None:
        """«Start training»."""
        self.call("POST", f"/api/ml/{backend}/train", json={})

    def interact(self, backend: int, task: int, regions: Sequence[Json]) -> Json:
        """Ask for the prediction of a smart tool; the answer has `data` or `errors`."""
        answer: Json = self.call(
            "POST",
            f"/api/ml/{backend}/interactive-annotating",
            json={"task": task, "context": {"result": list(regions)}},
        )
        return answer

    def annotate(self, task: int, regions: Sequence[Json], **fields: Any) -> int:
        """Submit an annotation; its id."""
        body = {"result": list(regions), **fields}
        return int(self.call("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])

    def update_annotation(self, annotation: int, regions: Sequence[Json]) -> None:
        """Update an annotation."""
        self.call("PATCH", f"/api/annotations/{annotation}/", json={"result": list(regions)})

    def delete_annotation(self, annotation: int) -> None:
        """Delete an annotation."""
        self.call("DELETE", f"/api/annotations/{annotation}/")

    def retrieve_predictions(self, project: int, tasks: Sequence[int] | None = None) -> None:
        """«Retrieve predictions» of the data manager, for some tasks or for all."""
        chosen: Json = {"all": True, "excluded": []} if tasks is None else {"all": False, "included": list(tasks)}
        self.call(
            "POST",
            f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}",
            json={"selectedItems": chosen, "filters": {"conjunction": "and", "items": []}, "ordering": []},
        )

    def predictions(self, project: int) -> dict[int, list[Json]]:
        """Return the stored predictions of a project: task -> predictions, oldest first."""
        found: list[Json] = self.call("GET", f"/api/predictions/?project={project}")
        by_task: dict[int, list[Json]] = {}
        for prediction in sorted(found, key=lambda each: int(each["id"])):
            by_task.setdefault(int(prediction["task"]), []).append(prediction)
        return by_task

    def delete_predictions(self, project: int, tasks: Sequence[int]) -> None:
        """Delete all predictions of the tasks."""
        self.call(
            "POST",
            f"/api/dm/actions?id=delete_tasks_predictions&project={project}",
            json={"selectedItems": {"all": False, "included": list(tasks)}},
        )


def _png(image: Image) -> bytes:
    buffer = BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def key_point(point_xy: tuple[float, float], size_hw: tuple[int, int], label: str, *, is_positive: bool = True) -> Json:
    """Return the region of a key point in the control `point`, as the editor makes it; the point in px."""
    value = {"x": 100 * point_xy[0] / size_hw[1], "y": 100 * point_xy[1] / size_hw[0], "width": 0.5}
    return _region(f"point-{point_xy[0]:.0f}-{point_xy[1]:.0f}", "keypointlabels", "point", size_hw) | {
        "value": value | {"keypointlabels": [label]},
        "is_positive": is_positive,
    }


def rectangle(box_xyxy: tuple[float, float, float, float], size_hw: tuple[int, int], label: str) -> Json:
    """Return the region of a rectangle in the control `box`, as the editor makes it; the corners in px."""
    left, top, right, bottom = box_xyxy
    height, width = size_hw
    value = {
        "x": 100 * left / width,
        "y": 100 * top / height,
        "width": 100 * (right - left) / width,
        "height": 100 * (bottom - top) / height,
        "rotation": 0,
        "rectanglelabels": [label],
    }
    return _region(f"box-{left:.0f}-{top:.0f}", "rectanglelabels", "box", size_hw) | {"value": value}


def brush(strokes: Mask, label: str) -> Json:
    """Return the region of brush strokes in the control `brush`, as the editor submits it, of a painted (H, W) bool."""
    height, width = strokes.shape
    rle = mask2rle(np.where(strokes, np.uint8(255), np.uint8(0)))
    region = _region(f"brush-{label}-{int(strokes.sum())}", "brushlabels", "brush", (height, width))
    return region | {"value": {"format": "rle", "rle": rle, "brushlabels": [label]}}


def _region(identifier: str, kind: str, control: str, size_hw: tuple[int, int]) -> Json:
    return {
        "id": identifier,
        "type": kind,
        "from_name": control,
        "to_name": "image",
        "origin": "manual",
        "original_width": size_hw[1],
        "original_height": size_hw[0],
        "image_rotation": 0,
    }


def mask_of_regions(regions: Sequence[Json], label: str, size_hw: tuple[int, int]) -> Mask:
    """Union of the brush regions of a label, read as Label Studio's own tools read them.

    Raises:
        LabelStudioError: a mask has another size than the image: the editor would show nothing.
    """
    height, width = size_hw
    union: Mask = np.zeros(size_hw, np.bool_)
    for region in regions:
        if region["type"] != "brushlabels" or label not in region["value"]["brushlabels"]:
            continue
        rgba = decode_rle(region["value"]["rle"])
        if rgba.size != height * width * 4:
            raise LabelStudioError(
                f"region {region['id']}: expected a mask of {width}x{height} px, got {rgba.size // 4} pixels"
            )
        union |= rgba.reshape(height, width, 4)[..., 3] > 127
    return union


def intersection_over_union(first: Mask, second: Mask) -> float:
    """IoU of two masks of one size; 1 if both are empty."""
    union = int((first | second).sum())
    return 1.0 if union == 0 else int((first & second).sum()) / union
