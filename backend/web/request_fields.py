"""Fields of a request that is a form or JSON: plain forms of people, JSON of programs."""

import re

from flask import Response, jsonify, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from backend.core.types import Json
from backend.errors import BadInputError
from backend.web.json_body import read_json_object


def is_form() -> bool:
    """Return whether a person's form was sent, not a program's JSON."""
    return request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data")


def read_fields() -> Json:
    """Return what was sent, as a form or as JSON; an empty body is an empty object.

    Raises:
        BadInputError: neither of them.
    """
    if is_form():
        lists = {name: values for name, values in request.form.lists() if any(values)}
        return {name: values if name == "labels" else values[-1] for name, values in lists.items()}
    if not request.get_data(cache=True):
        return {}
    return read_json_object()


def read_flag(fields: Json, name: str) -> bool:
    """Return a field as a truth value; False if it is absent."""
    value = fields.get(name, False)
    if value in (True, False):
        return bool(value)
    if str(value).lower() in ("on", "true", "1"):
        return True
    raise BadInputError(f'expected "{name}": true or false, got {str(value)[:40]!r}')


def read_texts(fields: Json, name: str) -> tuple[str, ...] | None:
    """Return a field as texts; None if it is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadInputError(f'expected "{name}": a list of texts, got {type(value).__name__}')
    return tuple(value)


def read_phrases(fields: Json) -> dict[str, str]:
    """Return the field `phrases`: label to the text of its phrases.

    Raises:
        BadInputError: something else was sent.
    """
    sent = fields.get("phrases")
    if not isinstance(sent, dict) or not all(isinstance(text, str) for text in sent.values()):
        raise BadInputError(
            f'expected "phrases": an object of label to text, as {{"Rust": "orange rust; -red paint"}}, got '
            f"{type(sent).__name__}"
        )
    return sent


def read_number(fields: Json, name: str) -> int | None:
    """Return a field as a whole number; None if it is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", str(value)):
        raise BadInputError(f'expected "{name}": a whole number, got {str(value)[:40]!r}')
    return int(value)


def answer_done(project_id: int, answer: Json, status: int, *, tab: str) -> tuple[Response, int] | AnyResponse:
    """Answer programs with JSON, and lead people's forms back to a tab of the project's page."""
    if is_form():
        return redirect(url_for("pages.page", project_id=project_id, tab=tab), code=303)
    return jsonify(answer), status
