"""The methods by name. A method is one file (see `method.py`) and one row here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from gistkit.compare.extractive import Extractive
from gistkit.compare.lingua import LINGUA, Lingua
from gistkit.compare.method import Method
from gistkit.compare.modes import FullPrompt, GistTokens, NoPrompt
from gistkit.compare.pooling import MeanPooling
from gistkit.compare.presses import PRESSES, Press, Workers
from gistkit.compare.trained import TrainedEntries
from gistkit.compare.truncation import Truncation
from gistkit.errors import OptionError
from gistkit.prompts import Example

FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to compare.

    Attributes:
        methods: names of `METHODS`; empty: all. The full prompt is always there.
        budgets: k of every method; empty: the model's default number of gist tokens.
        trained_limit: rows for which entries are trained.
        lingua: folder or hub id of LLMLingua-2's classifier.
        seed: of intervals and probes.
    """

    methods: tuple[str, ...] = ()
    budgets: tuple[int, ...] = ()
    trained_limit: int = 10
    lingua: str = LINGUA
    cache_dir: str | None = None
    max_new_tokens: int = 128
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sources:
    """What methods may use beside the instruction itself.

    Attributes:
        examples: those that will be answered; only their instructions and sources are used.
        pool: other examples, for probe inputs.
    """

    examples: Sequence[Example]
    pool: Sequence[Example]
    options: Options = Options()
    workers: Workers = field(default_factory=Workers)

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(e.instruction for e in (*self.examples, *self.pool)))


METHODS: Mapping[str, Callable[[Sources], Method]] = MappingProxyType(
    {
        FULL: lambda sources: FullPrompt(),
        "gist": lambda sources: GistTokens(),
        "none": lambda sources: NoPrompt(),
        "first": lambda sources: Truncation(),
        "last": lambda sources: Truncation(last=True),
        "pooled": lambda sources: MeanPooling(),
        "tfidf": lambda sources: Extractive(sources.instructions),
        "lexrank": lambda sources: Extractive(sources.instructions, lexrank=True),
        "llmlingua2": lambda sources: Lingua(sources.options.lingua, sources.options.cache_dir),
        **{
            press: lambda sources, press=press: Press(press, sources.workers)  # type: ignore[misc]
            for press in PRESSES
        },
        "trained": lambda sources: TrainedEntries(
            sources.pool,
            {e.instruction: e.source for e in sources.examples},
            most_rows=sources.options.trained_limit,
            seed=sources.options.seed,
        ),
    }
)


def check_names(names: Sequence[str]) -> None:
    """Raise OptionError where there is no method of that name."""
    for name in names:
        if name not in METHODS:
            raise OptionError(
                f"`methods`: there is no method {name!r}; choose of {', '.join(METHODS)}"
            )


def build(names: Sequence[str], sources: Sources) -> list[Method]:
    """The methods of these names; the full prompt, their baseline, first (raises OptionError)."""
    check_names(names)
    return [METHODS[name](sources) for name in dict.fromkeys((FULL, *(names or METHODS)))]
