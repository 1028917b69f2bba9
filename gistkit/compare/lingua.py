"""LLMLingua-2 (Pan et al. 2024): a classifier decides which tokens stay.

A word's probability is the mean over its tokens. The most probable words that fit in the budget are
kept in their order, as a shorter prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from gistkit.compare.method import Method, cached, fits, instruction_ids, joined
from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel

LINGUA = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
PIECE = 100  # words that the classifier sees at once; it has 512 positions
STAY = 1  # the label of tokens to keep


@dataclass(frozen=True)
class Lingua(Method):
    """The cache of the words that stay; OptionError where the classifier cannot be loaded.

    Attributes:
        path: a folder or hub id with a token classifier of two labels.
    """

    path: str = LINGUA
    cache_dir: str | None = None
    name = "LLMLingua-2"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        return cached(model, self.shorten(model, instruction, budget))

    def shorten(self, model: GistModel, instruction: str, budget: int) -> str:
        """At most `budget` tokens of the instruction; all of it where it has no more."""
        if len(instruction_ids(model, instruction)) <= budget:
            return instruction
        words = instruction.split()
        chances = self.chances(words)
        chosen: dict[int, str] = {}
        for number in sorted(range(len(words)), key=lambda n: -chances[n]):
            more = {**chosen, number: words[number]}
            if fits(model, more, budget):
                chosen = more
        return joined(chosen)

    @torch.no_grad()
    def chances(self, words: Sequence[str]) -> list[float]:
        """The probability of each word that it should stay (raises OptionError)."""
        if isinstance(self._loaded, str):
            raise OptionError(self._loaded)
        classifier, tokenizer = self._loaded
        found: list[float] = []
        for start in range(0, len(words), PIECE):
            piece = list(words[start : start + PIECE])
            ids = tokenizer(piece, is_split_into_words=True, truncation=True, return_tensors="pt")
            stay = classifier(**ids)["logits"][0].float().softmax(-1)[:, STAY].tolist()
            tokens: dict[int, list[float]] = {}
            for word, chance in zip(ids.word_ids(0), stay, strict=True):
                if word is not None:
                    tokens.setdefault(word, []).append(chance)
            # a word of which the tokenizer leaves nothing has no chance
            parts = (tokens.get(number, [0.0]) for number in range(len(piece)))
            found += [sum(part) / len(part) for part in parts]
        return found

    @cached_property
    def _loaded(self) -> tuple[Any, Any] | str:
        """Classifier and tokenizer, or the error: the hub is tried once; it may take a minute."""
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        options: dict[str, Any] = {"cache_dir": self.cache_dir}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, **options)
            classifier, info = AutoModelForTokenClassification.from_pretrained(
                self.path, output_loading_info=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            return f"{self.path} is not reachable: {reason}"
        if info["missing_keys"] or classifier.config.num_labels != 2:
            return f"{self.path} is no classifier of tokens to keep"
        return classifier.eval(), tokenizer
