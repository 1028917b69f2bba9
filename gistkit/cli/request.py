"""What the user asked of the model, and how to load it and answer with it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gistkit.cli.run import quiet_libraries
from gistkit.errors import OptionError

if TYPE_CHECKING:
    from gistkit.gist import Gist
    from gistkit.model import GistModel

PUBLISHED_MAX_NEW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Options of the model and of generation; None stands for the model's own default."""

    model: str
    base: str | None
    precision: str
    device: str
    cache_dir: str
    num_gist_tokens: int | None
    allow_untrained: bool
    max_new_tokens: int | None
    temperature: float
    seed: int | None

    def __post_init__(self) -> None:
        for name, number in (("k", self.num_gist_tokens), ("n", self.max_new_tokens)):
            if number is not None and number < 1:
                option = {"k": "--num-gist-tokens", "n": "--max-new-tokens"}[name]
                raise OptionError(f"{option} must be at least 1, not {number}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise OptionError(f"--temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.seed is not None and self.seed < 0:
            raise OptionError(f"--seed must be 0 or more, not {self.seed}")
        if not self.model:
            raise OptionError("--model-name-or-path is empty; give a folder or a hub id")

    def load(self, *, verbose: bool) -> "GistModel":
        """The model (raises ModelError, OptionError)."""
        if not verbose:
            quiet_libraries()
        from gistkit.model import GistModel

        model = self.model
        if self.base is not None:
            from gistkit.cli.weights import tensor_bar
            from gistkit.paper.weight_diff import recovered

            with tensor_bar() as progress:
                model = recovered(model, self.base, cache_dir=self.cache_dir, progress=progress)
        return GistModel.from_pretrained(
            model,
            dtype=self.precision,
            device=choose_device(self.device),
            cache_dir=self.cache_dir,
        )

    def k(self, model: "GistModel") -> int:
        """How many gist tokens (raises OptionError)."""
        return model.check_k(self.num_gist_tokens, allow_untrained=self.allow_untrained)

    def compress(self, model: "GistModel", instructions: list[str]) -> "Gist":
        """Their gists, one row each (raises OptionError, PromptError)."""
        return model.compress(
            instructions, num_gist_tokens=self.k(model), allow_untrained=self.allow_untrained
        )

    def new_tokens(self, model: "GistModel", prompts: Iterable[int]) -> int:
        """The longest answer: as asked, or the published 512 where positions reach so far.

        Args:
            prompts: tokens that stand before the answers, of each prompt.
        """
        limit = model.adapter.max_positions
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if limit is None:
            return PUBLISHED_MAX_NEW_TOKENS
        return max(1, min(PUBLISHED_MAX_NEW_TOKENS, limit - max(prompts)))

    def generate(
        self, model: "GistModel", inputs: list[str], gist: "Gist", *, max_new_tokens: int, seed: int
    ) -> list[str]:
        """The answers. `seed` is added to the user's, so that batches sample differently."""
        return model.generate(
            inputs,
            gist,
            max_new_tokens=max_new_tokens,
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            seed=None if self.seed is None else self.seed + seed,
        )


def choose_device(name: str) -> str:
    """A device for torch; "auto" is a GPU where there is one."""
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
