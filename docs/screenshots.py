"""Make the pictures of README and tour again: a labeler at work on the demo's steel parts, in a real Label Studio.

    .venv/bin/python docs/screenshots.py [DATA_FOLDER]

Needs what `make install` installs, and Chromium (`CHROMIUM=PATH` if it is not at /usr/bin/chromium). Starts Label
Studio, queue, service and worker, and ends them; with a data folder that already has a Label Studio it starts sooner.
Writes PNGs of up to 300 kB to docs/images, and `live-gallery.webp`, an animated picture of up to 2 MB.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import requests
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from playwright.sync_api import Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from rich.console import Console

from backend.cli.demo.coins import SampleTask
from backend.cli.demo.demo import start_all
from backend.cli.demo.label_studio_server import PASSWORD, USERNAME, LabelStudio
from backend.cli.demo.sample_projects import SampleProject, sample_projects
from backend.cli.demo.scenario import count_references
from backend.cli.demo.steel import CORROSION, SCUFF
from backend.cli.process.signals import signals_as_interrupt
from backend.cli.process.supervisor import ProcessGroup

IMAGES = Path(__file__).parent / "images"
MAX_BYTES = 300_000
ANIMATION_MAX_BYTES = 2_000_000
ANIMATION_WIDTH_PX = 900
CAPTION_PX = 44
SLOW_MS = 120_000
VIEWPORT = {"width": 1360, "height": 860}
EDITOR = {"x": 240, "y": 48, "width": 1120, "height": 812}
"""The window without the list of tasks to the left."""
TABLE = {"x": 0, "y": 48, "width": 1030, "height": 640}
EDITOR_WIDTH_PX = 960
EXPLAINED_LABEL_PX = 700
"""Height of the first label's part of the explanation."""
HIDDEN_COLUMNS = (
    "inner_id",
    "cancelled_annotations",
    "annotations_ids",
    "annotators",
    "annotations_results",
    "predictions_results",
    "completed_at",
    "storage_filename",
    "created_at",
    "updated_at",
    "updated_by",
    "avg_lead_time",
    "draft_exists",
)
POINT_LABELS_FROM = 2
"""Label Studio shows the labels of each control in the order of the config: brush, point, box; two labels each."""


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    console = Console()
    with signals_as_interrupt(), ExitStack() as stack:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["SOFTMATCHER_REFERENCE_WAIT_S"] = "10"
        queue = stack.enter_context(ExitStack())
        processes = stack.enter_context(ProcessGroup(folder / "logs"))
        with console.status("Starting ...") as status:
            label_studio, service_url = start_all(console, status, processes, queue, folder)
        stack.callback(label_studio.close)
        page = stack.enter_context(logged_in(label_studio))
        work_on_steel(page, label_studio, service_url)
        work_in_garage(page, label_studio, service_url)
        watch_the_gallery(page, label_studio, service_url)
    for path in sorted(IMAGES.glob("*.png")):
        console.print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
        if path.stat().st_size > MAX_BYTES:
            sys.exit(f"{path} is larger than {MAX_BYTES} bytes")


class logged_in:  # noqa: N801  # reads as what it gives
    """Give a browser page that is logged in."""

    def __init__(self, label_studio: LabelStudio) -> None:
        self._url = label_studio.url
        self._playwright = sync_playwright()

    def __enter__(self) -> Page:
        program = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
        self._browser = self._playwright.__enter__().chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        page = self._browser.new_context(viewport=VIEWPORT).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(SLOW_MS)
        page.goto(f"{self._url}/user/login/")
        page.fill("input[name=email]", USERNAME)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        return page

    def __exit__(self, *error: object) -> None:
        self._browser.close()
        self._playwright.__exit__(*error)


def work_on_steel(page: Page, label_studio: LabelStudio, service_url: str) -> None:
    """Take the pictures from the first click to the predicted project."""
    steel: SampleProject = sample_projects()[2]
    samples = {task.name: task for task in steel.tasks}
    project = label_studio.create_project("Steel parts", steel.label_config)
    tasks = label_studio.upload_images(project, {name: sample.image for name, sample in samples.items()})
    label_studio.connect_backend(project, service_url)
    data_manager = f"{label_studio.url}/projects/{project}/data"
    marked = samples[steel.marked]

    open_task(page, f"{data_manager}?task={tasks[marked.name]}")
    page.locator("text=Auto-Annotation").first.click()
    accept = ask_for_mask(page, marked)
    settle(page)
    shoot(page, "suggestion.png", clip=EDITOR, width=EDITOR_WIDTH_PX)
    accept.click()
    wait_until(lambda: kinds(page) == ["brushlabels"], "the mask is accepted")

    page.locator("text=Auto-Annotation").first.click()
    page.locator('.lsf-toolbar button[aria-label="brush-tool"]').first.click()
    page.locator(".lsf-label_clickable").nth(1).click()
    drag_over(page, marked, SCUFF, 0)
    wait_until(lambda: len(kinds(page)) == 2, "the stroke is a region")
    settle(page)
    shoot(page, "scribble.png", clip=EDITOR, width=EDITOR_WIDTH_PX)
    page.get_by_test_id("bottombar-submit-button").click()
    wait_until(lambda: count_references(service_url, project) == 2, "two references")

    open_task(page, f"{data_manager}?task={tasks['steel-5']}")
    wait_until(lambda: len(kinds(page)) == 2, "the next task is pre-annotated")
    settle(page)
    shoot(page, "prediction.png", clip=EDITOR, width=EDITOR_WIDTH_PX)

    started = requests.post(f"{service_url}/projects/{project}/propagations", json={}, timeout=30).json()
    address = f"{service_url}/projects/{project}/propagations/{started['id']}"
    wait_until(lambda: requests.get(address, timeout=30).json()["state"] in ("done", "failed"), "propagated")
    page.goto(f"{service_url}/projects/{project}")
    page.wait_for_load_state("networkidle")
    time.sleep(1)
    shoot(page, "project-page.png", whole=True)

    # Label Studio averages the scores of the project's chosen version, which is the model's title after connecting.
    version = requests.get(address, timeout=30).json()["model_version"]
    label_studio.update_project(project, model_version=version)
    show_columns(label_studio, project)
    page.goto(data_manager)
    page.wait_for_selector(".dm-table__row-wrapper img, .dm-image, img[src*='upload'], img[src*='resolve']")
    time.sleep(3)
    shoot(page, "data-manager.png", clip=TABLE)

    explained = requests.get(f"{service_url}/projects/{project}/tasks/{tasks['steel-5']}/explain.png", timeout=120)
    explained.raise_for_status()
    save(explained.content, "explain.png", height=EXPLAINED_LABEL_PX)


def work_in_garage(page: Page, label_studio: LabelStudio, service_url: str) -> None:
    """Take a picture of strokes on one photograph, and one of the mask on the other; of the image alone."""
    garage: SampleProject = sample_projects()[1]
    project = label_studio.create_project("Garage", garage.label_config)
    chosen = {task.name: task.image for task in garage.tasks[:2]}
    tasks = label_studio.upload_images(project, chosen)
    label_studio.connect_backend(project, service_url)
    label_studio.annotate(tasks[garage.marked], garage.scribbles)
    wait_until(lambda: count_references(service_url, project) == 1, "a reference")
    for task, picture in zip(tasks.values(), ("garage-scribble.png", "garage-prediction.png"), strict=True):
        open_task(page, f"{label_studio.url}/projects/{project}/data?task={task}")
        wait_until(lambda: kinds(page) == ["brushlabels"], f"{picture}: a region is shown")
        settle(page)
        shown = page.locator(".konvajs-content").first.bounding_box()
        assert shown is not None
        # Without the brush's slider, which floats over the right edge.
        clip = {"x": shown["x"], "y": shown["y"], "width": shown["width"] - 40, "height": shown["height"]}
        shoot(page, picture, clip=clip, width=480)


def watch_the_gallery(page: Page, label_studio: LabelStudio, service_url: str) -> None:
    """Take the frames of the loop: mark and submit in the editor, and what the gallery shows meanwhile."""
    steel: SampleProject = sample_projects()[2]
    samples = {task.name: task for task in steel.tasks}
    project = label_studio.create_project("Steel parts", steel.label_config)
    tasks = label_studio.upload_images(project, {name: sample.image for name, sample in samples.items()})
    label_studio.connect_backend(project, service_url)
    frames: list[Frame] = []
    gallery = page.context.new_page()
    gallery.set_default_timeout(SLOW_MS)
    gallery.goto(f"{service_url}/projects/{project}")
    gallery.wait_for_load_state("networkidle")
    frames.append(Frame(gallery.screenshot(), "A new project: nothing is predicted yet", 1800))

    marked = samples[steel.marked]
    page.bring_to_front()
    open_task(page, f"{label_studio.url}/projects/{project}/data?task={tasks[marked.name]}")
    page.locator("text=Auto-Annotation").first.click()
    accept = ask_for_mask(page, marked)
    settle(page)
    frames.append(Frame(page.screenshot(clip=EDITOR), "In Label Studio: one click gives a mask", 2200))  # type: ignore[arg-type]
    accept.click()
    wait_until(lambda: kinds(page) == ["brushlabels"], "the mask is accepted")
    settle(page)
    frames.append(Frame(page.screenshot(clip=EDITOR), "Accept it, and submit", 1600))  # type: ignore[arg-type]
    page.get_by_test_id("bottombar-submit-button").click()

    gallery.bring_to_front()
    with_masks = gallery.locator(".tile:has(.after .region)")
    wait_until(lambda: with_masks.count() >= 2, "the first tiles change")
    frames.append(Frame(gallery.screenshot(), "The gallery, beside it: tiles change without a click", 1600))
    wait_until(lambda: gallery.locator(".tile[data-state=unknown]").count() == 0, "all tiles change")
    gallery.wait_for_timeout(7000)  # what was said is hidden by then
    frames.append(Frame(gallery.screenshot(), "Each has its mask, with a score", 2600))
    decided = gallery.locator(".tile:has([data-act=accept])").first
    decided.locator("[data-act=accept]").click()
    gallery.locator(".badge.annotated").nth(1).wait_for()
    gallery.wait_for_timeout(3000)
    frames.append(Frame(gallery.screenshot(), "Right? Accept: an annotation, and a reference like any other", 2600))
    gallery.close()
    save_animation(frames, IMAGES / "live-gallery.webp")


@dataclass(frozen=True)
class Frame:
    """A frame of an animated picture: a PNG, the line below it, and how long it is shown, ms."""

    png: bytes
    caption: str
    shown_ms: int


def save_animation(frames: Sequence[Frame], path: Path) -> None:
    """Save frames of one size, each with its caption below."""
    width = ANIMATION_WIDTH_PX
    height = round(width * VIEWPORT["height"] / VIEWPORT["width"])
    drawn = []
    for frame in frames:
        picture = PillowImage.open(BytesIO(frame.png)).convert("RGB")
        picture.thumbnail((width, height), PillowImage.Resampling.LANCZOS)
        canvas = PillowImage.new("RGB", (width, height + CAPTION_PX), "#1b2a41")
        canvas.paste(picture, ((width - picture.width) // 2, 0))
        at = (width // 2, height + CAPTION_PX // 2)
        ImageDraw.Draw(canvas).text(at, frame.caption, fill="white", font=ImageFont.load_default(20), anchor="mm")
        drawn.append(canvas)
    shown_ms = [frame.shown_ms for frame in frames]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=shown_ms, loop=0, quality=80, method=6)
    if path.stat().st_size > ANIMATION_MAX_BYTES:
        sys.exit(f"{path} is larger than {ANIMATION_MAX_BYTES} bytes")


def show_columns(label_studio: LabelStudio, project: int) -> None:
    """Hide the columns of the data manager that do not matter here, and order it by score."""
    views = label_studio.call("GET", f"/api/dm/views/?project={project}")
    hidden = [f"tasks:{name}" for name in HIDDEN_COLUMNS]
    for view in views:
        data = view["data"] | {"hiddenColumns": {"explore": hidden, "labeling": hidden}}
        data["ordering"] = ["tasks:predictions_score"]
        label_studio.call("PATCH", f"/api/dm/views/{view['id']}/?project={project}", json={"data": data})


def settle(page: Page) -> None:
    """Wait until masks are painted and tool tips are gone."""
    page.mouse.move(VIEWPORT["width"] - 40, 20)
    time.sleep(2)


def open_task(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".konvajs-content canvas")
    page.wait_for_function(
        "() => window.Htx?.annotationStore?.selected?.names.get('image')?.stageWidth > 50"
        " && window.Htx.annotationStore.selected.names.get('image').imageIsLoaded"
    )


def ask_for_mask(page: Page, sample: SampleTask) -> Locator:
    """Click with the smart key-point tool, again if the page missed it; return the button that accepts the mask."""
    accept = page.get_by_test_id("bottombar-accept-suggestions-button")
    for _ in range(5):
        page.locator(".lsf-tool_smart").first.hover()
        page.locator('.lsf-tool_smart[aria-label="key-point-tool"]').first.click()
        time.sleep(1)
        page.locator(".lsf-label_clickable").nth(POINT_LABELS_FROM).click()
        time.sleep(1)
        page.mouse.click(*on_screen(page, middle_of(sample, CORROSION, 0), sample.size_hw))
        with suppress(PlaywrightTimeoutError):
            accept.wait_for(timeout=15_000)
            return accept
    sys.exit("no suggestion appeared")


def on_screen(page: Page, point_xy: tuple[float, float], size_hw: tuple[int, int]) -> tuple[float, float]:
    """Return where a point of the image, px, is in the window."""
    width, height = page.evaluate(
        "() => { const image = Htx.annotationStore.selected.names.get('image');"
        " return [image.stageWidth, image.stageHeight]; }"
    )
    canvas = page.locator(".konvajs-content canvas").first.bounding_box()
    assert canvas is not None
    return canvas["x"] + point_xy[0] / size_hw[1] * width, canvas["y"] + point_xy[1] / size_hw[0] * height


def drag_over(page: Page, sample: SampleTask, label: str, index: int) -> None:
    """Paint one brush stroke along the middle of a long object."""
    numbers = np.unique(sample.objects[sample.masks[label]])
    rows, columns = np.nonzero(sample.objects == numbers[index])
    points = np.stack([columns, rows], axis=1).astype(float)
    middle = points.mean(axis=0)
    axis = np.linalg.svd(points - middle, full_matrices=False)[2][0]
    reach = 0.7 * np.abs((points - middle) @ axis).max()
    page.mouse.move(*on_screen(page, tuple(middle - reach * axis), sample.size_hw))
    page.mouse.down()
    for part in np.linspace(-1, 1, 25)[1:]:
        page.mouse.move(*on_screen(page, tuple(middle + part * reach * axis), sample.size_hw))
    page.mouse.up()


def middle_of(sample: SampleTask, label: str, index: int) -> tuple[float, float]:
    numbers = np.unique(sample.objects[sample.masks[label]])
    rows, columns = np.nonzero(sample.objects == numbers[index])
    return float(columns.mean()), float(rows.mean())


def kinds(page: Page) -> list[str]:
    """Return the types of the regions on the screen."""
    found: list[str] = page.evaluate("() => Htx.annotationStore.selected.serializeAnnotation().map(each => each.type)")
    return found


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.2)


def shoot(
    page: Page, name: str, *, whole: bool = False, clip: Mapping[str, float] | None = None, width: int | None = None
) -> None:
    save(page.screenshot(full_page=whole, clip=clip), name, width=width)  # type: ignore[arg-type]


def save(png: bytes, name: str, *, width: int | None = None, height: int | None = None) -> None:
    """Save a PNG scaled to a width and cut to a height, with a palette: enough for one photograph and few colours."""
    picture = PillowImage.open(BytesIO(png)).convert("RGB")
    if height is not None:
        picture = picture.crop((0, 0, picture.width, min(height, picture.height)))
    if width is not None and picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), PillowImage.Resampling.LANCZOS)
    small = picture.quantize(256, kmeans=2, dither=PillowImage.Dither.NONE)
    small.save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
