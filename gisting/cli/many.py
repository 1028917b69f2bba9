"""`gisting compress --jsonl`: answer the prompts of a file, one JSON result a line.

    read ── check every line ──> batches ──> FILE.partial ── all there ──> FILE

An instruction is compressed once, and its gist is kept until its last line is answered. Each result
carries `run`, a digest of the model and the options.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gisting.cli.report import sizes
from gisting.cli.request import Request
from gisting.cli.results import PartialFile, Stdout
from gisting.cli.run import say
from gisting.errors import GistingError, PromptError

if TYPE_CHECKING:
    from rich.progress import Progress

    from gisting.gist import Gist
    from gisting.model import GistModel


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
        GistingError: the file or a prompt in it is wrong (before anything is answered), the model
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
    gists = Gists(request, model, prompts[sink.done :])
    try:
        with _progress() as progress:
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
    except (KeyboardInterrupt, GistingError):
        if sink.done:
            say(sink.kept(len(prompts)))
        raise
    sink.finish()


class Gists:
    """Gists of the prompts to come: made when first asked for, dropped when asked for no more."""

    def __init__(self, request: Request, model: "GistModel", prompts: Sequence[Prompt]) -> None:
        self._request, self._model = request, model
        self._uses = Counter(prompt.instruction for prompt in prompts)
        self._made: dict[str, Gist] = {}

    def take(self, instructions: Sequence[str]) -> "list[Gist]":
        """The gist of each instruction; new ones are compressed in one batch."""
        new = [text for text in dict.fromkeys(instructions) if text not in self._made]
        if new:
            self._made.update(zip(new, self._request.compress(self._model, new), strict=True))
        rows = [self._made[text] for text in instructions]
        self._uses.subtract(instructions)
        for text in set(instructions):
            if not self._uses[text]:
                del self._made[text]
        return rows


def read_prompts(path: Path) -> list[Prompt]:
    """The file's lines, every one fit to be a prompt (raises DataError, PromptError)."""
    from gisting.data.examples import iter_objects, opened, parse_example
    from gisting.prompts import check_instruction, check_text

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


def _progress() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(file=sys.stderr)
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log has no use for a bar
    )
