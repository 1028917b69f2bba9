"""Trained KV: k cache entries found by gradient for one instruction, the model frozen.

As prefix tuning (Li & Liang 2021) and Cartridges (Eyuboglu et al. 2025) do: start from the first
k entries of the full prompt's cache, and minimise KL(full prompt || these) on the full prompt's
answers to probe inputs. About the best that k entries can do, at the cost of a training run for
each instruction; hence only some are tried.

Shapes: B probes, L input and answer, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from gistkit.compare.method import Method, cached
from gistkit.fidelity.reading import Prompt, read_along
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.prompts import Example


@dataclass(frozen=True)
class TrainedEntries(Method):
    """k trained entries at positions 0 .. k-1; PromptError where the probes do not fit.

    Attributes:
        pool: examples whose inputs are probes, never their outputs.
        sources: of each instruction; inputs of the same source are preferred.
        most_rows: instructions to try.
        probes: inputs to train on, at most.
        steps: of Adam, all probes in each.
        rate: its learning rate, decaying linearly to nothing.
        max_new_tokens: of the full prompt's answers.
        seed: chooses the probes.
    """

    pool: Sequence[Example]
    sources: Mapping[str, str]
    most_rows: int | None = 20
    probes: int = 24
    steps: int = 100
    rate: float = 0.1
    max_new_tokens: int = 48
    seed: int = 0
    name = "trained KV"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        full = cached(model, instruction)
        if full is None:
            return None
        inputs = [model.encoder.input(text) for text in self.inputs(instruction)]
        leaders = [Prompt(ids, full) for ids in inputs]
        readings = read_along(model, leaders, {}, max_new_tokens=self.max_new_tokens)
        # the last token of an answer is predicted, but nothing is predicted from it
        rows = [ids + reading.tokens[:-1] for ids, reading in zip(inputs, readings, strict=True)]
        ids, padding = model.pad(rows)
        lengths = torch.tensor([len(reading.tokens) for reading in readings], device=model.device)
        behind = torch.arange(ids.shape[1], 0, -1, device=model.device)
        answered = behind[None] <= lengths[:, None]  # rows end together, [B, L]

        def predict(prefix: Prefix) -> Tensor:
            output = model.adapter.read(ids, padding, prefix, gist_id=model.gist_id)
            return output["logits"][answered].float().log_softmax(-1)  # type: ignore[no-any-return]

        with torch.no_grad():
            expected = predict(full)
        return self._fit(_first(full, budget), expected, predict)

    def inputs(self, instruction: str) -> list[str]:
        """Probes for an instruction, the same for the same seed; one empty input without a pool."""
        others = [e for e in self.pool if e.instruction != instruction]
        source = self.sources.get(instruction)
        alike = [e for e in others if e.source == source] or others
        texts = list(dict.fromkeys(e.input for e in alike)) or [""]
        return Random(f"{self.seed} {instruction}").sample(texts, min(self.probes, len(texts)))

    def _fit(self, start: Prefix, expected: Tensor, predict: Callable[[Prefix], Tensor]) -> Prefix:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.tensors.items()}
        optimizer = torch.optim.Adam(leaves.values(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.steps)
        for _ in range(self.steps):
            found = predict(replace(start, tensors=leaves))
            loss = torch.nn.functional.kl_div(
                found, expected, log_target=True, reduction="batchmean"
            )
            # only these: the model's own weights get no gradients
            slopes = torch.autograd.grad(loss, list(leaves.values()))
            for leaf, slope in zip(leaves.values(), slopes, strict=True):
                leaf.grad = slope
            optimizer.step()
            schedule.step()
        return replace(start, tensors={name: leaf.detach() for name, leaf in leaves.items()})


def _first(full: Prefix, entries: int) -> Prefix:
    length = min(entries, full.num_tokens)
    tensors = {name: tensor[..., :length, :] for name, tensor in full.tensors.items()}
    return replace(full, tensors=tensors, lengths=(length,))
