"""`try` in Chromium: draw on one photograph of a folder, see masks on the others, keep, export, start again."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, expect
from pycocotools.coco import COCO

from backend.cli.demo.coins import COIN
from backend.cli.demo.label_studio_server import LabelStudio, intersection_over_union
from backend.cli.process.supervisor import free_port
from testing.fakes import png
from tests.e2e.accessibility import SCHEMES, WIDTHS_PX, violations
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, centre_of, coin_mask, own_environment, wait_until

pytestmark = pytest.mark.browser

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
SLOW_MS = 120_000
expect.set_options(timeout=SLOW_MS)
ODD = "Münzen & <b>more.png"
"""Name of a file."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six tiles of scikit-image's photograph of coins, one of them with an odd name, and a broken file."""
    made = tmp_path / "coins"
    made.mkdir()
    for name, sample in SAMPLES.items():
        (made / (ODD if name == TARGETS[-1] else f"{name}.png")).write_bytes(png(sample.image))
    (made / "broken.jpg").write_bytes(b"this is no image")
    return made


@contextmanager
def tried(folder: Path, *options: str) -> Iterator[str]:
    """`try` over a folder, ended as by Ctrl-C; gives the address of its page."""
    port = free_port()
    command = [sys.executable, "-m", "backend", "try", str(folder), "--port", str(port), *options]
    environment = own_environment(SOFTMATCHER_DATA_DIR=str(folder.parent / "data"), TMPDIR=str(folder.parent))
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{port}/projects/1"
        try:
            for line in process.stdout:
                if url in line.decode():
                    break
            health = url.replace("/projects/1", "/health")
            wait_until(lambda: requests.get(health, timeout=60).json()["model"] == "ready", "models are loaded", 120)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
            said = process.stdout.read().decode()
            assert process.wait(60) == 0, said
    assert "Traceback" not in said
    assert not list(folder.parent.glob("softmatcher-try-*")), "nothing temporary is left"


def opened(browser: Browser, url: str, messages: list[str]) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.set_default_timeout(SLOW_MS)
    page.on(
        "console",
        lambda message: messages.append(f"{message.text} {message.location}") if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(url)
    return page


def tile(name: str) -> str:
    return f'.tile[data-name="{ODD if name == TARGETS[-1] else f"{name}.png"}"]'


def click_on_coin(page: Page, name: str, number: int) -> None:
    photo = page.locator(f"{tile(name)} .photo")
    photo.scroll_into_view_if_needed()
    wait_until(lambda: bool(photo.evaluate("img => img.naturalWidth > 50")), "photograph shown")
    page.locator(f"{tile(name)} [data-act=draw]").click()
    box = photo.bounding_box()
    assert box
    height, width = SAMPLES[name].size_hw
    x, y = centre_of(coin_mask(name, number))
    scale = min(box["width"] / width, box["height"] / height)
    left, top = box["x"] + (box["width"] - scale * width) / 2, box["y"] + (box["height"] - scale * height) / 2
    page.mouse.click(left + scale * x, top + scale * y)


def test_masks_of_one_photograph_are_on_all_others_are_exported_and_stay(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    messages: list[str] = []
    store = tmp_path / "kept" / "coins.db"
    with tried(folder, "--labels", COIN, "--store", str(store)) as url:
        page = opened(browser, url, messages)
        expect(page.locator(".tile")).to_have_count(len(SAMPLES) + 1)
        expect(page.locator("#no-references")).to_contain_text("Choose Draw on an image below")
        expect(page.locator("text=Open in Label Studio")).to_have_count(0)
        click_on_coin(page, MARKED, 2)
        expect(page.locator(f"{tile(TARGETS[0])} .preview .line")).not_to_have_count(0)
        page.screenshot(path=ARTIFACTS / "try-preview.png", full_page=True)
        assert not list((store.parent / "coins.db.annotations" / "annotations").iterdir())
        page.locator("#try-keep").click()
        expect(page.locator(f"{tile(MARKED)} .badge.reference")).to_be_visible()
        for name in TARGETS:
            expect(page.locator(f"{tile(name)} .after .region")).not_to_have_count(0)
        expect(page.locator('.tile[data-name="broken.jpg"] .badge.failed')).to_contain_text("image must be one of")

        page.locator(f"{tile(TARGETS[0])} [data-act=accept]").click()
        expect(page.locator(f"{tile(TARGETS[0])} .badge.annotated")).to_be_visible()
        page.locator(f"{tile(TARGETS[0])} [data-act=remove]").click()
        page.locator("#ask-buttons button", has_text="Remove").click()
        expect(page.locator(f"{tile(TARGETS[0])} .badge.annotated")).to_have_count(0)
        page.locator("#new-label").fill("Rim & <edge>")
        page.locator("#add-label").click()
        expect(page.locator("#try-label option")).to_have_text([COIN, "Rim & <edge>"])
        page.screenshot(path=ARTIFACTS / "try.png", full_page=True)

        page.goto(f"{url}?tab=export")
        with page.expect_download() as download:
            page.locator("#download").click()
        assert mean_iou(Path(download.value.path()), tmp_path / "export") > 0.6
        # The broken file has no photograph.
        assert not [one for one in messages if "/tasks/1/photo.jpg" not in one], messages

    with tried(folder, "--store", str(store)) as url:
        page = opened(browser, url, messages)
        expect(page.locator(f"{tile(MARKED)} .badge.reference")).to_be_visible()
        for name in TARGETS:
            expect(page.locator(f"{tile(name)} .after .region")).not_to_have_count(0)
        expect(page.locator("#try-label option")).to_have_text([COIN, "Rim & <edge>"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["broken.jpg", ODD, *(f"{name}.png" for name in SAMPLES if name != TARGETS[-1])]
    ), "nothing is written into the folder"


def mean_iou(archive: Path, folder: Path) -> float:
    """Of the masks of a COCO export with those that are known."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    ious = []
    for path in folder.rglob("instances_*.json"):
        if "polygons" in path.name or not json.loads(path.read_text())["images"]:
            continue
        coco = COCO(str(path))
        for image in coco.loadImgs(coco.getImgIds()):
            known = [name for name in SAMPLES if image["file_name"].endswith(f"-{name}.png")]
            name = known[0] if known else TARGETS[-1]
            masks = [coco.annToMask(one) > 0 for one in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))]
            if name != MARKED:
                ious.append(max(intersection_over_union(mask, SAMPLES[name].masks[COIN]) for mask in masks))
    assert len(ious) == len(TARGETS)
    return sum(ious) / len(ious)


def test_no_rule_of_axe_is_broken_on_any_tab(browser: Browser, folder: Path) -> None:
    with tried(folder, "--labels", f"{COIN},Rim") as url:
        page = opened(browser, url, [])
        click_on_coin(page, MARKED, 2)
        expect(page.locator(f"{tile(TARGETS[0])} .preview .line")).not_to_have_count(0)
        assert violations(page) == []
        page.locator("#try-keep").click()
        for name in TARGETS:
            expect(page.locator(f"{tile(name)} .after .region")).not_to_have_count(0)
        for scheme in SCHEMES:
            for width in WIDTHS_PX:
                page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
                for tab in ("gallery", "next", "references", "quality", "export", "settings"):
                    page.goto(f"{url}?tab={tab}")
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
                    assert violations(page) == [], (tab, width, scheme)


def test_tasks_of_an_export_and_files_of_annotations_are_imported_by_label_studio(
    folder: Path, tmp_path: Path, label_studio: LabelStudio, local_files: Path
) -> None:
    with tried(folder, "--labels", COIN, "--store", str(tmp_path / "coins.db")) as url:
        drawn = requests.post(
            f"{url}/tasks/2/preview", json={"label": COIN, "strokes": [{"points": [[0.5, 0.5]]}]}, timeout=120
        ).json()
        requests.post(f"{url}/gallery/keep", json={"name": drawn["name"]}, timeout=60).raise_for_status()

        def are_there() -> bool:
            tiles = requests.get(f"{url}/gallery/tiles?ids=1,2,3,4,5,6,7&since=0", timeout=60).json()["tiles"]
            return all(one["state"] != "unknown" for one in tiles)

        wait_until(are_there, "all are predicted", 120)
        export = requests.get(f"{url}/export?format=label-studio&source=both&annotators=all", timeout=120)
    with zipfile.ZipFile(io.BytesIO(export.content)) as packed:
        packed.extractall(local_files)
    (out,) = (path.parent for path in local_files.rglob("tasks.json"))
    tasks = json.loads((out / "tasks.json").read_text())
    # The document root of this run is the folder above the export's.
    for task in tasks:
        task["data"]["image"] = task["data"]["image"].replace("?d=", f"?d={out.relative_to(local_files)}/")
    project = label_studio.create_project("imported", (out / "label-config.xml").read_text())
    label_studio.call("POST", "/api/storages/localfiles", json={
        "project": project, "path": str(out / "images"), "title": "images", "use_blob_urls": True,
    })  # fmt: skip
    ids = label_studio.import_tasks(project, tasks)
    assert len(ids) == len(tasks) >= 2
    (annotation_file,) = (tmp_path / "coins.db.annotations" / "annotations").glob("*.json")
    (own,) = label_studio.import_tasks(project, [json.loads(annotation_file.read_text())])
    imported = [label_studio.task(each) for each in (*ids, own)]
    assert sum(len(task["annotations"]) for task in imported) == 2
    assert sum(len(task["predictions"]) for task in imported) >= 1
    for task in imported:
        for one in (*task["annotations"], *task["predictions"]):
            assert all(region["value"]["rle"] for region in one["result"])
    shown = label_studio.session.get(f"{label_studio.url}{tasks[0]['data']['image']}", timeout=60)
    assert (shown.status_code, shown.content[:4]) == (200, b"\x89PNG")
