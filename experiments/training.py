"""A training step, packed against padded: the shapes of the published measurement, real data.

One optimizer step over the same micro-batches of Alpaca+ rows: forward, backward, accumulation,
gradients clipped at 1.0, fused AdamW (rate 0, so that every step starts from the same weights).
`padded` pads every row to the longest of its micro-batch and computes logits everywhere, as the
published trainer does; `packed` is the same micro-batches as `gistkit train` has them. Packed rows
need no padding, so a whole step fits where a padded micro-batch did: `packed, one batch` takes the
same examples without accumulating (`per_device_train_batch_size=32` and
`gradient_accumulation_steps=1` for 4 x 8). Rows come in the published order, tokenized by a BPE of
4,000 pieces trained on them.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from tokenizers import processors
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from experiments.report import Case, Comparison, Options
from gistkit import GistModel
from gistkit.data.alpaca_plus import AlpacaPlus
from gistkit.data.collate import Batch, Collator
from gistkit.data.sets import shuffled
from gistkit.data.tokenizer import EOS, train_tokenizer
from gistkit.models import loading
from gistkit.prompts import Example
from gistkit.timing import interleave, timed
from gistkit.training.objectives import CrossEntropy, Step

ROUNDS = 4
LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 1024,
    "num_hidden_layers": 2, "num_attention_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 32100, "d_model": 512, "d_kv": 64, "d_ff": 1024,
    "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
SIZES: Mapping[str, Any] = {
    "llama-debug, 4 x 8": {"shape": LLAMA, "batch": 4, "accumulation": 8, "at_most": 0.5},
    "t5-small, 8 x 2": {"shape": T5, "batch": 8, "accumulation": 2, "at_most": 1 / 1.5},
}
QUICK: Mapping[str, Any] = {
    "llama, 4 x 2": {
        "shape": LLAMA | {"hidden_size": 64, "num_attention_heads": 4},
        "batch": 4,
        "accumulation": 2,
        "at_most": None,
    }
}
CAPACITY = 512

Outcome = tuple[float, float]
"""Loss and gradient norm of a step."""


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """One case for each model shape."""
    texts = read_rows()
    for name, size in sizes.items():
        yield compare(name, size, texts, options)


def read_rows() -> list[Example]:
    """Rows of validation_seen in the published order: what the published measurement trained on."""
    shared = Path(os.environ.get("GISTKIT_SHARED", "../shared"))
    rows = AlpacaPlus(shared / "data" / "alpaca_plus").read("validation_seen")
    return shuffled(rows, 42)


def compare(name: str, size: Mapping[str, Any], texts: list[Example], options: Options) -> Case:
    """Packed and padded in turn; what the gist mask costs is the `condition` theme's to say."""
    model = make_model(size["shape"], texts, options)
    count = size["batch"] * size["accumulation"]
    rows = [row for row in model.encoder.examples(texts[: count + 8]) if row is not None][:count]
    groups = [rows[i : i + size["batch"]] for i in range(0, count, size["batch"])]
    collate = partial(
        Collator,
        gist_id=model.gist_id,
        pad_id=int(model.tokenizer.pad_token_id),
        encoder_decoder=model.adapter.padding_side == "right",
    )
    padded = [collate()(group) for group in groups]
    packed = [collate(pack=CAPACITY)(group) for group in groups]
    whole = [collate(pack=CAPACITY)(rows)]
    optimizer = torch.optim.AdamW(model.hf_model.parameters(), lr=0.0, fused=True)
    sides: dict[str, Callable[[], Outcome]] = {
        "padded": partial(step, model, optimizer, padded, everywhere),
        "packed": partial(step, model, optimizer, packed, labelled),
        "packed, one batch": partial(step, model, optimizer, whole, labelled),
    }
    checks = check(sides)
    samples = interleave(
        {side: timed(work, device=options.device) for side, work in sides.items()},
        rounds=options.rounds,
        warmup=0,  # the checks were steps, too
        seed=options.seed,
    )
    return Case(
        name=name,
        base="padded",
        samples=samples,
        comparisons=[
            Comparison("packed, one batch", "padded", size["at_most"]),
        ],
        facts={
            side: {
                "examples per CPU second": count / median(t.cpu for t in samples[side]),
                "computed tokens": sum(tokens(batch) for batch in batches),
                "share of them that is real": share(batches),
            }
            for side, batches in (
                ("padded", padded),
                ("packed", packed),
                ("packed, one batch", whole),
            )
        },
        checks=checks,
    )


def make_model(shape: Mapping[str, Any], texts: Sequence[Example], options: Options) -> GistModel:
    """A random model of this shape with a tokenizer trained on the rows."""
    lines = (text for row in texts for text in (row.instruction, row.input, row.output))
    tokenizer = train_tokenizer(lines, vocab_size=4000)
    if shape["model_type"] == "t5":  # T5's texts end with eos and do not begin with bos
        close_texts(tokenizer)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(**shape, **ids)
    torch.manual_seed(options.seed)
    model = loading.auto_class(config).from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_model_config(config)
    made = GistModel.from_base(model, tokenizer)
    made.hf_model.to(options.device).train()
    return made


def close_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make every encoded text end with eos."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.eos_token_id)]
    )


def step(
    model: GistModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    losses: Callable[[GistModel, Batch], Tensor],
) -> Outcome:
    """One optimizer step; returns loss and gradient norm."""
    batches = [on_device(batch, model.device) for batch in batches]
    count = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = losses(model, batch).sum() / count
        loss.backward()
        total += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(model.hf_model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, float(norm)


def labelled(model: GistModel, batch: Batch) -> Tensor:
    """Losses as `gistkit train` computes them."""
    return CrossEntropy()(Step(model, model.hf_model, batch))


def everywhere(model: GistModel, batch: Batch) -> Tensor:
    """Losses as published: logits of every position, the model's own cross-entropy."""
    output: Any = model.adapter.forward(
        batch["input_ids"],
        batch["attention_mask"],
        gist_id=model.gist_id,
        condition=batch["conditions"],
        labels=batch["labels"],
    )
    return output["loss"] * (batch["labels"] != -100).sum()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return cast("Batch", moved)


def check(sides: Mapping[str, Callable[[], Outcome]]) -> dict[str, str]:
    """Assert that packed and padded compute the same.

    Raises:
        AssertionError: they do not.
    """
    (loss, norm), (packed_loss, packed_norm) = sides["padded"](), sides["packed, one batch"]()
    if abs(loss - packed_loss) > 1e-5 * loss or abs(norm - packed_norm) > 1e-4 * norm:
        raise AssertionError(f"padded {loss}, {norm}; packed {packed_loss}, {packed_norm}")
    return {
        "packed = padded": f"loss {loss:.6f} and {packed_loss:.6f}, "
        f"gradient norm {norm:.6f} and {packed_norm:.6f}"
    }


def tokens(batch: Batch) -> int:
    """Positions computed: of the rows, and of an encoder-decoder's targets."""
    return sum(part.numel() for part in parts(batch))


def share(batches: Sequence[Batch]) -> float:
    """How many of them are no padding."""
    real = sum(int((batch["attention_mask"] != 0).sum()) for batch in batches)
    real += sum(int((part != -100).sum()) for batch in batches for part in parts(batch)[1:])
    return real / sum(map(tokens, batches))


def parts(batch: Batch) -> list[Tensor]:
    """The row ids, and the targets where they are rows of their own."""
    ids, labels = batch["input_ids"], batch["labels"]
    separate = "label_documents" in batch or ids.shape != labels.shape
    return [ids, labels] if separate else [ids]
