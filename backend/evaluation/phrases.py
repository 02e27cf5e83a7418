"""Quality with phrases: references alone, references and a phrase, a phrase alone."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from backend.core.masks import iou
from backend.core.phrases import parse_phrases
from backend.core.text_scores import LabelPhrases, mean_of_phrases, scale_of_images
from backend.core.types import EncodedImage, Json
from backend.engine.phrase_source import PhraseSource
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError, ConfigurationError
from backend.evaluation.datasets import draw_episode, find_classes, read_image, read_mask
from backend.models.text.protocol import TextEncoder

KINDS = ("without", "with", "alone")


def read_phrases_file(path: Path) -> dict[str, str]:
    """Read a JSON file of class to phrases, with semicolons between.

    Raises:
        BadInputError: no such file, or something else in it.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} must be a JSON object of class to phrases, got {error}") from error
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise BadInputError(f"{path} must be a JSON object of class to phrases, got other JSON")
    return content


def evaluate_phrases(
    directory: Path,
    phrases: Mapping[str, str],
    engine: Softmatcher,
    text_encoder: TextEncoder,
    *,
    shots: int = 1,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
) -> Json:
    """Measure the mIoU of the classes that have phrases.

    Args:
        directory: `<set>/<class>/<n>.jpg` with `<n>.png`.
        phrases: class to its phrases.
        engine: of a profile with a text encoder.
        text_encoder: of the same space.
        shots: references per class.
        seeds: each draws other references.
        limit: up to this many targets per class and seed.

    Returns:
        `miou` and, by `set/class`, `classes`: each `without`, `with` and `alone`; `weights`: the mean w.

    Raises:
        BadInputError: no class has a phrase, or a phrase cannot be read.
        ConfigurationError: engine and text encoder share no space.
    """
    if engine.text_space != text_encoder.text_space:
        raise ConfigurationError(
            f"the text encoder must share the space {engine.text_space}, got {text_encoder.text_space}"
        )
    classes = [one for one in find_classes(directory) if one.class_name in phrases]
    if not classes:
        raise BadInputError(f"phrases must be of classes in {directory}, got {', '.join(phrases)[:200]}")
    found: dict[str, dict[str, float]] = {}
    weights: dict[str, float] = {}
    for one in classes:
        spoken = _as_vectors(phrases[one.class_name], text_encoder)
        reached: dict[str, list[float]] = defaultdict(list)
        fitted = []
        for seed in seeds:
            episode = draw_episode(one, shots=shots, seed=seed, limit=limit)
            encoded = {
                path: engine.encode(read_image(path), with_text=True)
                for path in (*episode.references, *episode.targets)
            }
            references = [
                engine.describe(read_image(path), encoded[path], read_mask(path), is_complete=True)
                for path in episode.references
            ]
            bank = {one.class_name: engine.gather(references)}
            scale = engine.fit_phrases(one.class_name, spoken, [[reference] for reference in references], bank)
            alone = scale_of_images([_scores(spoken, image) for image in encoded.values()])
            fitted.append(scale.weight)
            fused = {one.class_name: [PhraseSource(spoken, scale)]}
            by_phrase = {} if alone is None else {one.class_name: [PhraseSource(spoken, alone)]}
            for path in episode.targets:
                truth = read_mask(path)
                for kind, known, sources in (("without", bank, {}), ("with", bank, fused), ("alone", {}, by_phrase)):
                    masks = engine.segment(encoded[path], known, sources=sources)
                    reached[kind].append(iou(masks[0].mask, truth) if masks else float(not truth.any()))
        found[one.name] = {kind: fmean(reached[kind]) for kind in KINDS}
        weights[one.name] = fmean(fitted)
    return {
        "miou": {kind: fmean(of_class[kind] for of_class in found.values()) for kind in KINDS},
        "classes": found,
        "weights": weights,
    }


def _as_vectors(text: str, encoder: TextEncoder) -> LabelPhrases:
    spoken = parse_phrases(text)
    vectors = encoder.encode([phrase.text for phrase in spoken])
    positive = [vector for phrase, vector in zip(spoken, vectors, strict=True) if not phrase.is_negative]
    if not positive:
        raise BadInputError(f"a class must have a phrase that is not negative, got {text[:60]!r}")
    negative = [vector for phrase, vector in zip(spoken, vectors, strict=True) if phrase.is_negative]
    return LabelPhrases(mean_of_phrases(positive), np.stack(negative) if negative else vectors[:0])


def _scores(phrases: LabelPhrases, encoded: EncodedImage) -> NDArray[np.float32]:
    assert encoded.text_features is not None  # the spaces agree
    return phrases.scores(encoded.text_features.astype(np.float32).reshape(-1, encoded.text_features.shape[2]))
