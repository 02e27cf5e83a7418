"""Names of the spaces that encoders and text encoders share; nothing of either is imported."""

from pathlib import Path

from backend.models.weights.digest import weights_sha256

TIPS_MODEL = "vit_base_patch14_reg1_tipsv2"
"""Name of the file in the catalogue: it has the weights of both encoders."""


def tips_text_space(weights: Path | None) -> str:
    """Return the name of the space that both encoders of a file share; None: of random weights."""
    return f"tipsv2:{weights_sha256(weights)[:12] if weights else 'random0'}"
