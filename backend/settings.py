"""Every setting of the backend: the only reader of the environment."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, JsonValue, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.core.types import CpuEngineName, CpuPrecision, MatcherName, OverlapName, PromptingStrategy, SamPath
from backend.errors import ConfigurationError

CONCURRENT_BATCHES = 2
"""Batches that a worker has in hand at a time: one at the models while another is read or written, or both."""


PREFIX = "SOFTMATCHER_"
_OF_THE_TESTS = ("SOFTMATCHER_TEST_", "SOFTMATCHER_REQUIRE_ALL")


def _alias(name: str) -> AliasChoices:
    """Names that are not ours (Label Studio's, Redis', the database's) carry no prefix."""
    return AliasChoices(name)


_SHARED: dict[str, JsonValue] = {"is_shared": True}
"""Of a field that service and workers have to agree on; a worker that is not told takes the service's."""
_LOCAL: dict[str, JsonValue] = {"is_shared": False}
"""Of a field that each machine or process has its own of, or that only the service reads."""


class Settings(BaseSettings):
    """Built once by `load_settings`, frozen, passed down. docs/settings.md lists all fields."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    label_studio_url: str = Field(
        "http://127.0.0.1:8080",
        validation_alias=_alias("LABEL_STUDIO_URL"),
        json_schema_extra=_SHARED,
        description="Address of Label Studio as the backend reaches it.",
    )
    label_studio_api_key: SecretStr | None = Field(
        None,
        validation_alias=_alias("LABEL_STUDIO_API_KEY"),
        json_schema_extra=_LOCAL,
        description="Legacy token or personal access token. Without it the token that Label Studio sends on connecting "
        "is used, which works only where legacy tokens are enabled.",
    )
    redis_url: str | None = Field(
        None,
        validation_alias=_alias("REDIS_URL"),
        json_schema_extra=_LOCAL,
        description="Redis or Valkey for the job queue. `up` and `demo` start an embedded Valkey without it.",
    )
    database_url: str | None = Field(
        None,
        validation_alias=_alias("DATABASE_URL"),
        json_schema_extra=_LOCAL,
        description="SQLAlchemy address of the store. Default: SQLite in the data folder.",
    )
    host: str = Field("127.0.0.1", json_schema_extra=_LOCAL, description="Address that the service binds to.")
    port: int = Field(9090, ge=0, le=65535, json_schema_extra=_LOCAL, description="Port of the service.")
    public_url: str | None = Field(
        None,
        json_schema_extra=_LOCAL,
        description="Address of the service as Label Studio reaches it, if a proxy changes it on the way.",
    )
    env_file: Path = Field(
        Path(".env"),
        json_schema_extra=_LOCAL,
        description="File that commands read further variables from, lines `NAME=value`; the environment takes "
        "precedence.",
    )
    data_dir: Path = Field(
        Path("data"),
        json_schema_extra=_LOCAL,
        description="Folder of the SQLite store, the feature cache and the logs.",
    )
    profile: str = Field(
        "lite",
        json_schema_extra=_SHARED,
        description="Profile, the models in use: `lite` needs no download; `mobile`, `base`, `large`, `sam2`: `weights "
        "fetch PROFILE`.",
    )
    encoder: str | None = Field(
        None,
        json_schema_extra=_SHARED,
        description="timm's name of another encoder in place of the profile's (not `lite`), e.g. "
        "`vit_base_patch16_dinov3`; its weights: `weights import PATH --as NAME`.",
    )
    segmenter: str | None = Field(
        None,
        json_schema_extra=_SHARED,
        description="Another segmenter in place of the profile's (not `lite`): `mobile_sam`, `sam_vit_b`, `sam_vit_l`, "
        "`sam_vit_h`, `sam2.1_hiera_tiny`, `_small`, `_base_plus` or `_large`; its weights: `weights fetch NAME`. Or a "
        "checkpoint of their layout: `weights import PATH --as NAME`.",
    )
    positional_rank: int = Field(
        0,
        ge=0,
        le=64,
        json_schema_extra=_SHARED,
        description="Directions of a blank image's features that are removed from all features (not `lite`): they mark "
        "where a patch is, not what it shows. 0: none. Not measured with real weights (docs/models.md).",
    )
    sam_path: SamPath = Field(
        "fast",
        json_schema_extra=_SHARED,
        description="How SAM's networks run (not `lite`): `fast` with this project's mask decoder, attention and CUDA "
        "graphs, `package` with the packages' own forward passes (docs/models.md).",
    )
    calibration: Path | None = Field(
        None,
        json_schema_extra=_SHARED,
        description="Calibration that `calibrate` wrote, for presence probability and expected IoU, in place of the "
        "profile's own. Every machine needs it at this path.",
    )
    weights_dir: Path | None = Field(
        None, json_schema_extra=_LOCAL, description="Folder of model weights. Default: `weights` in the data folder."
    )
    weights_mirror: str | None = Field(
        None,
        json_schema_extra=_LOCAL,
        description="Folder to download weights from in place of their publishers: https:, http: or file: address.",
    )
    device: str = Field(
        "auto",
        json_schema_extra=_LOCAL,
        description="Where models run: `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1`.",
    )
    cpu_engine: CpuEngineName = Field(
        "openvino",
        json_schema_extra=_LOCAL,
        description="What runs networks on a processor: `openvino`, or `torch`, which also takes its place where it is "
        "not installed. Masks are the same but for single pixels, so machines may differ (docs/models.md).",
    )
    cpu_precision: CpuPrecision = Field(
        "fp32",
        json_schema_extra=_SHARED,
        description="Precision of networks on a processor: `fp32`, or `bf16` on processors that compute in it, with "
        "OpenVINO. Another value has references made anew, and every machine has to support it (docs/models.md).",
    )
    prefetch_tasks: int = Field(
        2,
        ge=0,
        le=20,
        json_schema_extra=_LOCAL,
        description="Tasks whose images are encoded ahead when one is opened; 0: none.",
    )
    matcher: MatcherName = Field(
        "posterior",
        json_schema_extra=_SHARED,
        description="Score map: foreground `posterior`, the paper's exact `softmatcher`, `softmatcher-rff`, "
        '`sinkhorn`, `hungarian` or `prototype` (docs/algorithm.md). A project\'s extra params `{"matcher": ...}` take '
        "precedence.",
    )
    recipe: PromptingStrategy = Field(
        "prior",
        json_schema_extra=_SHARED,
        description="Prompting strategy, how a score map becomes masks: `prior` or `paper`. A project's extra params "
        '`{"recipe": ...}` take precedence.',
    )
    instances: bool = Field(
        False,
        json_schema_extra=_SHARED,
        description="True for one region per object, false for one region per label. A project's extra params "
        '`{"instances": true}` take precedence.',
    )
    overlap: OverlapName = Field(
        "exclusive",
        json_schema_extra=_SHARED,
        description="`exclusive`: a pixel has up to one label; `allowed`: labels may lie on one another, as a lesion "
        'on a leaf. A project\'s extra params `{"overlap": ...}` take precedence.',
    )
    min_score: float = Field(
        0.2,
        ge=0,
        le=1,
        json_schema_extra=_SHARED,
        description="Regions whose expected IoU is below this are not returned. A project's extra params "
        '`{"min_score": 0.3}` take precedence.',
    )
    background_labels: Annotated[frozenset[str], NoDecode] = Field(
        frozenset({"background"}),
        json_schema_extra=_SHARED,
        description="Labels that mean «not the object», comma-separated, whatever their case.",
    )
    mask_tags: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        json_schema_extra=_SHARED,
        description="Names of BrushLabels controls whose strokes are complete masks, not scribbles; comma-separated.",
    )
    complete_annotations: bool = Field(
        False,
        json_schema_extra=_SHARED,
        description="True if annotators mark every object of an image (complete masks): all else is then background.",
    )
    predict_budget_s: float = Field(
        60.0,
        gt=0,
        le=95,
        json_schema_extra=_LOCAL,
        description="Seconds after which a batch /predict answers and defers the rest to the workers.",
    )
    reference_wait_s: float = Field(
        2.0,
        ge=0,
        le=10,
        json_schema_extra=_LOCAL,
        description="Seconds that the prediction of one task waits for an annotation just submitted.",
    )
    gone_project_days: float = Field(
        14.0,
        ge=0,
        json_schema_extra=_LOCAL,
        description="Days after which the data of a project is deleted that Label Studio does not have any more; it is "
        "asked once more before that. `forget` deletes at once.",
    )
    propagate_after_references: int = Field(
        0,
        ge=0,
        json_schema_extra=_LOCAL,
        description="New references after which a project is propagated by itself; 0: only when asked.",
    )
    cache_mb: float = Field(
        2048.0, ge=0, json_schema_extra=_LOCAL, description="Bound of the feature cache on disk, MB."
    )
    banks_mb: float = Field(
        256.0,
        ge=0,
        json_schema_extra=_LOCAL,
        description="Bound of the memory that a process keeps references of projects in, MB.",
    )
    max_image_mb: float = Field(
        100.0, gt=0, json_schema_extra=_SHARED, description="Largest image file that is downloaded, MB."
    )
    max_image_mpx: float = Field(
        120.0, gt=0, json_schema_extra=_SHARED, description="Largest image that is decoded, megapixels."
    )
    download_timeout_s: float = Field(
        20.0, gt=0, json_schema_extra=_LOCAL, description="Time for one image download, seconds."
    )
    allowed_image_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        json_schema_extra=_SHARED,
        description="Hosts other than Label Studio that images may come from, `host` or `host:port`, comma-separated.",
    )
    basic_auth_user: str | None = Field(
        None, json_schema_extra=_LOCAL, description="User that Label Studio has to name (basic auth)."
    )
    basic_auth_pass: SecretStr | None = Field(None, json_schema_extra=_LOCAL, description="Password that goes with it.")
    webhook_secret: SecretStr | None = Field(
        None,
        json_schema_extra=_LOCAL,
        description="What Label Studio's webhooks show in place of the password, which everybody who may edit a "
        "project could read there. Default: derived from user and password.",
    )
    service_threads: int = Field(
        24,
        ge=2,
        le=256,
        json_schema_extra=_LOCAL,
        description="Requests that the service answers at a time; three quarters of them predictions.",
    )
    torch_threads: int = Field(
        0,
        ge=0,
        le=256,
        json_schema_extra=_LOCAL,
        description="Threads of one model call; 0: all cores that the process may use, with a GPU one.",
    )
    local_workers: int = Field(
        1,
        ge=1,
        le=64,
        json_schema_extra=_LOCAL,
        description="Workers on this machine: each takes its share of the cores. `up` sets it for its own.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", json_schema_extra=_LOCAL, description="How much is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        json_schema_extra=_LOCAL,
        description="`text`, or `json`: one object per line, with the counts of a request or job by name.",
    )

    @field_validator("background_labels", "mask_tags", "allowed_image_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return frozenset(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("label_studio_url", "public_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError(f"expected an address that begins with http:// or https://, got {value!r}")
        return None if value is None else value.rstrip("/")

    @model_validator(mode="after")
    def _check_auth(self) -> "Settings":
        if (self.basic_auth_user is None) != (self.basic_auth_pass is None):
            raise ValueError("SOFTMATCHER_BASIC_AUTH_USER and SOFTMATCHER_BASIC_AUTH_PASS go together: set both")
        if self.webhook_secret is not None and self.basic_auth_user is None:
            raise ValueError(
                "SOFTMATCHER_WEBHOOK_SECRET stands in for a password, so set SOFTMATCHER_BASIC_AUTH_USER and "
                "SOFTMATCHER_BASIC_AUTH_PASS too"
            )
        if self.basic_auth_user is not None and ":" in self.basic_auth_user:
            raise ValueError("SOFTMATCHER_BASIC_AUTH_USER must have no colon: in basic auth the password begins there")
        for name, value in (
            ("SOFTMATCHER_BASIC_AUTH_USER", self.basic_auth_user),
            ("SOFTMATCHER_BASIC_AUTH_PASS", self.basic_auth_pass),
            ("SOFTMATCHER_WEBHOOK_SECRET", self.webhook_secret),
        ):
            _check_sendable(name, value.get_secret_value() if isinstance(value, SecretStr) else value)
        return self

    @property
    def store_url(self) -> str:
        """Return the SQLAlchemy address of the store."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'softmatcher.db').resolve()}"

    @property
    def weights_folder(self) -> Path:
        """Return the folder of model weights."""
        return self.weights_dir or self.data_dir / "weights"

    @property
    def cache_dir(self) -> Path:
        """Return the folder of the feature cache."""
        return self.data_dir / "features"


def _check_sendable(name: str, value: str | None) -> None:
    """Label Studio sends passwords in Latin-1 and fails on all else; a line's end is a file's, not the secret's."""
    if value is not None and not all(character.isprintable() and ord(character) < 256 for character in value):
        raise ValueError(
            f"{name} must be of Latin-1 letters, digits and signs, without line ends, since Label Studio can send no "
            "others; got some other character: choose another value"
        )


def _is_shared(field: str) -> bool:
    extra = Settings.model_fields[field].json_schema_extra
    return isinstance(extra, dict) and extra["is_shared"] is True


SHARED = tuple(field for field in Settings.model_fields if _is_shared(field))
"""What service and workers have to agree on."""


def environment_name(field: str) -> str:
    """Return the environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"{PREFIX}{field.upper()}"


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Return a line for each name that begins with SOFTMATCHER_ and is no setting, with the setting most like it.

    Args:
        names: of variables. Values are not looked at: they may be secrets.
    """
    variables = [environment_name(field) for field in Settings.model_fields]
    known = {variable.removeprefix(PREFIX): variable for variable in variables}
    lines = []
    for name in sorted(names):
        variable = name.upper()  # as it is read: whatever its case
        if variable in variables or not variable.startswith(PREFIX) or variable.startswith(_OF_THE_TESTS):
            continue
        alike = difflib.get_close_matches(variable.removeprefix(PREFIX), known, n=1)
        advice = f"did you mean {known[alike[0]]}?" if alike else "docs/settings.md lists all settings"
        lines.append(f"{name} is set, but there is no such setting, so it changes nothing: {advice}")
    return lines


def load_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` (by field name) go before it.

    Raises:
        ConfigurationError: a value is missing or wrong; names the variable, never its value if that is a secret.
    """
    by_variable = {
        environment_name(field) if Settings.model_fields[field].validation_alias else field: value
        for field, value in overrides.items()
        if value is not None
    }
    try:
        return Settings(**by_variable)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_input=False, include_url=False):
            location = str(problem["loc"][0]) if problem["loc"] else ""
            name = environment_name(location) if location in Settings.model_fields else location
            problems.append(f"{name}: {problem['msg']}" if name else str(problem["msg"]))
        raise ConfigurationError("settings: " + "; ".join(problems)) from None


def shared_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that a service shares with its workers, as JSON; no secret is among them."""
    shared = settings.model_dump(mode="json", include=set(SHARED))
    return {name: sorted(value) if isinstance(value, list) else value for name, value in shared.items()}


def with_shared(settings: Settings, received: Mapping[str, Any]) -> Settings:
    """Return a worker's settings, with the service's values for fields that its own environment does not set.

    Raises:
        ConfigurationError: the service is of another release, and its settings are not understood by this one.
    """
    unset = {name: received[name] for name in SHARED if name in received and name not in settings.model_fields_set}
    return load_settings(**{name: getattr(settings, name) for name in settings.model_fields_set}, **unset)


def differing(settings: Settings, received: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each shared setting that is another in the service; none if no service has published any.

    Not for the address of Label Studio: each machine may reach it by another.
    """
    own = shared_settings(settings)
    return tuple(
        f"{environment_name(name)} is {own[name]!r} here and {received[name]!r} in the service"
        for name in SHARED
        if name in received and name != "label_studio_url" and received[name] != own[name]
    )
