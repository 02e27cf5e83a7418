"""OpenVINO and PyTorch on the processor: the same features under one signature, and nothing sent to anybody."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backend.errors import ConfigurationError
from backend.models import cpu_engine, openvino_runtime
from backend.models.cpu_engine import CpuEngine
from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder

SIZES = [(480, 640), (640, 480), (50, 50), (1, 4000), (300, 1000)]


@pytest.fixture(scope="module")
def by_openvino() -> EfficientNetLiteEncoder:
    return EfficientNetLiteEncoder(engine=CpuEngine("openvino", threads=1, calls_at_a_time=2))


@pytest.fixture(scope="module")
def by_torch() -> EfficientNetLiteEncoder:
    return EfficientNetLiteEncoder(engine=CpuEngine("torch"))


@pytest.mark.slow
@pytest.mark.parametrize("size_hw", SIZES)
def test_both_engines_give_one_feature_map_of_any_size(
    by_openvino: EfficientNetLiteEncoder, by_torch: EfficientNetLiteEncoder, size_hw: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    for image in (noise, np.full_like(noise, 127), np.zeros_like(noise)):
        found, wanted = by_openvino.encode(image), by_torch.encode(image)
        assert found.shape == wanted.shape
        assert float(np.abs(found - wanted).max()) < 2e-5


@pytest.mark.slow
def test_both_engines_have_one_signature_in_fp32(
    by_openvino: EfficientNetLiteEncoder, by_torch: EfficientNetLiteEncoder
) -> None:
    """So workers of both kinds serve one project, and references that an earlier release made stay valid."""
    assert by_openvino.signature == by_torch.signature
    one, other = by_openvino.object_feature_space.typical, by_torch.object_feature_space.typical
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_threads_share_an_encoder(by_openvino: EfficientNetLiteEncoder) -> None:
    draw = np.random.default_rng(1)
    images = [draw.integers(0, 256, (*hw, 3), np.uint8) for hw in ((90, 120), (120, 90), (100, 100)) * 4]
    alone = [by_openvino.encode(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda image: by_openvino.encode(image), images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_bf16_has_a_signature_of_its_own_and_needs_a_processor_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert CpuEngine("openvino", "bf16").signature_part == ":bf16"
    with pytest.raises(ConfigurationError, match="needs OpenVINO"):
        CpuEngine("torch", "bf16")

    class Core:
        def get_property(self, *_named: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino_runtime, "_core", Core)
    with pytest.raises(ConfigurationError, match="SOFTMATCHER_CPU_PRECISION=bf16 needs a processor"):
        EfficientNetLiteEncoder(engine=CpuEngine("openvino", "bf16"))


def test_without_openvino_the_engine_is_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_engine, "has_openvino", lambda: False)
    assert CpuEngine.installed().name == "torch"


@pytest.mark.slow
def test_nothing_is_sent_and_no_telemetry_is_loaded() -> None:
    """Python reports each connection and name look-up to an audit hook, whoever makes them."""
    script = """
        import sys

        def hook(event, args):
            if event.split(".")[0] in ("socket", "urllib", "http", "ftplib"):
                print("event", event, args)

        sys.addaudithook(hook)
        import numpy as np
        from backend.models.cpu_engine import CpuEngine
        from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder

        encoder = EfficientNetLiteEncoder(engine=CpuEngine("openvino", threads=1))
        encoder.encode(np.zeros((64, 64, 3), np.uint8))
        loaded = [name for name, module in sys.modules.items() if module is not None]
        print([name for name in loaded if name.startswith(("openvino_telemetry", "openvino.tools", "timm"))])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n"
