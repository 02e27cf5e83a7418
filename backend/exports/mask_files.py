"""Masks in the files of a folder, COCO or PNG, for `importing`."""

from pathlib import Path

from backend.errors import BadInputError
from backend.exports.coco_documents import find_coco
from backend.exports.index_mask_files import find_index_masks
from backend.exports.mask_sources import FoundMasks, MaskFolder
from backend.labelstudio.label_config import LabelConfig


def find_masks(folder: Path, config: LabelConfig) -> FoundMasks:
    """Find the masks in a folder: COCO files (`*.json` with images and annotations) if there are any, else index PNGs.

    Image files beside them are known by their content.

    Raises:
        BadInputError: neither, or a file that is not what it seems to be.
    """
    if not folder.is_dir():
        raise BadInputError(f"expected a folder with COCO files or PNG masks, got {folder}: it is none")
    files = MaskFolder(folder)
    coco = find_coco(files)
    if coco.sources:
        has_masks = (folder / "labels.json").is_file() or (folder / "masks").is_dir()
        note = ("PNG masks were left out: the folder has COCO documents",) if has_masks else ()
        return FoundMasks(coco.sources, coco.problems, (*coco.notes, *note))
    try:
        found = find_index_masks(files, config)
    except BadInputError as error:
        if coco.problems or coco.notes:
            raise BadInputError("; ".join([str(error), *coco.problems, *coco.notes][:6])) from error
        raise
    return FoundMasks(found.sources, (*coco.problems, *found.problems), (*coco.notes, *found.notes))
