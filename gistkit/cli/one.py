"""`gistkit compress` of one prompt: compress or load, generate, report."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gistkit.cli import report
from gistkit.cli.request import Request
from gistkit.cli.run import emit
from gistkit.errors import GistMismatchError

if TYPE_CHECKING:
    from gistkit.evaluation.compare import Way
    from gistkit.gist import Gist
    from gistkit.model import GistModel


def answer_one(
    request: Request,
    instruction: str | None,
    input: str,
    *,
    gist_file: Path | None,
    save: Path | None,
    compare_ways: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Answer one input from the gist of `instruction`, or from the one in `gist_file`.

    Raises:
        GistkitError: the model, the gist or the prompt cannot be used, or `save` not written.
    """
    start = time.perf_counter()
    gist = None if gist_file is None else _load(gist_file)  # complain before the model is loaded
    model = request.load(verbose=verbose)
    loaded = time.perf_counter()
    if gist is None:
        assert instruction is not None
        gist = request.compress(model, [instruction])
    gist = gist.to(device=model.device)
    compressed = time.perf_counter()
    length = request.new_tokens(model, [gist.num_tokens + len(model.encoder.input(input))])
    (output,) = request.generate(model, [input], gist, max_new_tokens=length, seed=0)
    answered = time.perf_counter()
    if save is not None:
        gist.save(save)
    ways = None
    if compare_ways:
        assert instruction is not None
        ways = _compare(request, model, instruction, input)
    facts = report.facts(
        model,
        gist,
        named=request.model,
        instruction=instruction,
        input=input,
        output=output,
        precision=request.precision,
        max_new_tokens=length,
        seconds={
            "load": loaded - start,
            "compress": compressed - loaded,
            "generate": answered - compressed,
        },
        saved=save,
        ways=ways,
    )
    emit(report.as_json(facts) if as_json else report.as_text(facts))
    if ways is not None and not as_json:
        report.print_ways(ways)


def _load(path: Path) -> "Gist":
    from gistkit.gist import Gist

    gist = Gist.load(path)
    if len(gist) != 1:
        raise GistMismatchError(f"{path} holds {len(gist)} gists; save the one to use alone")
    return gist


def _compare(request: Request, model: "GistModel", instruction: str, input: str) -> "list[Way]":
    from gistkit.evaluation.compare import compare

    k = request.k(model)
    new = len(model.encoder.input(input))
    whole = len(model.encoder.instruction(instruction, k)) + new
    limit = model.adapter.max_positions
    fits = limit is None or whole < limit  # or else only the gist's room counts
    return compare(
        model,
        instruction,
        input,
        num_gist_tokens=k,
        allow_untrained=request.allow_untrained,
        max_new_tokens=request.new_tokens(model, [whole if fits else k + new]),
        repetitions=report.REPETITIONS,
    )
