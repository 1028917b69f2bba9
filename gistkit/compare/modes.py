"""The modes of `gistkit.baselines` as methods: the cached prompt, the gist, and no prompt."""

from dataclasses import dataclass

from gistkit.compare.method import Method, cached
from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel


@dataclass(frozen=True)
class FullPrompt(Method):
    """Everything is kept: prefix caching."""

    name = "full prompt"
    budgeted = False

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        return cached(model, instruction)


@dataclass(frozen=True)
class GistTokens(Method):
    """The activations of k = budget gist tokens; OptionError where k was not trained."""

    name = "gist"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix:
        trained = model.config.num_gist_tokens
        if trained and budget not in trained:
            known = ", ".join(map(str, sorted(trained)))
            raise OptionError(f"this model was trained for {known} gist tokens")
        return model.compress(instruction, num_gist_tokens=budget)


@dataclass(frozen=True)
class NoPrompt(Method):
    """Nothing is kept: the answer is a guess."""

    name = "no prompt"
    budgeted = False

    def prepare(self, model: GistModel, instruction: str, budget: int) -> None:
        return None
