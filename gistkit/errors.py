"""Every error a user of gistkit can cause, in one tree.

    GistkitError
    ├── OptionError         an option's value: k, precision, family, condition, a count below one
    ├── PromptError         an instruction or input: missing, empty, too long, `<GIST>` inside
    ├── DataError           a data file: missing, malformed at line n, a missing field, empty
    ├── ModelError
    │   ├── ModelNotFoundError     no such folder or hub id, or it cannot be read
    │   ├── NotAGistModelError     a plain language model, not trained for `<GIST>`
    │   └── UnsupportedModelError  a model the theorem is not proved for; says why
    ├── GistError
    │   ├── GistFileError          a gist file: missing, truncated, changed, another version
    │   └── GistMismatchError      a gist made by another model, or gists that cannot be stacked
    ├── MaskError           gist tokens of a row that are not one contiguous span
    ├── TrainingError       a run that cannot continue: the loss is not a number, no memory left
    ├── JudgeError          a judge's endpoint: unreachable, refuses the key, leaves pairs unjudged
    ├── ServerError
    │   ├── BusyError              the request queue is full; says when to try again
    │   └── UnavailableError       the engine stopped, or is stopping
    ├── SaveError           writing failed (disk full, no permission); nothing half-written is left
    └── MissingExtraError   an optional dependency; the message is the pip command

Each message is one line that says what was wrong, where, and what to do. The command line prints it
and exits with status 2. Bugs of gistkit are not in this tree: they are assertions.
"""


class GistkitError(Exception):
    """Something the user can correct."""


class OptionError(GistkitError, ValueError):
    """An option has an invalid value."""


class PromptError(GistkitError, ValueError):
    """An instruction or an input cannot be turned into a prompt."""


class DataError(GistkitError, ValueError):
    """A data file cannot be read as examples."""


class ModelError(GistkitError):
    """A model cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no model at that path or hub id."""


class NotAGistModelError(ModelError, ValueError):
    """A language model without gist tokens."""


class UnsupportedModelError(ModelError, ValueError):
    """A model for which cached gists are not proved equal to masked attention."""


class GistError(GistkitError):
    """A gist cannot be used."""


class GistFileError(GistError, ValueError):
    """A gist file is missing, damaged, or of another format version."""


class GistMismatchError(GistError, ValueError):
    """A gist belongs to another model, or gists differ in what must be equal."""


class MaskError(GistkitError, ValueError):
    """The gist tokens of a row do not form one contiguous span."""


class TrainingError(GistkitError, RuntimeError):
    """A training run cannot continue; its last complete checkpoint is kept."""


class JudgeError(GistkitError, RuntimeError):
    """An endpoint cannot be used as a judge; judgements made so far are kept."""


class ServerError(GistkitError, RuntimeError):
    """A valid request cannot be answered now."""


class BusyError(ServerError):
    """The request queue is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type["BusyError"], tuple[str, float]]:
        return type(self), (str(self), self.retry_after)


class UnavailableError(ServerError):
    """The engine cannot answer."""


class SaveError(GistkitError, OSError):
    """A file could not be written; what was there before is untouched."""


class MissingExtraError(GistkitError, ImportError):
    """An optional dependency is not installed.

    >>> str(MissingExtraError("rouge_score", "eval"))
    "rouge_score is not installed: pip install 'gistkit[eval]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'gistkit[{extra}]'")
        self._needed = (package, extra)

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        return type(self), self._needed
