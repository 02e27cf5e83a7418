"""Matchers that transport mass from reference to target patches: the entropic plan, and the assignment.

Symbols as in `matching`. Both form the R x T matrix of similarities; `hungarian` is cubic in patches besides. They are
here to be compared with, the paper's starting point and its rival.
"""

import numpy as np
from numpy.typing import NDArray

from backend.core.arrays import Array, like, sigmoid, softmax, to_numpy
from backend.core.matching import ReferenceBank, ScoreMap, require_matchable, to_matching
from backend.errors import BadInputError

REGULARISATION = 0.1
"""Of the entropic plan, in units of cosine similarity; chosen on the patch grid, see docs/algorithm.md."""
ITERATIONS = 100
STOP_AT = 1e-6


def match_sinkhorn(
    bank: ReferenceBank,
    target: Array,
    /,
    *,
    temperature: float,
    regularisation: float = REGULARISATION,
) -> ScoreMap:
    """Match by the prices of the entropic transport of the references to the target.

        min_P  sum_rt P[r,t] (1 - S[r,t]) + eps KL(P | a b^T),     P 1 = a,  P^T 1 = b
        P[r,t] = a[r] b[t] exp((u[r] + v[t] - 1 + S[r,t]) / eps),     sum_r a[r] u[r] = 0

    a: foreground / its sum; b: 1 / T. The plan's own marginals are fixed and say nothing of a patch; what it costs to
    bring mass to patch t, its price v[t], does: matching = softmax_t(-v / tau). As eps grows v[t] tends to 1 - <m,
    g_t>, the mean cost, so the matching probability tends to `softmatcher`'s; as eps falls, v[t] is the cost of the
    best reference patch that is not better used elsewhere. Negatives are transported by a problem of their own with
    prices v-:

        posterior[t] = sigmoid((v-[t] - v[t]) / tau + log(F / B) / 2),     F, B: the masses of foreground and background

    (the balance of `match_posterior`). Without background it is 1 everywhere. Unknown patches send nothing. Several
    references share one a.

    Args:
        bank: as for `match_posterior`.
        target: likewise.
        temperature: likewise.
        regularisation: eps > 0.

    Raises:
        BadInputError: as `match_posterior`; regularisation not above 0.

    Source: Cuturi, "Sinkhorn distances", NIPS 2013, through POT (MIT); the limit: Feydy et al., "Interpolating between
    optimal transport and MMD", AISTATS 2019, Section 2.
    """
    require_matchable(bank, target, temperature)
    if not regularisation > 0:
        raise BadInputError(f"regularisation must be above 0, got {regularisation}; {REGULARISATION} is the default")
    features, foreground, background, patches = map(to_numpy, (bank.features, bank.foreground, bank.background, target))
    price = _prices(features, foreground, patches, regularisation)
    matching = like(softmax(-price / temperature), target)
    if float(background.sum()) <= 0:
        return ScoreMap(like(np.ones_like(price), target), matching)
    price_outside = _prices(features, background, patches, regularisation)
    odds = 0.5 * np.log(foreground.sum() / background.sum())
    return ScoreMap(like(sigmoid((price_outside - price) / temperature + odds), target), matching)


def _prices(
    features: NDArray[np.float32], mass: NDArray[np.float32], target: NDArray[np.float32], regularisation: float
) -> NDArray[np.float32]:
    """Return the prices v (T,) of the transport of `mass` (R,) to the target's patches."""
    # Imported here: POT looks for every array library there is, which takes seconds that other matchers need not wait.
    from ot.bregman import sinkhorn

    sends = mass > 0
    cost = (1 - features[sends] @ target.T).astype(np.float64)
    sent = mass[sends].astype(np.float64)
    sent /= sent.sum()
    received = np.full(len(target), 1 / len(target))
    # exp(-cost / eps) of a cost of 2 leaves float64 below 1/350; the logarithmic form is ten times slower.
    method = "sinkhorn" if regularisation >= 0.01 else "sinkhorn_log"
    _, log = sinkhorn(
        sent, received, cost, regularisation, method=method,
        numItermax=ITERATIONS, stopThr=STOP_AT, log=True, warn=False,
    )  # fmt: skip
    log_u, log_v = (log["log_u"], log["log_v"]) if "log_u" in log else (np.log(log["u"]), np.log(log["v"]))
    # POT's plan is u exp(-cost / eps) v: the marginals are inside u and v, and a constant may pass between them.
    potential = regularisation * (log_u - np.log(sent))
    price = regularisation * (log_v - np.log(received)) + float(sent @ potential)
    return np.asarray(price, np.float32)


def match_hungarian(bank: ReferenceBank, target: Array, /, *, temperature: float) -> ScoreMap:
    """Matcher's forward and reverse assignment.

    Forward: the foreground patches are assigned one to one to target patches, the sum of similarities highest.
    Reverse: the target patches so found are assigned to all known reference patches; those that end outside the mask
    are dropped, so negatives enter through the way back. Nothing is kept where nothing comes back: the object is
    absent.

        posterior[t] = (1 + S[r,t]) / 2 for a kept pair r, t; 0 elsewhere

    The assignment knows patches, not parts of them: foreground is where more than half of what is known of a patch is
    inside (the most covered patches, if there is none), unknown patches are left out. At most as many target patches
    are found as the references have foreground patches. The scales change nothing.

    Args, Raises: as for `match_posterior`.

    Source: Liu et al., "Matcher: Segment anything with one shot using all-purpose feature matching", ICLR 2024,
    Section 3.1;
    `scipy.optimize.linear_sum_assignment`.
    """
    from scipy.optimize import linear_sum_assignment

    require_matchable(bank, target, temperature)
    masses = to_numpy(bank.foreground), to_numpy(bank.background)
    is_known = masses[0] + masses[1] > 0
    features, foreground = to_numpy(bank.features)[is_known], masses[0][is_known]
    share = foreground / (foreground + masses[1][is_known])
    is_inside = (share > 0.5) if (share > 0.5).any() else share >= share.max()
    similarity = features @ to_numpy(target).T
    inside_similarity = similarity[is_inside]
    senders, found = linear_sum_assignment(inside_similarity, maximize=True)
    comes_back = np.zeros(len(found), bool)
    ends, starts = linear_sum_assignment(similarity[:, found], maximize=True)
    comes_back[starts] = is_inside[ends]
    scores = np.zeros(len(target), np.float32)
    scores[found] = np.clip(np.where(comes_back, (1 + inside_similarity[senders, found]) / 2, 0.0), 0.0, 1.0)
    posterior = like(scores, target)
    return ScoreMap(posterior, to_matching(posterior))
