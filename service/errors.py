"""What goes wrong with a request: kind, message and hint as JSON, without the server's paths."""

from featurestore.errors import BiomassError, InputError, StoreDamaged, UsageError
from service.json_text import JsonText

STATUS = {
    "bad-request": 400,
    "unauthorized": 401,
    "not-found": 404,
    "method-not-allowed": 405,
    "not-sealed": 409,
    "too-long": 414,
    "range": 416,
    "store-damaged": 500,
    "internal": 500,
    "not-installed": 501,
    "busy": 503,
    "store-gone": 503,
}
KINDS = {StoreDamaged: "store-damaged", UsageError: "bad-request", InputError: "not-found"}
RETRY_S = 2


class ServiceError(Exception):
    """A request that gets no answer.

    It becomes `{"error": {"kind", "message", "hint"}}` with the kind's status.

    kind : a key of STATUS. message : what was asked for and why it is not there. hint : what to do,
        may be empty.
    headers : further headers of the answer.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        hint: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.headers = headers or {}

    @property
    def status(self) -> int:
        return STATUS[self.kind]

    def answer(self) -> JsonText:
        """The response that says so."""
        headers = {"Cache-Control": "no-store", **self.headers}
        if self.status == 503:
            headers["Retry-After"] = str(RETRY_S)
        body = {"error": {"kind": self.kind, "message": self.message, "hint": self.hint}}
        return JsonText(body, self.status, headers)


def translated(err: BiomassError, without_paths: str) -> ServiceError:
    """An error of the store or a sweep as one of the service.

    without_paths : its message as anybody may read it.
    """
    known = (kind for base, kind in KINDS.items() if isinstance(err, base))
    kind = next(known, "internal")
    return ServiceError(kind, without_paths)
