"""Every error that this project raises on purpose, named by whose problem it is.

A message says what was expected, what came and what to do. `service.py` holds the one table from class to HTTP status.
"""


class SoftmatcherError(Exception):
    """Root of the tree; never raised itself."""


class BadInputError(SoftmatcherError):
    """A request, image, annotation or label config cannot be used as it is: its sender has to change it."""


class TooLargeError(BadInputError):
    """More was sent at a time than the other side takes; the same in parts may do."""


class NotFoundError(SoftmatcherError):
    """A project, task, annotation or image does not exist (any more)."""


class ConflictError(SoftmatcherError):
    """A request conflicts with running work: wait for that, cancel it, or ask to replace it."""


class ForbiddenError(SoftmatcherError):
    """A page of another site, or under another name, made a browser ask: nothing is done for it."""


class ConfigurationError(SoftmatcherError):
    """A setting is missing or wrong: the operator has to change it."""


class LabelStudioError(SoftmatcherError):
    """Label Studio (or an image host) refused: wrong token, no permission, an answer nobody expected."""


class LabelStudioUnavailableError(LabelStudioError):
    """Label Studio (or an image host) did not answer, or answered 429 or 5xx: worth another try later.

    Attributes:
        retry_after_s: how much later, where it said so.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelUnavailableError(SoftmatcherError):
    """A model cannot be loaded, or is still loading: weights missing, wrong or unreadable."""


class DecodingUnavailableError(ModelUnavailableError):
    """No process can be started to decode an image, or this one is about to end: worth another try."""


class QueueUnavailableError(SoftmatcherError):
    """Redis or Valkey did not answer."""


class StoreUnavailableError(SoftmatcherError):
    """The database is locked, full, read-only, damaged or does not answer: worth another try once that is mended."""


class OutputError(SoftmatcherError):
    """A file cannot be written where it shall be: the disk is full, the folder read-only, or the place taken."""
