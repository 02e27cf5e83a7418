"""Regions as a prediction of Label Studio."""

from backend.core.types import Json


def prediction_of(regions: list[Json], version: str) -> Json:
    """Return regions as a prediction, whose score is the mean of theirs; None without any."""
    scores = [float(region["score"]) for region in regions]
    return {"result": regions, "score": sum(scores) / len(scores) if scores else None, "model_version": version}
