"""The foreground posterior by random features: linear in patches, the R x T matrix is never formed.

Symbols as in `matching`.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.core.matching import ReferenceBank, ScoreMap, balanced_mass, require_matchable, to_matching

DIRECTIONS = 16
FEATURES = 1024
SEED = 0
_ROUNDS = 6


def match_random_features(
    bank: ReferenceBank,
    target: Tensor,
    /,
    *,
    temperature: float,
    directions: int = DIRECTIONS,
    features: int = FEATURES,
    seed: int = SEED,
) -> ScoreMap:
    """Match as `match_posterior`, with its kernel replaced by the product of random features.

        exp(<x, y>) ~= <phi(x), phi(y)>,    phi_i(x) = prod_k D_k exp(A_k w_ik^2 + B_k w_ik x_k - x_k^2 / 2) /
        sqrt(features) D_k = (1 - 4 A_k)^(1/4),  B_k = sqrt(1 - 4 A_k),   w_i normal, orthogonal in blocks
        a[t] = phi(y_t) . sum_r alpha[r] phi(x_r),         b[t] likewise with beta

    alpha, beta: the balanced masses of `match_posterior`, so negatives, several references and unknown patches enter
    as they do there.
    There is no similarity floor: of the kernel the draw keeps the ratios alone.

    Plain random features drown at the temperatures that matching needs: their relative variance is exp(|x + y|^2) with
    |x|^2 = 1 / tau. Three things bring it down. The mean of the bank is taken off both sides, exactly: what depends on
    t alone cancels in the ratio, what depends on r alone is a weight. Of the rest only the leading `directions` of the
    bank are kept: the one step that changes the kernel itself. And A_k, chosen for the mean (x_k + y_k)^2, makes the
    draw wide where the patches are wide.

    `ScoreMap.error` is the standard error of the draw, from its two halves; what the dropped directions cost is not in
    it.

    Args:
        bank: as for `match_posterior`.
        target: likewise.
        temperature: likewise.
        directions: kept of the feature space; at most D are.
        features: random features, even.
        seed: of the draw.

    Raises:
        BadInputError: as `match_posterior`.

    Source: Choromanski et al., "Rethinking attention with Performers", ICLR 2021; Likhosherstov et al., "Chefs' random
    tables", NeurIPS 2022, Section 3 (A_k; here one for each direction).
    """
    require_matchable(bank, target, temperature)
    is_known = bank.foreground + bank.background > 0
    patches = bank.features[is_known]
    masses = torch.stack([balanced_mass(bank.foreground[is_known]), balanced_mass(bank.background[is_known])])
    weight = (masses / masses.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)).sum(dim=0)
    weight /= weight.sum()
    mean = weight @ patches
    basis = _leading_directions((patches - mean) * weight.sqrt()[:, None], min(directions, patches.shape[1]), seed)
    x = (patches - mean) @ basis / math.sqrt(temperature)
    y = (target - mean) @ basis / math.sqrt(temperature)
    spread = (weight @ x.square() + y.square().mean(dim=0) + 2 * (weight @ x) * y.mean(dim=0)).clamp_min(1e-3)
    draw, damping = _draw(x.shape[1], features, seed), _damping(spread)
    log_x = _log_features(x, draw, damping) + (patches @ mean / temperature)[:, None]
    log_y = _log_features(y, draw, damping)
    # Exponents reach hundreds: each feature is scaled by its largest reference, each patch by its largest feature.
    largest = log_x.amax(dim=0)
    sums = masses @ (log_x - largest).exp_()
    log_y += largest
    terms = (log_y - log_y.amax(dim=1, keepdim=True)).exp_()
    posterior = _ratio(terms, sums)
    half = features // 2
    gap = _ratio(terms[:, :half], sums[:, :half]) - _ratio(terms[:, half:], sums[:, half:])
    return ScoreMap(posterior, to_matching(posterior), error=float(gap.abs().mean()) / 2)


def _leading_directions(rows: Tensor, count: int, seed: int) -> Tensor:
    """(D, count) orthonormal: orthogonal iteration from a seeded start."""
    basis = torch.randn(rows.shape[1], count, generator=torch.Generator().manual_seed(seed))
    for _ in range(_ROUNDS):
        basis, triangle = torch.linalg.qr(rows.T @ (rows @ basis) + 1e-9 * basis)
        # LAPACK leaves the signs open, and another sign is another draw.
        basis = basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return basis


@lru_cache(maxsize=8)
def _draw(dimensions: int, features: int, seed: int) -> Tensor:
    """Return w (features, dimensions): normal rows, orthogonal in blocks of `dimensions`, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(math.ceil(features / dimensions)):
        block = torch.randn(dimensions, dimensions, generator=generator)
        lengths = torch.randn(dimensions, dimensions, generator=generator).norm(dim=1, keepdim=True)
        blocks.append(F.normalize(torch.linalg.qr(block)[0], dim=1) * lengths)
    return torch.cat(blocks)[:features]


def _damping(spread: Tensor) -> Tensor:
    """A_k <= 0 of least variance for a mean (x_k + y_k)^2 of `spread`."""
    z = spread.double()
    rho = (((2 * z + 1).square() + 8 * z).sqrt() - 2 * z - 1) / (4 * z)
    return ((1 - 1 / rho) / 8).float()


def _log_features(x: Tensor, draw: Tensor, damping: Tensor) -> Tensor:
    """Return log phi(x), (N, features), but for D_k and the number of features, which cancel."""
    return (x * (1 - 4 * damping).sqrt()) @ draw.T + draw.square() @ damping - x.square().sum(dim=1, keepdim=True) / 2


def _ratio(terms: Tensor, sums: Tensor) -> Tensor:
    inside, outside = (terms @ sums.T).T
    posterior: Tensor = inside / (inside + outside).clamp_min(torch.finfo(torch.float32).tiny)
    return posterior.clamp(0.0, 1.0)
