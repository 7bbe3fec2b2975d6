"""One tree of typed errors for all services.

    BatonError
    ├── InvalidRequest          the caller's mistake; `param` names the field        400
    │   └── PromptTooLong       names the limit and the length                       400
    ├── Unauthenticated         no API key, or none that is known                    401
    ├── Forbidden               the API key does not allow it                        403
    ├── ModelNotFound           no such model here                                   404
    ├── RequestTooLarge         the body exceeds the limit                           413
    ├── Overloaded              try again after `retry_after_s`                      429
    ├── LimitReached            of an API key; try again after `retry_after_s`       429
    │   └── QuotaExhausted      until its period ends                                429
    ├── Cancelled               the caller went away                                 499
    ├── InternalError           a defect of ours                                     500
    ├── Unavailable             nobody can serve it now; `retry_after_s`             503
    │   └── StoreUnavailable    Redis cannot be reached, or refuses the command      503
    ├── DeadlineExceeded        the request's time is over                           504
    ├── AttemptFailed           this placement failed, another may not (router only)
    │   ├── HandoffFailed       pages did not arrive whole, or their lease had ended
    │   └── WorkerLost          the worker's stream broke or its epoch changed
    └── ConfigError             start-up: settings that cannot work
        └── CheckpointError     start-up: a checkpoint that cannot be loaded

An error crosses a process as (code, message, param, retry_after_s); `from_code` makes the same class again.
Only the edge (gateway, CLI) renders it for people.
"""

from __future__ import annotations


class BatonError(Exception):
    """Base of all errors that Baton raises on purpose.

    `code` is stable and crosses processes; `http_status` is what the gateway answers;
    `retryable` says that the router may place the request anew.
    """

    code = "internal"
    http_status = 500
    retryable = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(BatonError):
    code = "invalid_request"
    http_status = 400


class PromptTooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unauthenticated(BatonError):
    code = "invalid_api_key"
    http_status = 401


class Forbidden(BatonError):
    code = "permission_denied"
    http_status = 403


class ModelNotFound(BatonError):
    code = "model_not_found"
    http_status = 404


class RequestTooLarge(BatonError):
    code = "request_too_large"
    http_status = 413


class Overloaded(BatonError):
    code = "overloaded"
    http_status = 429


class LimitReached(BatonError):
    code = "rate_limit_exceeded"
    http_status = 429


class QuotaExhausted(LimitReached):
    code = "insufficient_quota"


class Cancelled(BatonError):
    code = "cancelled"
    http_status = 499


class InternalError(BatonError):
    code = "internal"
    http_status = 500


class Unavailable(BatonError):
    code = "unavailable"
    http_status = 503


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class DeadlineExceeded(BatonError):
    code = "deadline_exceeded"
    http_status = 504


class AttemptFailed(BatonError):
    code = "attempt_failed"
    http_status = 503
    retryable = True


class HandoffFailed(AttemptFailed):
    code = "handoff_failed"


class WorkerLost(AttemptFailed):
    code = "worker_lost"


class ConfigError(BatonError):
    code = "config"


class CheckpointError(ConfigError):
    code = "checkpoint"


def _tree(root: type[BatonError]) -> list[type[BatonError]]:
    return [root, *(cls for sub in root.__subclasses__() for cls in _tree(sub))]


_BY_CODE: dict[str, type[BatonError]] = {cls.code: cls for cls in _tree(BatonError) if cls is not BatonError}


def from_code(code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> BatonError:
    """Make the error that `code` names; a code of a newer peer becomes InternalError with the code in its message."""
    cls = _BY_CODE.get(code)
    if cls is None:
        return InternalError(f"{code}: {message}", param=param, retry_after_s=retry_after_s)
    return cls(message, param=param, retry_after_s=retry_after_s)
