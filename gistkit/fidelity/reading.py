"""The full prompt answers, other prompts read along: what does each predict, token by token?

    full prompt   "Tom, one cake, ..."     chooses every token
    gist          |    |    |              what does it predict here?
    no prompt     |    |    |              and without any prompt?

All run in lockstep, so one pass serves every comparison, in any family: nothing is encoded twice.
Where no inputs are given to answer, the model samples some that might follow the instruction.

Shapes: B probes, T tokens of an answer, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gistkit.errors import PromptError
from gistkit.gist import Prefix
from gistkit.model import GistModel, seeded
from gistkit.models.inputs import decoding_options
from gistkit.models.kv_batch import KVBatch
from gistkit.prompts import GIST_TOKEN

MARK = "\u241f"
LONGEST = 32  # tokens of a sampled input


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids [L] that are read after a prefix, or alone."""

    ids: list[int]
    prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of the leader, seen by its readers.

    Attributes:
        tokens: T ids, the end token included where it was reached.
        own: [T] log-probability (nats) the leader gave each.
        others: by reader, [T] log-probability of the same tokens.
        divergence: by reader, [T] KL(leader || reader) in nats.
        agrees: by reader, [T] whether its likeliest token is the leader's likeliest.
    """

    tokens: list[int]
    own: Tensor
    others: Mapping[str, Tensor]
    divergence: Mapping[str, Tensor]
    agrees: Mapping[str, Tensor]


@torch.no_grad()
def read_along(
    model: GistModel,
    leaders: Sequence[Prompt],
    readers: Mapping[str, Sequence[Prompt]],
    *,
    max_new_tokens: int,
) -> list[Reading]:
    """The leader's greedy answer to each of B prompts, and what the readers make of it.

    Args:
        readers: by name, B prompts each. All leaders share one prefix, and so do a reader's.

    Raises:
        PromptError: a prompt leaves no room for an answer.
    """
    room = _room(model, [leaders, *readers.values()], max_new_tokens)
    lead = _begin(model, leaders)
    others = {name: _begin(model, prompts) for name, prompts in readers.items()}
    ends = torch.tensor(model.end_tokens, device=model.device)
    columns: list[dict[str, Tensor]] = []
    done = torch.zeros(len(leaders), dtype=torch.bool, device=model.device)
    lengths = torch.zeros(len(leaders), dtype=torch.long, device=model.device)
    for _ in range(room):
        expected = lead.logits.float().log_softmax(-1)
        token = expected.argmax(-1)
        column = {"token": token, "own": expected.gather(-1, token[:, None])[:, 0]}
        for name, rows in others.items():
            seen = rows.logits.float().log_softmax(-1)
            column[f"others.{name}"] = seen.gather(-1, token[:, None])[:, 0]
            column[f"divergence.{name}"] = _kl(expected, seen)
            column[f"agrees.{name}"] = seen.argmax(-1) == token
        columns.append(column)
        lengths += ~done
        done |= torch.isin(token, ends)
        if bool(done.all()):
            break
        for rows in (lead, *others.values()):
            rows.step(token)
    table = {
        name: torch.stack([column[name] for column in columns], dim=1).cpu() for name in columns[0]
    }

    def part(kind: str, row: int, length: int) -> dict[str, Tensor]:
        return {name: table[f"{kind}.{name}"][row, :length] for name in readers}

    return [
        Reading(
            tokens=table["token"][row, :n].tolist(),
            own=table["own"][row, :n],
            others=part("others", row, n),
            divergence=part("divergence", row, n),
            agrees=part("agrees", row, n),
        )
        for row, n in enumerate(lengths.tolist())
    ]


def _begin(model: GistModel, prompts: Sequence[Prompt]) -> KVBatch:
    ids, padding = model.pad([prompt.ids for prompt in prompts])
    return model.adapter.begin(ids, padding, prompts[0].prefix, gist_id=model.gist_id)


def _room(model: GistModel, sides: Sequence[Sequence[Prompt]], wanted: int) -> int:
    limit = model.adapter.max_positions
    if limit is None:
        return wanted
    prefixes = [0 if side[0].prefix is None else side[0].prefix.num_tokens for side in sides]
    longest = max(k + len(p.ids) for k, side in zip(prefixes, sides, strict=True) for p in side)
    if longest >= limit:
        raise PromptError(
            f"instruction and probe together have {longest} tokens of the {limit} this model can "
            "place; shorten the probes"
        )
    return min(wanted, limit - longest)


def _kl(expected: Tensor, seen: Tensor) -> Tensor:
    """KL(expected || seen) [B] of log-probabilities [B, V]; never below zero."""
    return (expected.exp() * (expected - seen)).nan_to_num(0.0).sum(-1).clamp(min=0)


def sample_probes(
    model: GistModel, instruction: str, num_gist_tokens: int, *, n: int, seed: int
) -> list[str]:
    """At most `n` different inputs for a seed, the empty one first (raises PromptError).

    A decoder reads `Instruction: ... Input:` in its template and continues; the text it samples up
    to the end of the line is an input. An encoder-decoder has no such position, so its only probe
    is the instruction without an input.
    """
    if n == 1 or not model.adapter.can_cache_prompts:
        return [""]
    return ["", *_continued(model, instruction, num_gist_tokens, n=n - 1, seed=seed)]


def _continued(
    model: GistModel, instruction: str, num_gist_tokens: int, *, n: int, seed: int
) -> list[str]:
    """What the model writes where an input goes, under the full prompt."""
    template = model.encoder.template
    text = template.render(instruction, MARK, GIST_TOKEN * num_gist_tokens)
    before, _, after = text.partition(MARK)
    ids = model.tokenizer(before.rstrip(" "), add_special_tokens=template.add_special_tokens)
    start = [i for i in ids["input_ids"] if i != model.tokenizer.eos_token_id]
    limit = model.adapter.max_positions
    room = LONGEST if limit is None else min(LONGEST, (limit - len(start)) // 2)
    if room < 1:
        return []
    options = decoding_options(
        max_new_tokens=room,
        do_sample=True,
        top_p=0.95,
        num_return_sequences=n,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=model.end_tokens,
    )
    with seeded(seed, model.device), torch.no_grad():
        prompt = torch.tensor([start], device=model.device)
        mask = torch.ones_like(prompt)
        new = model.hf_model.generate(  # type: ignore[operator]
            input_ids=prompt, attention_mask=mask, generation_config=options, synced_gpus=False
        )
    texts = model.tokenizer.batch_decode(new[:, len(start) :], skip_special_tokens=True)
    stop = after.strip() or "\n"
    inputs = (text.partition("\n")[0].partition(stop)[0].strip() for text in texts)
    return list(dict.fromkeys(text for text in inputs if text and GIST_TOKEN not in text))
