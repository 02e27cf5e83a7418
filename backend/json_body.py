"""The body of a request as a JSON object, strictly."""

import json
from typing import Any, NoReturn

from flask import request

from backend.errors import BadInputError


def read_json_object() -> dict[str, Any]:
    """The object that the body is, whatever the content type says.

    Raises:
        BadInputError: no JSON, in no Unicode encoding, NaN or Infinity in it, nested too deeply, or not an object.
    """
    try:
        body = json.loads(request.get_data(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise BadInputError("expected a JSON object as the body, got one that is nested too deeply") from error
    except ValueError:  # a number of thousands of digits is one too
        body = None
    if not isinstance(body, dict):
        raise BadInputError("expected a JSON object as the body, got something else")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")  # and an answer that repeated it would be none either
