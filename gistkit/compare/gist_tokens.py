"""The gist: activations of k trained tokens, and nothing else."""

from dataclasses import dataclass

from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel


@dataclass(frozen=True, slots=True)
class GistTokens:
    """See `Method`."""

    name: str = "gist"
    budgeted: bool = True
    most_rows: int | None = None

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix:
        """The gist of k = budget tokens (raises OptionError where k was not trained)."""
        trained = model.config.num_gist_tokens
        if trained and budget not in trained:
            known = ", ".join(map(str, sorted(trained)))
            raise OptionError(f"this model was trained for {known} gist tokens")
        return model.compress(instruction, num_gist_tokens=budget)
