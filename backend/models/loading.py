"""Models built of a profile's row, their weights read from disk."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from backend import __version__
from backend.core.arrays import CPU, Device
from backend.core.types import SamPath
from backend.errors import BadInputError, ConfigurationError, ModelUnavailableError
from backend.models.cpu_engine import CpuEngine
from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder, EncoderOptions
from backend.models.encoders.protocol import Encoder
from backend.models.graph_cut.segmenter import LiteSegmenter
from backend.models.profiles import PROFILES, Profile, find_profile
from backend.models.sam.names import SAM2_NAMES, SAM_BY_OPENVINO, SAM_MODELS
from backend.models.sam.options import KEEP_EVERYTHING, SamOptions, SelectionOptions
from backend.models.segmenters import Segmenter
from backend.models.text.spaces import (
    CLIP_MODEL,
    CLIP_WIDTH,
    TIPS_MODEL,
    TextSpace,
    clip_text_space,
    tips_text_space,
)
from backend.models.weights.catalogue import known_weights
from backend.models.weights.digest import weights_sha256
from backend.models.weights.store import StoredWeights, WeightsStore

if TYPE_CHECKING:
    from torch import nn

    from backend.models.sam.segmenter import SamSegmenter


@dataclass(frozen=True)
class ModelSource:
    """The files, device and options that models are built with.

    Attributes:
        weights_folder: of `WeightsStore`; None for profiles that need none.
        device: a device that exists.
        encoder: timm's name of an encoder in place of the profile's, or None.
        segmenter: name of a segmenter in place of the profile's, or None.
        is_random: random weights where real ones are missing: for benchmarks and tests, never for users.
        positional_rank: directions of a blank image that are taken out of every image's features; 0: none.
        sam_path: how SAM's networks are run.
        engine: what runs networks on the processor.
    """

    weights_folder: Path | None = None
    device: Device = CPU
    encoder: str | None = None
    segmenter: str | None = None
    is_random: bool = False
    positional_rank: int = 0
    sam_path: SamPath = "fast"
    engine: CpuEngine = field(default_factory=CpuEngine.installed)


@dataclass(frozen=True)
class ModelRequest:
    """The name, weights and options that a model is built of.

    Attributes:
        name: of the model, as signatures show it.
        layout: name of the network that it fills; another one than `name` for an imported checkpoint.
        weights: its file; None: random weights, or weights that come with a package.
        profile: whose model it is.
        source: device and options.
    """

    name: str
    layout: str
    weights: Path | None
    profile: Profile
    source: ModelSource


@dataclass(frozen=True)
class SegmenterKind:
    """The builder of the segmenters of one name.

    Attributes:
        build: makes one.
        require: raises `ModelUnavailableError` if the package of this name is not installed.
        is_downloaded: has weights, so that it can be named in place of a profile's.
    """

    build: Callable[[ModelRequest], Segmenter]
    require: Callable[[str], None] = lambda name: None
    is_downloaded: bool = True


def load_profile(name: str, source: ModelSource = ModelSource()) -> tuple[Encoder, Segmenter]:
    """Build encoder and segmenter of a profile.

    Raises:
        ConfigurationError: no such profile, encoder or segmenter.
        ModelUnavailableError: weights are missing or wrong; says which command helps.
    """
    profile = find_profile(name)
    if not profile.is_downloaded:
        _require_nothing_replaced(profile, source)
    names = source.encoder or profile.encoder, source.segmenter or profile.segmenter
    layouts = [_layout(source, one) for one in names]
    kind = SEGMENTERS.get(layouts[1])
    if kind is None or kind.is_downloaded != profile.is_downloaded:
        offered = ", ".join(one for one, other in SEGMENTERS.items() if other.is_downloaded)
        raise ConfigurationError(
            f"segmenter must be one of {offered}, or an imported checkpoint of their layout, got {names[1]}; "
            "set SOFTMATCHER_SEGMENTER to one of them"
        )
    kind.require(names[1])
    paths = _paths(source, names, profile) if profile.is_downloaded else [None, None]
    encoder, segmenter = (ModelRequest(*one, profile, source) for one in zip(names, layouts, paths, strict=True))
    return OWN_ENCODERS.get(encoder.layout, _timm_encoder)(encoder), kind.build(segmenter)


def missing_weights(profile: str, folder: Path) -> list[str]:
    """Return the models of a profile whose weights are not stored."""
    store = WeightsStore(folder)
    return [name for name in find_profile(profile).weights if store.find(name) is None]


def _require_nothing_replaced(profile: Profile, source: ModelSource) -> None:
    others = ", ".join(one.name for one in PROFILES.values() if one.is_downloaded)
    for kind, other in (("encoder", source.encoder), ("segmenter", source.segmenter)):
        if other is not None:
            raise ConfigurationError(f"profile {profile.name} has its own {kind}, got {other}; choose one of {others}")
    if source.positional_rank:
        raise ConfigurationError(
            f"profile {profile.name} has no table of positions, got a positional rank of {source.positional_rank}; "
            f"set it to 0, or choose one of {others}"
        )


def _efficientnet_lite(request: ModelRequest) -> Encoder:
    profile = request.profile
    options = EncoderOptions(
        profile.side_px, temperature=profile.temperature, similarity_floor=profile.similarity_floor
    )
    return EfficientNetLiteEncoder(options=options, engine=request.source.engine)


# What follows imports PyTorch and what is built with it when it is needed: profile `lite` needs none of it on a CPU.


def _timm_encoder(request: ModelRequest) -> Encoder:
    import torch

    from backend.models.encoders.timm_encoder import TimmEncoder, VitOptions

    profile = request.profile
    options = VitOptions(
        profile.side_px,
        temperature=profile.temperature,
        similarity_floor=profile.similarity_floor,
        positional_rank=request.source.positional_rank,
    )
    shares = TEXT_SPACES.get(request.layout)
    text = None if shares is None else shares(request.weights)
    device = torch.device(str(request.source.device))
    return TimmEncoder(request.layout, request.weights, options, device=device, text=text)


def _graph_cut(request: ModelRequest) -> Segmenter:
    return LiteSegmenter()


def _sam(request: ModelRequest) -> Segmenter:
    from backend.models.sam.networks import build_sam
    from backend.models.sam.segmenter import sam_segmenter

    engine = request.source.engine if request.layout in SAM_BY_OPENVINO else None
    converted = _converted_file(request.weights) if engine is not None and engine.is_openvino else None
    return _sam_of(request, build_sam, partial(sam_segmenter, engine=engine, converted=converted))


def _converted_file(weights: Path | None) -> Path | None:
    """Return where a SAM's converted image encoder is kept: its name changes with all that the graph depends on."""
    if weights is None:
        return None
    from backend.models.sam import attention

    assert attention.__file__ is not None  # a module of this package
    parts = [weights_sha256(weights), weights_sha256(Path(attention.__file__)), __version__]
    try:
        parts += [version(package) for package in ("openvino", "torch", "mobilesam-mirror", "timm")]
    except PackageNotFoundError:
        return None  # a MobileSAM from elsewhere: nothing says when its code changes, so its graph is not kept
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return weights.parent.parent / "converted" / f"{weights_sha256(weights)[:12]}-{digest[:12]}.openvino"


def _sam2(request: ModelRequest) -> Segmenter:
    from backend.models.sam.sam2_networks import build_sam2
    from backend.models.sam.segmenter import sam2_segmenter

    return _sam_of(request, build_sam2, sam2_segmenter)


def _sam_of(
    request: ModelRequest,
    build: Callable[[str, Path | None], "nn.Module"],
    join: Callable[..., "SamSegmenter"],
) -> Segmenter:
    import torch

    content = weights_sha256(request.weights)[:12] if request.weights else "random0"
    options = SamOptions(path=request.source.sam_path)
    if request.profile.points is not None:
        options = replace(options, most_points=request.profile.points)
    # Random weights predict nothing: what comes after the decoder would be missing in a benchmark.
    selection = (request.profile.thresholds or SelectionOptions()) if request.weights else KEEP_EVERYTHING
    return join(
        build(request.layout, request.weights),
        f"{request.name}:{content}",
        replace(options, selection=selection),
        device=torch.device(str(request.source.device)),
    )


def _require_sam2(name: str) -> None:
    from backend.models.sam.sam2_networks import require_sam2

    require_sam2(name)


TEXT_SPACES: Mapping[str, Callable[[Path | None], TextSpace]] = {
    TIPS_MODEL: lambda weights: TextSpace(tips_text_space(weights)),
    CLIP_MODEL: lambda weights: TextSpace(clip_text_space(weights), is_plain=True, width=CLIP_WIDTH),
}
"""Encoders of timm that share a space with a text encoder."""
OWN_ENCODERS: dict[str, Callable[[ModelRequest], Encoder]] = {"efficientnet_lite2": _efficientnet_lite}
"""Encoders with a file of their own; any other name is timm's."""
SEGMENTERS: Mapping[str, SegmenterKind] = {
    **dict.fromkeys(SAM_MODELS, SegmenterKind(_sam)),
    **dict.fromkeys(SAM2_NAMES, SegmenterKind(_sam2, require=_require_sam2)),
    "graph_cut": SegmenterKind(_graph_cut, is_downloaded=False),
}
"""All segmenters by the name of their network."""


def _layout(source: ModelSource, name: str) -> str:
    """Return the model whose network a name means: of a checkpoint imported under its own name, the one it fills."""
    if source.weights_folder is None or known_weights(name) is not None:
        return name
    try:
        stored = WeightsStore(source.weights_folder).find(name)
    except BadInputError:  # no name that anything can be imported under
        return name
    return stored.layout if stored is not None and stored.layout is not None else name


def _paths(source: ModelSource, names: tuple[str, str], profile: Profile) -> list[Path | None]:
    """Return both files, found before either is read: one message names all that is to be done."""
    if source.is_random:
        store = None if source.weights_folder is None else WeightsStore(source.weights_folder)
        return [None if store is None else _intact(store.find(name)) for name in names]
    if source.weights_folder is None:
        raise ConfigurationError(f"{names[0]} needs a folder of weights; set SOFTMATCHER_WEIGHTS_DIR")
    own = profile.name if names == (profile.encoder, profile.segmenter) else None
    return [_intact(stored) for stored in WeightsStore(source.weights_folder).require(names, profile=own)]


def _intact(stored: StoredWeights | None) -> Path | None:
    if stored is None:
        return None
    if weights_sha256(stored.path) != stored.sha256:
        raise ModelUnavailableError(
            f"weights of {stored.name} are damaged (their sha256 changed): run `python -m backend weights fetch "
            f"{stored.name}`, or import the file again"
        )
    return stored.path
