"""A profile whose parts tell how long they took, for `bench pipeline`."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from backend.core.arrays import Device
from backend.engine.options import MatchOptions
from backend.engine.plans import SegmentationPlan
from backend.engine.softmatcher import Softmatcher
from backend.models.calibrations import read_calibration
from backend.models.cpu_engine import CpuEngine
from backend.models.device.placement import good_threads
from backend.models.loading import ModelSource, load_profile, missing_weights

PARTS = ("read", "encode", "embed", "match", "decode", "clean-up", "RLE", "HTTP and the rest")


@dataclass
class Times:
    """Seconds by part of one run, and of networks' forward passes among them, of which those of the two encoders."""

    parts: dict[str, float] = field(default_factory=dict)
    raw: dict[str, float] = field(default_factory=dict)
    forward_s: float = 0.0
    encoders_s: float = 0.0
    total_s: float = 0.0

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds


class KeepingSoftmatcher(Softmatcher):
    """Random networks believe in nothing: with them every mask counts, or what comes after it would cost nothing."""

    def plan(
        self, encoded: Any, references: Any, options: MatchOptions | None = None, **further: Any
    ) -> SegmentationPlan:
        """Plan as the engine does, with no least presence probability."""
        return super().plan(encoded, references, replace(options or MatchOptions(), minimum_presence=0.0), **further)


class Bench:
    """One profile on one device."""

    def __init__(
        self, profile: str, device: Device, weights_folder: Path, *, threads: int = 0, calls_at_a_time: int = 1
    ) -> None:
        threads = threads or good_threads(device, calls_at_a_time)
        engine = CpuEngine.installed(threads=threads)
        source = ModelSource(weights_folder, device, is_random=True, engine=engine)
        self.encoder, self.segmenter = load_profile(profile, source)
        self._now = Times()
        self._lock = threading.Lock()
        networks = (*getattr(self.encoder, "device_runners", ()), *getattr(self.segmenter, "device_runners", ()))
        for part in networks:
            part.on_forward = partial(self._on_forward, is_encoder=part is not networks[-1])
        self.has_forward_times = bool(networks)
        kind = KeepingSoftmatcher if missing_weights(profile, weights_folder) else Softmatcher
        self.softmatcher = kind(self.encoder, self.segmenter, read_calibration("lite.json"), on_stage=self.on_stage)

    def _on_forward(self, seconds: float, *, is_encoder: bool) -> None:
        with self._lock:
            self._now.forward_s += seconds
            self._now.encoders_s += seconds * is_encoder

    def on_stage(self, stage: str, seconds: float) -> None:
        """Observer of the pipeline and of the service."""
        with self._lock:
            if stage == "encode" and not self.has_forward_times:
                self._now.forward_s += seconds
                self._now.encoders_s += seconds
            self._now.add(stage, seconds)

    @contextmanager
    def run(self) -> Iterator[Times]:
        """Time what the block does."""
        self._now = times = Times()
        started = time.perf_counter()
        yield times
        times.total_s = time.perf_counter() - started
        times.raw = dict(times.parts)
        self._now = Times()  # what is done between two runs belongs to neither
        parts = times.parts
        # What surrounds decoding: points sampled, masks joined and cleaned, brought to the image's size.
        around = ("affinity", "prompt", "clean-up", "upsample", "separate")
        parts["clean-up"] = sum(parts.pop(stage, 0.0) for stage in around)
        parts["RLE"] = parts.pop("rle", 0.0)
        parts["HTTP and the rest"] = max(0.0, times.total_s - sum(parts.get(part, 0.0) for part in PARTS[:-1]))
