"""Folds: annotated images dealt into parts, each of which is predicted from the others."""

from collections.abc import Sequence

from backend.projects.quality.annotated_images import AnnotatedImage


def deal_folds(images: Sequence[AnnotatedImage], count: int) -> list[list[AnnotatedImage]]:
    """Deal images into folds, those with one content into one fold; labels are spread as far as the order is."""
    folds: list[list[AnnotatedImage]] = [[] for _ in range(count)]
    place: dict[str, int] = {}
    for image in images:
        index = place.setdefault(image.image_sha256, len(place) % count)
        folds[index].append(image)
    return [fold for fold in folds if fold]
