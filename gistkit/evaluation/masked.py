"""Greedy answers the published way: every step is a full pass under the condition's mask.

Nothing is cached between steps. Slow; answers from cached gists must equal these.

Shapes: B batch, S prompt, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from gistkit.model import GistModel

Step = Callable[[Tensor], Tensor]
"""New ids so far [B, T] -> logits of the next [B, V]."""


@torch.no_grad()
def generate_masked(
    model: GistModel,
    inputs: Sequence[str],
    instructions: Sequence[str],
    *,
    condition: str,
    num_gist_tokens: int,
    max_new_tokens: int,
) -> list[str]:
    """An answer to each input under `condition`, as `GistModel.generate` gives it without a mask.

    Raises PromptError for an empty instruction, and for a text that holds `<GIST>`.
    """
    pairs = zip(instructions, inputs, strict=True)
    ids, padding = model.pad([model.encoder.prompt(i, x, num_gist_tokens) for i, x in pairs])

    def forward(ids: Tensor, padding: Tensor, **more: Any) -> Any:
        return model.adapter.forward(
            ids, padding, gist_id=model.gist_id, condition=condition, **more
        )

    if model.hf_model.config.is_encoder_decoder:
        start = torch.full_like(ids[:, :1], model.hf_model.config.decoder_start_token_id)
        encoded = forward(ids, padding, decoder_input_ids=start).encoder_last_hidden_state
        states = BaseModelOutput(last_hidden_state=encoded)

        def step(new: Tensor) -> Tensor:
            read = torch.cat([start, new], dim=1)
            output = forward(
                ids, padding, encoder_outputs=states, decoder_input_ids=read, use_cache=False
            )
            return output.logits[:, -1]  # type: ignore[no-any-return]

    else:

        def step(new: Tensor) -> Tensor:
            whole = torch.cat([ids, new], dim=1)
            seen = torch.cat([padding, torch.ones_like(new)], dim=1)
            return forward(whole, seen, logits_to_keep=1).logits[:, -1]  # type: ignore[no-any-return]

    new = _greedy(step, ids[:, :0], model, max_new_tokens)
    answers = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def _greedy(step: Step, new: Tensor, model: GistModel, max_new_tokens: int) -> Tensor:
    """New ids [B, T]; rows that ended are padded."""
    ends = torch.tensor(model.end_tokens, device=new.device)
    ended = torch.zeros(len(new), dtype=torch.bool, device=new.device)
    while new.shape[1] < max_new_tokens and not ended.all():
        token = step(new).argmax(-1).masked_fill(ended, int(model.tokenizer.pad_token_id))
        new = torch.cat([new, token[:, None]], dim=1)
        ended |= torch.isin(token, ends)
    return new
