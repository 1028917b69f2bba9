"""Probe inputs drawn by the model itself: what might be asked under this instruction.

A decoder reads `Instruction: ... Input:` in its template and goes on; the text it samples up to the
end of the line is an input. An encoder-decoder has no such place: it writes only outputs. One probe
is always the instruction alone, with no input.
"""

import torch

from gistkit.model import GistModel
from gistkit.models.inputs import decoding_options, seeded
from gistkit.prompts import GIST_TOKEN

MARK = "\u241f"
LONGEST = 32  # tokens of a drawn input


def draw_probes(
    model: GistModel, instruction: str, num_gist_tokens: int, *, n: int, seed: int
) -> list[str]:
    """At most `n` different inputs, the empty one first; the same for the same seed.

    Raises:
        PromptError: the instruction holds `<GIST>` or does not fit.
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
        temperature=1.0,
        top_p=0.95,
        top_k=0,
        num_beams=1,
        num_return_sequences=n,
        streamed=False,
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
    drawn = (text.partition("\n")[0].partition(stop)[0].strip() for text in texts)
    return list(dict.fromkeys(text for text in drawn if text and GIST_TOKEN not in text))
