"""The settings of a server."""

from dataclasses import dataclass
from math import isfinite

from gistkit.errors import OptionError
from gistkit.fidelity import MIN_FIDELITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a server (raises OptionError: a value out of range).

    Attributes:
        min_fidelity: gists measured below it are not used.
        max_body: bytes of a request, except for gist files.
        timeout: seconds of a request, time in the queue included.
        drain_seconds: how long running answers may continue after SIGTERM.
    """

    min_fidelity: float = MIN_FIDELITY
    max_body: int = 2**20
    timeout: float = 600.0
    drain_seconds: float = 30.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_fidelity <= 1:
            raise OptionError(f"`min_fidelity` must be between 0 and 1, not {self.min_fidelity}")
        if self.max_body < 1:
            raise OptionError(f"`max_body` must be at least 1 byte, not {self.max_body}")
        if not (self.timeout > 0 and isfinite(self.timeout)):
            raise OptionError(f"`timeout` must be more than 0 seconds, not {self.timeout}")
        if not (self.drain_seconds >= 0 and isfinite(self.drain_seconds)):
            raise OptionError(f"`drain_seconds` must be 0 or more, not {self.drain_seconds}")
