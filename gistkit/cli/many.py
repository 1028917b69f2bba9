"""`gistkit compress --jsonl`: answer the prompts of a file, one JSON result a line.

    read ── check every line ──> batches ──> FILE.partial ── all there ──> FILE

An instruction is compressed once, and its gist is kept until its last line is answered. Each result
carries `run`, a digest of the model and the options.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.cli.report import sizes
from gistkit.cli.request import Request
from gistkit.cli.results import PartialFile, Stdout
from gistkit.cli.run import progress_bar, say
from gistkit.errors import GistkitError, PromptError
from gistkit.evaluation.gists import Gists

if TYPE_CHECKING:
    from gistkit.gist import Gist
    from gistkit.model import GistModel


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of the file; `where` names it in messages."""

    where: str
    instruction: str
    input: str


def answer_file(
    request: Request, path: Path, out: Path | None, *, batch_size: int, force: bool, verbose: bool
) -> None:
    """Answer every prompt of `path`; results go to `out`, or to stdout where it is None.

    Raises:
        GistkitError: the file or a prompt in it is wrong (before anything is answered), the model
            cannot be used, or the results cannot be written.
        KeyboardInterrupt: Ctrl-C; what was answered is kept.
    """
    prompts = read_prompts(path)
    model = request.load(verbose=verbose)
    length = check_lengths(request, model, prompts)
    run = run_id(request, model, length)
    sink: PartialFile | Stdout = Stdout()
    if out is not None:
        expected = [{"instruction": p.instruction, "input": p.input, "run": run} for p in prompts]
        sink = PartialFile(out, expected, force=force)
    gists = Gists(
        partial(request.compress, model), [prompt.instruction for prompt in prompts[sink.done :]]
    )
    try:
        with progress_bar() as progress:
            task = progress.add_task("answering", total=len(prompts), completed=sink.done)
            while sink.done < len(prompts):
                start = sink.done
                batch = prompts[start : start + batch_size]
                rows = gists.take([prompt.instruction for prompt in batch])
                outputs = request.generate(
                    model,
                    [prompt.input for prompt in batch],
                    type(rows[0]).stack(rows),
                    max_new_tokens=length,
                    seed=start,
                )
                sink.write(
                    [
                        _line(prompt, output, gist, run)
                        for prompt, output, gist in zip(batch, outputs, rows, strict=True)
                    ]
                )
                progress.advance(task, len(batch))
    except (KeyboardInterrupt, GistkitError):
        if sink.done:
            say(sink.kept(len(prompts)))
        raise
    sink.finish()


def read_prompts(path: Path) -> list[Prompt]:
    """The file's lines, every one fit to be a prompt (raises DataError, PromptError)."""
    from gistkit.data.examples import iter_objects, opened, parse_example
    from gistkit.prompts import check_instruction, check_text

    prompts = []
    with opened(path) as file:
        for where, row in iter_objects(file, path):
            example = parse_example(row, where, required=("instruction",))
            with _at(where):
                check_instruction(example.instruction)
                check_text("input", example.input)
            prompts.append(Prompt(where, example.instruction, example.input))
    return prompts


def check_lengths(request: Request, model: "GistModel", prompts: Sequence[Prompt]) -> int:
    """The longest answer; the same for all lines, whatever the batches (raises PromptError)."""
    k = request.k(model)
    limit = model.adapter.max_positions
    seen: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        with _at(prompt.where):
            if prompt.instruction not in seen:
                seen[prompt.instruction] = len(model.encoder.instruction(prompt.instruction, k))
            kept.append(k + len(model.encoder.input(prompt.input)))
            for what, tokens in (("instruction", seen[prompt.instruction]), ("input", kept[-1])):
                if limit is not None and tokens + (what == "input") > limit:
                    raise PromptError(
                        f"the {what} has {tokens - k} tokens; with {k} gist tokens that is more "
                        f"than the {limit} this model can place; shorten it"
                    )
    return request.new_tokens(model, kept)


def run_id(request: Request, model: "GistModel", max_new_tokens: int) -> str:
    """A digest of all that decides an answer besides its prompt: 16 hex digits."""
    parts = (
        model.fingerprint,
        model.config.template,
        request.k(model),
        max_new_tokens,
        request.temperature,
        request.seed,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _line(prompt: Prompt, output: str, gist: "Gist", run: str) -> dict[str, Any]:
    size = sizes(gist)
    kept = ("num_gist_tokens", "compression_factor", "kv_bytes_before", "kv_bytes_after")
    return {
        "instruction": prompt.instruction,
        "input": prompt.input,
        "output": output,
        **{name: size[name] for name in kept},
        "run": run,
    }


@contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error
