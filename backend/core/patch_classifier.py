"""Patch classifier: logistic regression on the references' patches, blended with the posterior.

Symbols as in `matching`. In the posterior every channel of the features counts alike. Several references show which
directions of the features tell the object from its surroundings; one does not: its object may differ from the rest of
the image by light or place alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core import cancellation
from backend.core.arrays import Array, Device, logit, sigmoid, to_device

SHARES = ((2, 0.25), (5, 0.5))
"""Number of reference images from which a label's classifier has this share of the log-odds; with fewer it has none.
Measured with the encoder of `lite` (docs/algorithm.md)."""
RIDGE = 0.1
"""Weight of half the squared norm of the coefficients beside the loss; for features of unit length."""
_MOST_ITERATIONS = 60
GRADIENT_BOUND = 0.01
"""The fit ends when no component of the gradient is steeper, in the variables in which it is done."""
CONSTANT_SCALE = np.float32(0.2)
"""Unit of the constant in the fit. Along the constant the loss bends some hundred times as much as along a direction;
so the fit takes 0.6 of the steps, and ends nearer to the optimum."""
_EPSILON = 1e-4


@dataclass(frozen=True, eq=False)
class PatchClassifier:
    """A fitted classifier of one label.

    Attributes:
        direction: (D,) float32: v.
        constant: () float32: b; the log-odds of a patch g are <v, g> + b.
        share: of these log-odds in those of the label's posterior, in [0, 1].
    """

    direction: Array
    constant: Array
    share: float

    def blend(self, posterior: Array, target: Array) -> Array:
        """Blend the classifier with a posterior.

            logit q'[t] = (1 - share) logit q[t] + share (<v, g_t> + b)

        Args:
            posterior: (T,) float32 in [0, 1]: q.
            target: (T, D) float32 of unit length.

        Returns:
            (T,) float32 in [0, 1].
        """
        own = logit(posterior, _EPSILON)
        return sigmoid(own + self.share * (target @ self.direction + self.constant - own))

    def to(self, device: Device) -> "PatchClassifier":
        """Return the classifier on a device."""
        return PatchClassifier(to_device(self.direction, device), to_device(self.constant, device), self.share)


def classifier_share(reference_images: int) -> float:
    """Return the share that a classifier has with this number of reference images, in [0, 1]."""
    return max((share for least, share in SHARES if reference_images >= least), default=0.0)


def fit_patch_classifier(
    features: NDArray[np.float32],
    foreground: NDArray[np.float32],
    background: NDArray[np.float32],
    *,
    reference_images: int,
) -> PatchClassifier | None:
    """Fit a classifier of foreground against background patches.

        min_{v, b}  sum_r ( a[r] log(1 + exp(-z[r])) + b[r] log(1 + exp(z[r])) ) + RIDGE / 2 |v|^2
        z[r] = <v, f_r> + b,     a[r] = foreground[r] / sqrt(sum foreground),     b[r] likewise with background[r]

    The masses are balanced as in the posterior, so both parts of the blend have the same threshold. A patch without
    mass (ambiguous) takes no part. The problem is convex; L-BFGS solves it for v and the log-odds at the mean patch m:
    z[r] = <v, f_r - m> + c. The optimum is the same, and is found in fewer steps, since v and c hardly interact.

    Args:
        features: (R, D) float32, of unit length, on the CPU.
        foreground: (R,) float32 >= 0.
        background: (R,) float32 >= 0.
        reference_images: number of different images that these patches are of.

    Returns:
        None if so few images give it no share, or if foreground or background is missing.

    Raises:
        CancelledWorkError: see `cancellation.check`; asked before each step.
    """
    # Imported here: most labels have one reference, and no classifier.
    from scipy.optimize import fmin_l_bfgs_b as minimize

    share = classifier_share(reference_images)
    if not share or not float(foreground.sum()) > 0 or not float(background.sum()) > 0:
        return None
    inside, outside = (mass / np.sqrt(mass.sum()) for mass in (foreground, background))
    both = inside + outside
    mean = both @ features / both.sum()
    found, _, _ = minimize(
        _loss,
        np.zeros(features.shape[1] + 1),
        args=(features, inside, both, mean),
        maxiter=_MOST_ITERATIONS,
        pgtol=GRADIENT_BOUND,
    )
    return PatchClassifier(*_unpack(found, mean), share)


def _unpack(
    variables: NDArray[np.float64], mean: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the direction, (D,), and the constant, ()."""
    direction = variables[:-1].astype(np.float32)
    return direction, np.asarray(np.float32(variables[-1]) * CONSTANT_SCALE - mean @ direction)


def _loss(
    variables: NDArray[np.float64],
    features: NDArray[np.float32],
    inside: NDArray[np.float32],
    both: NDArray[np.float32],
    mean: NDArray[np.float32],
) -> tuple[float, NDArray[np.float64]]:
    """Return what is minimised, and its gradient."""
    cancellation.check()
    direction, constant = _unpack(variables, mean)
    odds = features @ direction + constant
    # One term for both classes: log(1 + exp(-z)) = log(1 + exp(z)) - z.
    value = both @ np.logaddexp(np.float32(0), odds) - inside @ odds + RIDGE / 2 * (direction @ direction)
    slope = both * sigmoid(odds) - inside
    total = slope.sum()
    gradient = np.append(slope @ features - total * mean + RIDGE * direction, total * CONSTANT_SCALE)
    return float(value), gradient.astype(np.float64)
