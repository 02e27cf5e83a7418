"""Regions as a prediction of Label Studio."""

from typing import Any

Json = dict[str, Any]


def prediction_of(regions: list[Json], version: str) -> Json:
    scores = [float(region["score"]) for region in regions]
    return {"result": regions, "score": sum(scores) / len(scores) if scores else None, "model_version": version}
