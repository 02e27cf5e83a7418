"""Answers of Label Studio's API: JSON, or one of this project's errors."""

import requests

from backend.core.types import Json
from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError, TooLargeError
from backend.own_http import proxy_advice

_SHOWN_CHARACTERS = 300


def read_answer(response: requests.Response, what: str) -> object:
    """Return the JSON of an answer; None if it has no content.

    Args:
        response: of Label Studio, or of a proxy before it.
        what: was asked, for messages.

    Raises:
        NotFoundError, LabelStudioError, LabelStudioUnavailableError, BadInputError, TooLargeError: see
            `LabelStudioClient`.
    """
    status = response.status_code
    if status == 204 or (status < 300 and not response.content):
        return None
    if status < 300:
        try:
            return response.json()
        except ValueError as error:
            raise LabelStudioError(
                f"Label Studio must answer {what} with JSON, got {response.headers.get('Content-Type')}: check that "
                f"LABEL_STUDIO_URL is its address{proxy_advice(response.url)}"
            ) from error
    if status == 404:
        if not _is_label_studios_own(response):
            raise LabelStudioUnavailableError(
                f"{what} was answered with 404 by something else than Label Studio "
                f"({response.headers.get('Content-Type')}): check that it runs, and that LABEL_STUDIO_URL and the "
                f"proxies before it lead there{proxy_advice(response.url)}"
            )
        raise NotFoundError(f"Label Studio does not have it (any more): {what} was answered with 404")
    if status in (401, 403):
        raise LabelStudioError(
            f"Label Studio refused {what} ({status}: {_detail(response)}): set LABEL_STUDIO_API_KEY to a token of one "
            "who may see the project (Account & Settings > Personal Access Token; a Legacy Token only where the "
            "organisation allows them)"
        )
    if status == 413:
        raise TooLargeError(f"{what} was too large for Label Studio or a proxy before it (413)")
    if status == 400:
        raise BadInputError(f"Label Studio found fault with {what}: {_detail(response)}")
    if 300 <= status < 400:
        raise LabelStudioError(
            f"Label Studio redirects {what} ({status}): set LABEL_STUDIO_URL to the address that it redirects to, with "
            "https where that is the difference"
        )
    raise LabelStudioError(f"Label Studio answered {what} with {status}: {_detail(response)}")


def _is_label_studios_own(response: requests.Response) -> bool:
    """Return whether Label Studio 1.23.2 wrote an error itself: its API's errors name their status and its version."""
    try:
        answer = response.json()
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("status_code") == response.status_code and "version" in answer


def _detail(response: requests.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        return f"no JSON but {response.headers.get('Content-Type')}"
    if isinstance(answer, dict):
        answer = answer.get("validation_errors") or answer.get("detail") or "no detail"
    return str(answer)[:_SHOWN_CHARACTERS]


def object_of(answer: object) -> Json:
    """Return an answer that must be a JSON object; LabelStudioError if it is none."""
    if not isinstance(answer, dict):
        raise LabelStudioError(
            f"Label Studio must answer with an object, got {type(answer).__name__}: check its version"
        )
    return answer


def items_of(answer: object) -> list[Json]:
    """Return an answer that must be a list of JSON objects; LabelStudioError if it is none."""
    if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
        raise LabelStudioError(f"Label Studio must answer with a list, got {type(answer).__name__}: check its version")
    return answer
