"""The weights files that are known by name: addresses, sizes and digests.

The six digits in the names of SAM's files are the beginning of their MD5, not of their SHA-256. The SHA-256 below are
not published by Meta; they are those that independent projects recorded of the official files (for SAM and MobileSAM
the model registry of micro-sam, for SAM 2.1 that registry and several projects that pin the official downloads with
their sizes, for DINOv2 the conversion scripts of refiners, and others that agree with them). Those of CLIP at the
revision in its address are recorded by several projects that agree, those of its tokenizer, too. A file with the right
SHA-256 is taken; where none is known, the digits of the name have to agree. No digest of TIPSv2's tokenizer was found:
that of the first import is recorded.
"""

from dataclasses import dataclass

from backend.errors import ConfigurationError
from backend.models.profiles import PROFILES

_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
_TIPSV2 = "https://huggingface.co/google/tipsv2-b14/resolve/ed1e4dc6b74bf3935ae099e9d5eb30fa96528454/"
_CLIP = "https://huggingface.co/openai/clip-vit-base-patch16/resolve/57c216476eefef5ab752ec549e440a49ae4ae5f3/"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/"


@dataclass(frozen=True)
class KnownWeights:
    """A weights file.

    Attributes:
        name: of the model: timm's for encoders, one of `SAM_MODELS` or `SAM2_MODELS` for segmenters.
        file_name: the official one.
        url: address at its publisher; None if it is given out on request only.
        size_bytes: of the file, or None if it is not known.
        sha256: of the file, or None: then the digest of the first import is recorded, and required from then on.
        md5_start: what the MD5 begins with, from the official name, or None.
        licence: of the weights.
        is_tokenizer: a `tokenizer.json` or a SentencePiece model in place of weights.
    """

    name: str
    file_name: str
    url: str | None
    size_bytes: int | None
    sha256: str | None
    md5_start: str | None
    licence: str
    is_tokenizer: bool = False


def _dinov2(size: str, registers: str, size_bytes: int | None, sha256: str) -> KnownWeights:
    letter = size[0]
    file_name = f"dinov2_vit{letter}14_{'reg4_' if registers else ''}pretrain.pth"
    return KnownWeights(
        f"vit_{size}_patch14_{registers}dinov2",
        file_name,
        f"{_DINOV2}dinov2_vit{letter}14/{file_name}",
        size_bytes,
        sha256,
        None,
        "Apache-2.0",
    )


def _sam(letter: str, md5_start: str, size_bytes: int, sha256: str) -> KnownWeights:
    file_name = f"sam_vit_{letter}_{md5_start}.pth"
    return KnownWeights(f"sam_vit_{letter}", file_name, _SAM + file_name, size_bytes, sha256, md5_start, "Apache-2.0")


def _sam2(size: str, size_bytes: int, sha256: str) -> KnownWeights:
    name = f"sam2.1_hiera_{size}"
    return KnownWeights(name, f"{name}.pt", f"{_SAM2}{name}.pt", size_bytes, sha256, None, "Apache-2.0")


KNOWN_WEIGHTS = (
    _dinov2("small", "", 88283115, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    _dinov2("small", "reg4_", None, "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb"),
    _dinov2("base", "", 346378731, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    _dinov2("base", "reg4_", 346393545, "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71"),
    _dinov2("large", "", 1217586395, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    _dinov2("large", "reg4_", 1217607321, "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51"),
    KnownWeights(
        "vit_base_patch14_reg1_tipsv2",
        "model.safetensors",
        f"{_TIPSV2}model.safetensors",
        783830160,
        "c19aec1a777c381cc3d351b4882c56fc3041505c8f5b97535816a92dce3d20c5",
        None,
        "Apache-2.0",
    ),
    KnownWeights(
        "tipsv2_tokenizer",
        "tokenizer.model",
        f"{_TIPSV2}tokenizer.model",
        None,
        None,
        None,
        "Apache-2.0",
        is_tokenizer=True,
    ),
    KnownWeights(
        "vit_base_patch16_clip_quickgelu_224",
        "pytorch_model.bin",
        f"{_CLIP}pytorch_model.bin",
        598641023,
        "ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0",
        None,
        "MIT",
    ),
    KnownWeights(
        "clip_tokenizer",
        "tokenizer.json",
        f"{_CLIP}tokenizer.json",
        2224003,
        "a83e0809aa4c3af7208b2df632a7a69668c6d48775b3c3fe4e1b1199d1f8b8f4",
        None,
        "MIT",
        is_tokenizer=True,
    ),
    KnownWeights(
        "mobile_sam",
        "mobile_sam.pt",
        "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
        40728226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        None,
        "Apache-2.0",
    ),
    _sam("b", "01ec64", 375042383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    _sam("l", "0b3195", 1249524607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _sam("h", "4b8939", 2564550879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    _sam2("tiny", 156008466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    _sam2("small", 184416285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    _sam2("base_plus", 323606802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    _sam2("large", 898083611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
)


def known_weights(name: str) -> KnownWeights | None:
    """Return the file of a model by the model's or the file's name; None if it is not in the catalogue."""
    return next((known for known in KNOWN_WEIGHTS if name in (known.name, known.file_name)), None)


def weights_of(profile_or_name: str) -> list[KnownWeights]:
    """Return the files of a profile, or the one of a model.

    Raises:
        ConfigurationError: neither.
    """
    profile = PROFILES.get(profile_or_name)
    names = (profile_or_name,) if profile is None else profile.weights
    found = [known for name in names if (known := known_weights(name)) is not None]
    if not found and profile is None:
        names_known = ", ".join([*PROFILES, *(known.name for known in KNOWN_WEIGHTS)])
        raise ConfigurationError(f"expected a profile or a model of {names_known}, got {profile_or_name}")
    return found
