"""Every matcher there is, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from backend.core.matching import Matcher, ScoreMap, match_posterior, match_prototype, match_softmatcher
from backend.core.optimal_transport import match_hungarian, match_sinkhorn
from backend.core.random_features import match_random_features
from backend.core.types import MatcherName
from backend.errors import ConfigurationError


@dataclass(frozen=True)
class FeatureScale:
    """The scale of an encoder's similarities.

    Attributes:
        temperature: softmax scale, above 0.
        similarity_floor: cosine in [-1, 1] below which two patches have nothing in common; -1: no floor.
    """

    temperature: float
    similarity_floor: float = -1.0


def _at_temperature(match: Callable[..., ScoreMap]) -> Callable[[FeatureScale], Matcher]:
    return lambda scale: partial(match, temperature=scale.temperature)


MATCHERS: dict[MatcherName, Callable[[FeatureScale], Matcher]] = {
    "posterior": lambda scale: partial(
        match_posterior, temperature=scale.temperature, similarity_floor=scale.similarity_floor
    ),
    "softmatcher": _at_temperature(match_softmatcher),
    "softmatcher-rff": _at_temperature(match_random_features),
    "sinkhorn": _at_temperature(match_sinkhorn),
    "hungarian": _at_temperature(match_hungarian),
    "prototype": _at_temperature(match_prototype),
}
"""What makes a matcher for an encoder's scale, by the name that the setting `matcher` has."""

TENSOR_MATCHERS: frozenset[MatcherName] = frozenset({"posterior", "softmatcher", "prototype"})
"""Those that run wherever their tensors are; the others leave torch on the way."""


def make_matcher(name: str, scale: FeatureScale) -> Matcher:
    """Return the matcher of a name for features of this scale.

    Raises:
        ConfigurationError: there is no such matcher.
    """
    make = {str(known): make for known, make in MATCHERS.items()}.get(name)
    if make is None:
        raise ConfigurationError(f"matcher must be one of {', '.join(MATCHERS)}, got {name}; change the setting")
    return make(scale)
