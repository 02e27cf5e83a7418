"""The adapter, under the server of PyPI's label-studio-ml, connected to the real Label Studio."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from backend.cli.demo.coins import COIN, LABEL_CONFIG
from backend.cli.demo.label_studio_server import TOKEN, LabelStudio, intersection_over_union, mask_of_regions
from backend.cli.process.supervisor import LOOPBACK, ProcessGroup, free_port
from backend.settings import load_settings
from backend.store import Store
from tests.e2e.scene import MARKED, SAMPLES, TARGETS, coin_mask, point_on, wait_until

ROOT = Path(__file__).parents[2]


def test_same_engine_under_label_studio_ml(label_studio: LabelStudio, processes: ProcessGroup, tmp_path: Path) -> None:
    folder, data_dir = tmp_path / "ml-backend", tmp_path / "data"
    script = f"{ROOT / 'backend' / 'model.py'}:SoftmatcherBackend"
    program = Path(sys.executable).with_name("label-studio-ml")
    subprocess.run([program, "init", folder, "--script", script], check=True, cwd=tmp_path, capture_output=True)
    port = free_port()
    environment = dict(os.environ) | {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": TOKEN,
        "SOFTMATCHER_DATA_DIR": str(data_dir),
    }
    command = [sys.executable, str(folder / "_wsgi.py"), "--host", LOOPBACK, "--port", str(port)]
    processes.start("label-studio-ml", command, environment)
    url = f"http://{LOOPBACK}:{port}"
    processes.wait_for_http("label-studio-ml", f"{url}/health", timeout_s=120)
    project = label_studio.create_project("label-studio-ml", LABEL_CONFIG)
    try:
        names = (MARKED, TARGETS[0])
        tasks = label_studio.upload_images(project, {name: SAMPLES[name].image for name in names})
        connection = label_studio.connect_backend(project, url)

        answer = label_studio.interact(connection, tasks[MARKED], [point_on(MARKED, 2)])
        mask = mask_of_regions(answer["data"]["result"], COIN, SAMPLES[MARKED].size_hw)
        assert intersection_over_union(mask, coin_mask(MARKED, 2)) > 0.8

        label_studio.annotate(tasks[MARKED], [point_on(MARKED, 2)])
        store = Store(load_settings(data_dir=data_dir).store_url)
        wait_until(lambda: sum(store.count_references().values()) == 1, "one reference", 120)
        store.close()
        label_studio.retrieve_predictions(project, [tasks[TARGETS[0]]])
        (prediction,) = label_studio.predictions(project)[tasks[TARGETS[0]]]
        found = mask_of_regions(prediction["result"], COIN, SAMPLES[TARGETS[0]].size_hw)
        assert intersection_over_union(found, np.asarray(SAMPLES[TARGETS[0]].masks[COIN])) > 0.7
    finally:
        label_studio.call("DELETE", f"/api/projects/{project}/")
        processes.stop("label-studio-ml")
