"""Patch classifier: logistic regression on the references' patches, blended with the posterior.

Symbols as in `matching`. In the posterior every channel of the features counts alike. Several references show which
directions of the features tell the object from its surroundings; one does not: its object may differ from the rest of
the image by light or place alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHARES = ((2, 0.25), (5, 0.5))
"""Number of reference images from which a label's classifier has this share of the log-odds; with fewer it has none.
Measured with the encoder of `lite` (docs/algorithm.md)."""
RIDGE = 0.1
"""Weight of half the squared norm of the coefficients beside the loss; for features of unit length."""
_MOST_ITERATIONS = 60
_EPSILON = 1e-4


@dataclass(frozen=True, eq=False)
class PatchClassifier:
    """A fitted classifier of one label.

    Attributes:
        direction: (D,) float32: v.
        constant: () float32: b; the log-odds of a patch g are <v, g> + b.
        share: of these log-odds in those of the label's posterior, in [0, 1].
    """

    direction: Tensor
    constant: Tensor
    share: float

    def blend(self, posterior: Tensor, target: Tensor) -> Tensor:
        """Blend the classifier with a posterior.

            logit q'[t] = (1 - share) logit q[t] + share (<v, g_t> + b)

        Args:
            posterior: (T,) float32 in [0, 1]: q.
            target: (T, D) float32 of unit length.

        Returns:
            (T,) float32 in [0, 1].
        """
        log_odds = torch.addmv(self.constant.expand(len(target)), target, self.direction)
        return torch.sigmoid(torch.lerp(torch.logit(posterior, _EPSILON), log_odds, self.share))

    def to(self, device: torch.device) -> "PatchClassifier":
        """Return the classifier on a device."""
        return PatchClassifier(self.direction.to(device), self.constant.to(device), self.share)


def classifier_share(reference_images: int) -> float:
    """Return the share that a classifier has with this number of reference images, in [0, 1]."""
    return max((share for least, share in SHARES if reference_images >= least), default=0.0)


def fit_patch_classifier(
    features: Tensor, foreground: Tensor, background: Tensor, *, reference_images: int
) -> PatchClassifier | None:
    """Fit a classifier of foreground against background patches.

        min_{v, b}  sum_r ( a[r] log(1 + exp(-z[r])) + b[r] log(1 + exp(z[r])) ) + RIDGE / 2 |v|^2
        z[r] = <v, f_r> + b,     a[r] = foreground[r] / sqrt(sum foreground),     b[r] likewise with background[r]

    The masses are balanced as in the posterior, so both parts of the blend have the same threshold. A patch without
    mass (ambiguous) takes no part. The problem is convex; L-BFGS solves it.

    Args:
        features: (R, D) float32, of unit length, on the CPU.
        foreground: (R,) float32 >= 0.
        background: (R,) float32 >= 0.
        reference_images: number of different images that these patches are of.

    Returns:
        None if so few images give it no share, or if foreground or background is missing.
    """
    share = classifier_share(reference_images)
    if not share or not float(foreground.sum()) > 0 or not float(background.sum()) > 0:
        return None
    inside, outside = (mass / mass.sum().sqrt() for mass in (foreground, background))
    both = inside + outside
    coefficients = torch.zeros(features.shape[1] + 1)
    solver = torch.optim.LBFGS(
        [coefficients],
        max_iter=_MOST_ITERATIONS,
        tolerance_grad=1e-3,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        direction, constant = coefficients[:-1], coefficients[-1]
        odds = features @ direction + constant
        # One term for both classes: log(1 + exp(-z)) = log(1 + exp(z)) - z.
        value = both @ F.softplus(odds) - inside @ odds + RIDGE / 2 * (direction @ direction)
        slope = both * torch.sigmoid(odds) - inside
        coefficients.grad = torch.cat([slope @ features + RIDGE * direction, slope.sum()[None]])
        return float(value)

    solver.step(loss)  # type: ignore[no-untyped-call]
    return PatchClassifier(coefficients[:-1].clone(), coefficients[-1].clone(), share)
