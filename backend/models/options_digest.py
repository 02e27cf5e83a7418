"""Digests of options: what a signature says of them."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def options_digest(options: "DataclassInstance", *, without: Collection[str] = ()) -> str:
    """Return six hex digits that change with any option, nested ones included.

    All fields count unless they are named, so that an option added later is never forgotten in a signature.

    Args:
        options: a dataclass whose fields fit into JSON.
        without: names of fields that change no feature and no mask.
    """
    counted = {name: value for name, value in asdict(options).items() if name not in without}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:6]
