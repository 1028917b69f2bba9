"""Prompts as requests: token ids behind a gist, or of a whole prompt; checked for every engine.

Knows nothing of batches or servers.
"""

from functools import cached_property, lru_cache

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.prompts import Input
from gistkit.serving.engine import Prompt, Sampling
from gistkit.serving.requests import Request


class Reader:
    """One model's way of reading prompts.

    Args:
        model: its tokenizer, templates and fingerprint are used.
        max_length: tokens of a prompt and its answer together; None: no limit but the model's.
        prompts: so many prompts' ids are remembered: a front asks for the size first.

    Attributes:
        max_length: the least of both; may be lowered.
    """

    def __init__(self, model: GistModel, *, max_length: int | None, prompts: int) -> None:
        limits = [n for n in (max_length, model.adapter.max_positions) if n is not None]
        self.max_length = min(limits, default=None)
        self._model = model
        self._ids = lru_cache(prompts)(self._encode)

    @cached_property
    def fingerprint(self) -> str:
        """The model's. Its weights stay as they are: to look at them at each request takes long."""
        return self._model.fingerprint

    def request(
        self, prompt: Prompt, gist: Gist | None, sampling: Sampling, client: str = ""
    ) -> Request:
        """A request, checked.

        Raises:
            PromptError: it cannot be a prompt, or is too long.
            OptionError: a sampling that means nothing.
            GistMismatchError: another model's gist.
        """
        check_numbers(max_tokens=sampling.max_tokens, n=sampling.n)
        if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise OptionError("temperature must be 0 or more, top_p in (0, 1]")
        if gist is not None:
            gist.check(self.fingerprint, self._model.config.template, 1)
        turns = prompt.turns if isinstance(prompt.turns, str) else tuple(prompt.turns)
        ids = self._ids("" if gist is not None else prompt.instruction, turns)
        request = Request(ids, gist, sampling, client)
        self.check_length(request.columns)
        return request

    def check_length(self, tokens: int) -> None:
        """Raise PromptError where so many tokens are too many."""
        if self.max_length is not None and tokens > self.max_length:
            raise PromptError(
                f"{tokens} tokens (prompt and answer) are more than the {self.max_length} allowed "
                "here; shorten the prompt or max_tokens"
            )

    def _encode(self, instruction: str, turns: Input) -> list[int]:
        encoder = self._model.encoder
        if not instruction:
            ids = encoder.input(turns)
        else:
            ids = encoder.prompt(instruction, turns, self._model.config.default_k)
        self.check_length(len(ids))  # what is refused here is not remembered either
        return ids
