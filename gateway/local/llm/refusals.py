"""Everything that can be wrong with a request, as TGI says it: status and `error_type` sit on the class."""

from typing import ClassVar


class Refusal(Exception):
    """Base. `error` is what the caller reads; `metric` the `err` label of `tgi_request_failure`."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "internal"

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class Invalid(Refusal):
    """A body that is no JSON of the right shape, a bad parameter, or too many tokens."""

    status = 422
    error_type = "validation"

    def __init__(self, error: str) -> None:
        super().__init__(f"Input validation error: {error}")


class Overloaded(Refusal):
    """More requests at once than the server admits. Nothing was started."""

    status = 429
    error_type = "overloaded"

    def __init__(self) -> None:
        super().__init__("Model is overloaded")


class GenerationFailed(Refusal):
    """The model raised."""

    status = 424
    error_type = "generation"

    def __init__(self, error: str) -> None:
        super().__init__(f"Request failed during generation: {error}")


class ClientGone(Refusal):
    """The client left before its answer was ready: nobody reads this."""

    status = 499
    error_type = "cancelled"

    def __init__(self) -> None:
        super().__init__("the client has gone")
