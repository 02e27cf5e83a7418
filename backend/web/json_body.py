"""The body of a request as a JSON object, strictly."""

import json
from typing import NoReturn

from flask import request

from backend.core.types import Json
from backend.errors import BadInputError

MOST_CONTAINERS = 1_000_000
"""Lists and objects of a body. Each takes about 90 bytes, written in two: 28 MB of them would become 860 MB."""
MOST_ITEMS = 200_000_000
"""Items of all lists and objects of a body, at 8 bytes each; the masks of tasks are lists of small numbers."""


def read_json_object() -> Json:
    """Return the object that the body is, whatever the content type says.

    Raises:
        BadInputError: no JSON, in no Unicode encoding, NaN or Infinity in it, nested too deeply, more lists and objects
            than any request of Label Studio has, or not an object.
    """
    content = request.get_data()
    containers, items = content.count(b"[") + content.count(b"{"), content.count(b",")
    if containers > MOST_CONTAINERS or items > MOST_ITEMS:
        raise BadInputError(
            f"expected a JSON object of at most {MOST_CONTAINERS} lists and objects and {MOST_ITEMS} items, got up to "
            f"{containers} and {items}: send fewer tasks at a time"
        )
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise BadInputError(
            "expected a JSON object as the body, got one that is nested too deeply: send it less nested"
        ) from error
    except ValueError:  # a number of thousands of digits is one too
        body = None
    if not isinstance(body, dict):
        raise BadInputError("expected a JSON object as the body, got something else: correct it")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")  # and an answer that repeated it would be none either
