"""Every matcher there is, by name."""

from backend.core.matching import Matcher, match_posterior, match_prototype, match_softmatcher
from backend.core.optimal_transport import match_hungarian, match_sinkhorn
from backend.core.random_features import match_random_features
from backend.core.types import MatcherName

MATCHERS: dict[MatcherName, Matcher] = {
    "posterior": match_posterior,
    "softmatcher": match_softmatcher,
    "softmatcher-rff": match_random_features,
    "sinkhorn": match_sinkhorn,
    "hungarian": match_hungarian,
    "prototype": match_prototype,
}
"""By the name that the setting `matcher` has."""

TENSOR_MATCHERS: frozenset[MatcherName] = frozenset({"posterior", "softmatcher", "prototype"})
"""Those that run wherever their tensors are; the others leave torch on the way."""
