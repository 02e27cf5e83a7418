"""Matchers that transport mass from reference to target patches: the entropic plan, and the assignment.

Symbols as in `matching`. Both form the R x T matrix of similarities; `hungarian` is cubic in patches besides. They are
here to be compared with, the paper's starting point and its rival.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.core.matching import ReferenceBank, ScoreMap, require_matchable, to_matching
from backend.errors import BadInputError

REGULARISATION = 0.1
"""Of the entropic plan, in units of cosine similarity; chosen on the patch grid, see docs/algorithm.md."""
ITERATIONS = 100
STOP_AT = 1e-6


def match_sinkhorn(
    bank: ReferenceBank,
    target: Tensor,
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
    price = _prices(bank.features, bank.foreground, target, regularisation)
    matching = torch.softmax(-price / temperature, dim=0)
    if float(bank.background.sum()) <= 0:
        return ScoreMap(torch.ones_like(price), matching)
    price_outside = _prices(bank.features, bank.background, target, regularisation)
    odds = 0.5 * torch.log(bank.foreground.sum() / bank.background.sum())
    return ScoreMap(torch.sigmoid((price_outside - price) / temperature + odds), matching)


def _prices(features: Tensor, mass: Tensor, target: Tensor, regularisation: float) -> Tensor:
    """Return the prices v (T,) of the transport of `mass` (R,) to the target's patches."""
    # Imported here: POT looks for every array library there is, which takes seconds that other matchers need not wait.
    from ot.bregman import sinkhorn

    sends = mass > 0
    cost = (1 - features[sends] @ target.T).double().numpy()
    sent = mass[sends].double().numpy()
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
    return torch.from_numpy(cast(NDArray[np.float64], price)).float()


def match_hungarian(bank: ReferenceBank, target: Tensor, /, *, temperature: float) -> ScoreMap:
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
    is_known = bank.foreground + bank.background > 0
    features, foreground = bank.features[is_known], bank.foreground[is_known]
    share = foreground / (foreground + bank.background[is_known])
    is_inside = (share > 0.5) if bool((share > 0.5).any()) else share >= share.max()
    similarity = features @ target.T
    inside_similarity = similarity[is_inside]
    senders, found = (
        torch.from_numpy(ends) for ends in linear_sum_assignment(inside_similarity.numpy(), maximize=True)
    )
    comes_back = torch.zeros(len(found), dtype=torch.bool)
    ends, starts = (
        torch.from_numpy(ends) for ends in linear_sum_assignment(similarity[:, found].numpy(), maximize=True)
    )
    comes_back[starts] = is_inside[ends]
    posterior = torch.zeros(len(target))
    posterior[found] = torch.where(comes_back, (1 + inside_similarity[senders, found]) / 2, 0.0).clamp(0.0, 1.0)
    return ScoreMap(posterior, to_matching(posterior))
