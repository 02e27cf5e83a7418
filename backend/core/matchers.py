"""Every matcher there is, by name."""

from collections.abc import Callable
from functools import partial

from backend.core.arrays import Array, like
from backend.core.feature_scale import FeatureScale
from backend.core.matching import Matcher, ReferenceBank, ScoreMap, match_posterior, match_prototype, match_softmatcher
from backend.core.optimal_transport import match_hungarian, match_sinkhorn
from backend.core.types import MatcherName
from backend.errors import ConfigurationError


def _at_temperature(match: Callable[..., ScoreMap]) -> Callable[[FeatureScale], Matcher]:
    return lambda scale: partial(match, temperature=scale.temperature)


def _match_random_features(bank: ReferenceBank, target: Array, /, *, temperature: float) -> ScoreMap:
    from backend.core.random_features import match_random_features  # PyTorch, which the other matchers do without

    tensors = bank.to_tensors()
    found = match_random_features(tensors, like(target, tensors.features), temperature=temperature)
    return ScoreMap(like(found.posterior, target), like(found.matching, target), found.error)


MATCHERS: dict[MatcherName, Callable[[FeatureScale], Matcher]] = {
    "posterior": lambda scale: partial(
        match_posterior, temperature=scale.temperature, similarity_floor=scale.similarity_floor
    ),
    "softmatcher": _at_temperature(match_softmatcher),
    "softmatcher-rff": _at_temperature(_match_random_features),
    "sinkhorn": _at_temperature(match_sinkhorn),
    "hungarian": _at_temperature(match_hungarian),
    "prototype": _at_temperature(match_prototype),
}
"""What makes a matcher for an encoder's scale, by the name that the setting `matcher` has."""

TENSOR_MATCHERS: frozenset[MatcherName] = frozenset({"posterior", "softmatcher", "prototype"})
"""Those that run wherever their tensors are; the others compute on the processor."""


def make_matcher(name: str, scale: FeatureScale) -> Matcher:
    """Return the matcher of a name for features of this scale.

    Raises:
        ConfigurationError: there is no such matcher.
    """
    make = {str(known): make for known, make in MATCHERS.items()}.get(name)
    if make is None:
        raise ConfigurationError(f"matcher must be one of {', '.join(MATCHERS)}, got {name}; change the setting")
    return make(scale)
