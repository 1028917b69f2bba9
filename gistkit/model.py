"""GistModel: load, compress, generate, stream, save. The facade that every job uses.

    model = GistModel.from_pretrained("toy")
    gist = model.compress("Answer in one word, in capitals.")     # k activations
    model.generate(["Capital of France?", "Of Italy?"], gist)     # one gist, two inputs, one batch

Text goes in and text comes out; ids, padding and positions stay inside. A string or a list
everywhere. Knows nothing about training, files of data, or serving.

Shapes: B batch, P instruction, K gist tokens, L input.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer, TextStreamer

from gistkit.errors import NotAGistModelError, OptionError, PromptError, SaveError
from gistkit.files import write_folder, write_text
from gistkit.gist import Gist, Prefix, provenance_of
from gistkit.models import loading
from gistkit.models.config import GistConfig
from gistkit.models.families import adapter_for
from gistkit.models.inputs import (
    Text,
    as_list,
    check_device,
    check_numbers,
    counts_of,
    cut_at,
    decoding_options,
    move,
    parse_dtype,
    stops_of,
)
from gistkit.models.streaming import stream_text
from gistkit.prompts import GIST_TOKEN, PromptEncoder, make_template

SAMPLES = 1024
"""Elements of a tensor that its fingerprint reads."""


class GistModel:
    """A language model that can compress its instructions.

    Attributes:
        hf_model: the transformers model, unchanged.
        tokenizer: its tokenizer, with `<GIST>`.
        config: what it was trained for.
        adapter: what its family knows about gists.
        encoder: text to ids.
        gist_id: the id of `<GIST>`.
    """

    def __init__(
        self, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GistConfig
    ) -> None:
        if GIST_TOKEN not in tokenizer.get_vocab():
            raise NotAGistModelError(f"the tokenizer has no {GIST_TOKEN}; use GistModel.from_base")
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.config = config
        self.adapter = adapter_for(hf_model)
        self.gist_id = int(tokenizer.get_vocab()[GIST_TOKEN])
        self.encoder = PromptEncoder(
            tokenizer, make_template(config.template, tokenizer), self.gist_id
        )
        self._fingerprint: tuple[object, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] = loading.TOY,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        cache_dir: str | None = None,
        weight_diff_base: str | None = None,
    ) -> "GistModel":
        """Load a gist model: saved by gistkit, a published checkpoint, or "toy".

        Args:
            path_or_hub_id: a folder, a hub id, or "toy", the model in this package.
            dtype: float32 | bfloat16 | float16 (or fp32 | bf16 | fp16).
            device: cpu | cuda | mps, or auto: a GPU where there is one.
            cache_dir: where downloads are stored.
            weight_diff_base: the base model, where the checkpoint is a weight diff; their sum is
                stored beside the downloads.

        Raises:
            OptionError: unknown precision or device; a weight diff without its base.
            ModelNotFoundError: nothing there, or it cannot be read.
            NotAGistModelError: a plain model; `from_base` makes one of it.
            UnsupportedModelError: a family for which gists are not exact.
        """
        parsed, target = parse_dtype(dtype), check_device(device)
        path = loading.resolve(os.fspath(path_or_hub_id))
        path = loading.whole_model(path, weight_diff_base, cache_dir=cache_dir)
        model_config = loading.load_config(path, cache_dir=cache_dir)
        tokenizer = loading.load_tokenizer(path, cache_dir=cache_dir)
        config = loading.load_gist_config(path, cache_dir=cache_dir)
        if GIST_TOKEN not in tokenizer.get_vocab():
            raise NotAGistModelError(
                f"{path} is not a gist model: its tokenizer has no {GIST_TOKEN}; train it first "
                "(gistkit train), or start from it with GistModel.from_base"
            )
        hf_model = loading.load_model(path, model_config, dtype=parsed, cache_dir=cache_dir)
        if config is None:
            config = GistConfig(template=adapter_for(hf_model).default_template)
        return cls(move(hf_model, target), tokenizer, config)

    @classmethod
    def from_base(
        cls,
        path_or_model: str | os.PathLike[str] | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        num_gist_tokens: int | Sequence[int] = 1,
        template: str | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        cache_dir: str | None = None,
    ) -> "GistModel":
        """Make a gist model of a plain one: adds `<GIST>`, which must then be trained.

        Args:
            path_or_model: a folder, a hub id, or a loaded model. That one needs its `tokenizer`;
                both are changed in place, and `dtype` is the model's own.
            num_gist_tokens: k, or all the k it will be trained for.
            template: "decoder", "encoder-decoder" or "chat"; default: the family's published one.

        Raises: as `from_pretrained`.
        """
        ks, target = counts_of(num_gist_tokens), check_device(device)
        if isinstance(path_or_model, PreTrainedModel):
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                raise OptionError("a loaded model needs its tokenizer: from_base(model, tokenizer)")
            hf_model, base = path_or_model, str(path_or_model.config.name_or_path)
        else:
            base = os.fspath(path_or_model)
            path, parsed = loading.resolve(base), parse_dtype(dtype)
            model_config = loading.load_config(path, cache_dir=cache_dir)
            tokenizer = tokenizer or loading.load_tokenizer(path, cache_dir=cache_dir)
            hf_model = loading.load_model(path, model_config, dtype=parsed, cache_dir=cache_dir)
        adapter = adapter_for(hf_model)
        name = template or adapter.default_template
        make_template(name, tokenizer)  # both refuse before anything is changed
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        loading.add_gist_token(hf_model, tokenizer)
        config = GistConfig(num_gist_tokens=ks, template=name, base_model=base)
        return cls(move(hf_model, target), tokenizer, config)

    @property
    def device(self) -> torch.device:
        return self.hf_model.device

    @property
    def end_tokens(self) -> list[int]:
        """Ids that end an answer: the generation config's, or else the tokenizer's."""
        ids = self.hf_model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return list(ids) if isinstance(ids, list | tuple) else [] if ids is None else [int(ids)]

    @property
    def fingerprint(self) -> str:
        """Identifies the weights; gists carry it. Computed again when the weights have changed."""
        now = version(self.hf_model)
        if self._fingerprint is None or self._fingerprint[0] != now:
            self._fingerprint = (now, fingerprint(self.hf_model))
        return self._fingerprint[1]

    def weights_changed(self) -> None:
        """Have the fingerprint computed again: fused optimizers change weights unnoticed."""
        self._fingerprint = None

    def compress(
        self,
        instructions: Text,
        *,
        num_gist_tokens: int | None = None,
        allow_untrained: bool = False,
    ) -> Gist:
        """Compress each instruction into the activations of k gist tokens.

        Args:
            instructions: one, or B of any lengths; computed in one batch.
            num_gist_tokens: k; default: the first k the model was trained for.
            allow_untrained: permit a k the model was not trained for.

        Raises:
            OptionError: k is below one, or was not trained and not allowed.
            PromptError: an instruction is empty, too long, or holds `<GIST>`.
        """
        k = self.check_k(num_gist_tokens, allow_untrained=allow_untrained)
        texts, rows = self._instructions(instructions, k)
        ids, padding = self.pad(rows)
        with evaluating(self.hf_model):
            tensors = self.adapter.compress(ids, padding, k)
        return Gist(
            tensors=tensors,
            lengths=(k,) * len(texts),
            provenance=provenance_of(texts, [len(row) - k for row in rows]),
            model=self.fingerprint,
            template=self.config.template,
        )

    def cache_prompt(self, instructions: Text, *, num_gist_tokens: int | None = None) -> Prefix:
        """The activations of whole instructions: what engines call prefix caching.

        The baseline for every gist. Same rules as `compress`; P + k tokens are kept.
        """
        k = self.check_k(num_gist_tokens)
        texts, rows = self._instructions(instructions, k)
        ids, padding = self.pad(rows)
        with evaluating(self.hf_model):
            tensors = self.adapter.cache_prompt(ids, padding)
        return Prefix(
            tensors=tensors,
            lengths=tuple(len(row) for row in rows),
            provenance=provenance_of(texts, [len(row) - k for row in rows]),
            model=self.fingerprint,
            template=self.config.template,
        )

    def generate(
        self,
        inputs: Text,
        gist: Prefix | None = None,
        *,
        instructions: Text | None = None,
        num_gist_tokens: int | None = None,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        stop_strings: Text | None = None,
        streamer: BaseStreamer | None = None,
    ) -> list[str]:
        """Answer each input, through transformers' own `generate`.

        Args:
            inputs: one, or B; "" where there is none.
            gist: one gist for all inputs, or one for each. A `Prefix` of `cache_prompt` works too.
            instructions: instead of a gist, read these in full. With neither, the model answers
                without any instruction.
            do_sample, temperature, top_p, top_k: sampling; `top_k=0` is no limit. Greedy otherwise.
            seed: makes sampling repeatable; the caller's random state is left alone.
            num_beams, num_return_sequences: beam search; several answers each.
            stop_strings: end an answer behind any of these; they are cut off.
            streamer: receives tokens as they come; transformers' text streamers take one input.

        Returns:
            B * num_return_sequences texts, those of an input side by side.

        Raises:
            OptionError: a number out of range, or both a gist and instructions given.
            PromptError: an input holds `<GIST>`, or there are more tokens than positions.
            GistMismatchError: another model's gist, or neither one gist nor one for each input.
        """
        ends = self.end_tokens
        stops = stops_of(stop_strings)
        options = decoding_options(
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            streamed=streamer is not None,
            stop_strings=stops or None,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=ends or None,
        )
        texts = as_list(inputs, "input")
        if isinstance(streamer, TextStreamer) and len(texts) > 1:
            raise OptionError(f"a stream is one answer, not {len(texts)}; give one input")
        ids, padding = self._prompts(texts, gist, instructions, num_gist_tokens)
        with evaluating(self.hf_model), seeded(seed, self.device):
            new = self.adapter.generate(
                ids,
                padding,
                gist,
                options,
                gist_id=self.gist_id,
                tokenizer=self.tokenizer if stops else None,
                streamer=streamer,
            )
        answers = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [cut_at(answer, stops) for answer in answers]

    def stream(self, input: str, gist: Prefix | None = None, **options: Any) -> Iterator[str]:
        """The answer to one input piece by piece, as it is generated; options as `generate`.

        The pieces, joined, are what `generate` returns. Stop iterating, and generation stops too.

        Raises: as `generate`, before the first piece.
        """
        return stream_text(
            partial(self.generate, [input], gist, **options),
            lambda ids: str(self.tokenizer.decode(ids, skip_special_tokens=True)),
            stops_of(options.get("stop_strings")),
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the Hugging Face layout, `gist_config.json` and a model card (raises SaveError)."""

        def write(temporary: Path) -> None:
            self.hf_model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            self.save_gist_files(temporary)

        return write_folder(folder, write)

    def save_gist_files(self, folder: Path) -> None:
        """Write only `gist_config.json` and the model card, beside weights saved by a trainer."""
        self.config.save(folder)
        card = self.config.model_card(self.hf_model.config.model_type)
        write_text(folder / "README.md", card)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> None:
        """Upload what `save_pretrained` writes to the Hugging Face hub (raises SaveError)."""
        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=folder)
            except Exception as error:  # its HTTP library's, of which it has changed several times
                reason = " ".join(str(error).split())[:200]
                raise SaveError(
                    f"could not upload to {repo_id!r}: {reason}; check the name, the network "
                    "and your login (hf auth login)"
                ) from error

    def check_k(self, k: int | None, *, allow_untrained: bool = False) -> int:
        """k, or the default (raises OptionError where it was not trained and is not allowed)."""
        if k is None:
            return self.config.default_k
        check_numbers(num_gist_tokens=k)
        limit = self.adapter.max_positions
        if limit is not None and k >= limit:
            raise OptionError(
                f"{k} gist tokens are more than the {limit} this model can place; choose fewer"
            )
        trained = self.config.num_gist_tokens
        if trained and k not in trained and not allow_untrained:
            raise OptionError(
                f"this model was trained for {', '.join(map(str, trained))} gist tokens, not {k}; "
                "choose one of those, or allow others with `allow_untrained=True`"
            )
        return int(k)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text alone, without special ones."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pad(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as [B, S] ids and [B, S] mask, padded on the left, on the model's device."""
        left: Any = {"batch_first": True, "padding_side": "left"}
        pad_id = float(self.tokenizer.pad_token_id)
        ids = pad_sequence([torch.tensor(row) for row in rows], padding_value=pad_id, **left)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], **left)
        return ids.to(self.device), mask.to(self.device)

    def _instructions(self, instructions: Text, k: int) -> tuple[list[str], list[list[int]]]:
        texts = as_list(instructions, "instruction")
        rows = [self.encoder.instruction(text, k) for text in texts]
        limit = self.adapter.max_positions
        for number, row in enumerate(rows):
            if limit is not None and len(row) > limit:
                raise PromptError(
                    f"instruction {number} has {len(row) - k} tokens; with {k} gist tokens that is "
                    f"more than the {limit} this model can place; shorten it"
                )
        return texts, rows

    def _prompts(
        self,
        texts: Sequence[str],
        gist: Prefix | None,
        instructions: Text | None,
        num_gist_tokens: int | None,
    ) -> tuple[Tensor, Tensor]:
        if instructions is None:
            if gist is not None:
                if not isinstance(gist, Prefix):
                    raise OptionError(
                        f"{gist!r:.60} is no gist; compress the instruction, or read a file with "
                        "Gist.load"
                    )
                gist.check(self.fingerprint, self.config.template, len(texts))
            return self.pad([self.encoder.input(text) for text in texts])
        if gist is not None:
            raise OptionError("give `gist` or `instructions`, not both")
        given = as_list(instructions, "instruction")
        if len(given) not in (1, len(texts)):
            raise OptionError(
                f"{len(given)} instructions for {len(texts)} inputs; give one, or one for each"
            )
        given = given * len(texts) if len(given) == 1 else given
        k = self.check_k(num_gist_tokens)
        pairs = zip(given, texts, strict=True)
        return self.pad([self.encoder.prompt(i, x, k) for i, x in pairs])


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) over the name, type, shape and sampled bytes of every parameter.

    The same after save and load. Hashing all of a 7B model reads 13 GB; 1,024 elements of every
    tensor, evenly spread, differ as soon as training has touched the tensor.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        if len(flat) > SAMPLES:
            last = len(flat) - 1
            evenly = torch.linspace(0, last, SAMPLES, device=flat.device, dtype=torch.float64)
            flat = flat[evenly.long()]
        sha.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def version(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a parameter is replaced or written to, and the fingerprint may differ.

    Computed at every use of a gist, so it walks the modules itself: `parameters()` makes names and
    looks for tied weights, which takes twice as long.
    """
    found: list[tuple[int, int]] = []
    stack: list[nn.Module | None] = [model]
    while stack:
        module = stack.pop()
        if module is not None:
            own = module._parameters.values()
            found += [(p.data_ptr(), p._version) for p in own if p is not None]
            stack += module._modules.values()
    return tuple(found)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a `with`, for models that are being trained.

    Otherwise dropout would leave a gist to chance, and gradient checkpointing would drop its cache.
    """
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


_SEEDING = threading.RLock()


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch inside a `with`, and put the caller's random state back; None changes nothing.

    torch samples from one generator for the whole process: seeded calls wait for each other, and
    other threads that draw random numbers meanwhile disturb them.

    Raises:
        OptionError: the seed is no whole number from 0 to 2**63 - 1.
    """
    if seed is None:
        yield
        return
    check_numbers(least=0, seed=seed)
    if seed >= 2**63:
        raise OptionError(f"`seed` must be below 2**63, not {seed}")
    devices = [device] if device.type == "cuda" else []
    with _SEEDING, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
