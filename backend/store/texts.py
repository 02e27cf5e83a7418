"""Phrases of labels: text references, and the scales of those that no reference image measures."""

import json
from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from backend.core.phrases import Phrase
from backend.core.types import Json
from backend.store import tables
from backend.store.part import StorePart
from backend.store.propagations import lock_project
from backend.store.records import ProjectKey, TextReference

FROM_CONFIG: Final = "label config"
FROM_PAGE: Final = "page"

_texts, _vectors, _scales = tables.text_references, tables.text_vectors, tables.text_scales


def source_of_annotation(annotation_id: int) -> str:
    """Return the source of phrases that an annotation carries."""
    return f"annotation {annotation_id}"


class TextStore(StorePart):
    """Reached as `Store.texts`. Every method is one short transaction."""

    def replace(
        self,
        project_key: ProjectKey,
        source: str,
        phrases: Mapping[str, Collection[Phrase]],
        *,
        annotation_id: int | None = None,
    ) -> bool:
        """Make these the only phrases of a source.

        Args:
            project_key: of the project.
            source: where they come from.
            phrases: label to its phrases.
            annotation_id: if they go with an annotation, which the store has.

        Returns:
            Whether anything changed.

        Raises:
            NotFoundError: the project is not in the store.
        """
        wanted = {(label, phrase.text, phrase.is_negative) for label, some in phrases.items() for phrase in some}
        mine = (_texts.c.project_key == project_key) & (_texts.c.source == source)
        columns = (_texts.c.id, _texts.c.label, _texts.c.phrase, _texts.c.is_negative)
        with self._write() as connection:
            lock_project(connection, project_key)
            rows = connection.execute(sa.select(*columns).where(mine)).all()
            known = {(row.label, row.phrase, bool(row.is_negative)): row.id for row in rows}
            surplus = [row_id for one, row_id in known.items() if one not in wanted]
            if surplus:
                connection.execute(sa.delete(_texts).where(_texts.c.id.in_(surplus)))
            new = sorted(wanted - known.keys())
            for label, text, is_negative in new:
                connection.execute(
                    sa.insert(_texts).values(
                        project_key=project_key, annotation_id=annotation_id, source=source, label=label, phrase=text,
                        is_negative=is_negative,
                    )
                )  # fmt: skip
        return bool(surplus or new)

    def of_project(self, project_key: ProjectKey, text_space: str | None = None) -> list[TextReference]:
        """Return all phrases of a project, in an order that depends on their content only.

        Args:
            project_key: of the project.
            text_space: of the text encoder whose vectors are wanted; None: none are.
        """
        mine = sa.select(_texts).where(_texts.c.project_key == project_key)
        rows = self._read(mine.order_by(_texts.c.label, _texts.c.is_negative, _texts.c.phrase, _texts.c.source))
        vectors = self.vectors(text_space, {row.phrase for row in rows}) if text_space is not None else {}
        return [
            TextReference(row.label, Phrase(row.phrase, bool(row.is_negative)), row.source, vectors.get(row.phrase))
            for row in rows
        ]

    def without_vector(self, text_space: str) -> list[str]:
        """Return the phrases of all projects that have no vector of a text encoder, each once, in order."""
        known = sa.select(_vectors.c.phrase).where(_vectors.c.text_space == text_space)
        wanted = sa.select(_texts.c.phrase).where(_texts.c.phrase.not_in(known))
        return [row.phrase for row in self._read(wanted.distinct().order_by(_texts.c.phrase))]

    def vectors(self, text_space: str, phrases: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of those phrases that a text encoder has seen, in whatever project."""
        wanted = _vectors.c.phrase.in_(sorted(set(phrases))) & (_vectors.c.text_space == text_space)
        rows = self._read(sa.select(_vectors.c.phrase, _vectors.c.vector).where(wanted))
        return {row.phrase: np.frombuffer(row.vector, "<f4") for row in rows}

    def save_vectors(self, text_space: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep the vectors that a text encoder made of phrases."""
        with self._write() as connection:
            for phrase, vector in sorted(vectors.items()):
                mine = (_vectors.c.text_space == text_space) & (_vectors.c.phrase == phrase)
                row = {"text_space": text_space, "phrase": phrase, "vector": vector.astype("<f4").tobytes()}
                connection.execute(sa.delete(_vectors).where(mine))
                connection.execute(sa.insert(_vectors).values(row))

    def prune_vectors(self, text_space: str) -> int:
        """Delete the vectors of phrases that no project has, and of other text encoders than this; return their number.

        A phrase that is written in the editor and not submitted yet is among them: it is encoded again when it is.
        """
        used = sa.select(_texts.c.phrase)
        with self._write() as connection:
            unused = (_vectors.c.text_space != text_space) | _vectors.c.phrase.not_in(used)
            return connection.execute(sa.delete(_vectors).where(unused)).rowcount

    def save_scale(self, project_key: ProjectKey, label: str, digest: str, scale: Json) -> None:
        """Keep the scale of a label's phrases, in place of an older one.

        Args:
            project_key: of the project.
            label: the class.
            digest: of the phrases that it was measured with.
            scale: any JSON.

        Raises:
            NotFoundError: the project is not in the store.
        """
        mine = (_scales.c.project_key == project_key) & (_scales.c.label == label)
        row = {"project_key": project_key, "label": label, "digest": digest, "scale": json.dumps(scale)}
        with self._write() as connection:
            lock_project(connection, project_key)
            connection.execute(sa.delete(_scales).where(mine))
            connection.execute(sa.insert(_scales).values(row))

    def scales(self, project_key: ProjectKey) -> dict[str, tuple[str, Json]]:
        """Return label to the digest of the phrases that its scale was measured with, and the scale."""
        rows = self._read(sa.select(_scales).where(_scales.c.project_key == project_key))
        return {row.label: (row.digest, json.loads(row.scale)) for row in rows}
