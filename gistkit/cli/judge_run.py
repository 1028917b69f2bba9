"""`gistkit judge` and `gistkit judge all`: ask a judge, and say what came of it."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gistkit.cli.judge import MODEL
from gistkit.cli.judge_report import print_tallies, summary
from gistkit.cli.run import emit, progress_bar, say
from gistkit.errors import JudgeError, OptionError
from gistkit.evaluation.judge.ask import ask
from gistkit.evaluation.judge.endpoint import EndpointConfig
from gistkit.evaluation.judge.journal import SCHEMA_VERSION, Ledger
from gistkit.evaluation.judge.pairs import Pair, Question, questions, read_pairs
from gistkit.evaluation.judge.prompt import DIGEST, messages
from gistkit.evaluation.judge.results import Verdicts, read_results
from gistkit.evaluation.judge.sweep import comparisons

PUBLISHED_PRICE = 2.0  # US dollars for a million tokens of the published judge
LISTED = 5  # failures that are told


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for; see the options of `gistkit judge`."""

    model: str
    base_url: str | None
    api_key_env: str
    seed: int
    both_orders: bool
    temperature: float
    max_tokens: int | None
    structured: bool
    concurrency: int
    timeout: float
    retries: int
    backoff: float
    input_price: float | None
    output_price: float | None
    n: int
    dry_run: bool
    force: bool

    def __post_init__(self) -> None:
        for name, number, least in (
            ("--n", self.n, 0),
            ("--seed", self.seed, 0),
            ("--temperature", self.temperature, 0),
            ("--max-tokens", self.max_tokens, 1),
            ("--concurrency", self.concurrency, 1),
            ("--retries", self.retries, 0),
            ("--backoff", self.backoff, 0),
            ("--input-price", self.input_price, 0),
            ("--output-price", self.output_price, 0),
        ):
            if number is not None and not number >= least:
                raise OptionError(f"{name} must be at least {least}, not {number}")
        if not self.timeout > 0:
            raise OptionError(f"--timeout must be more than 0 seconds, not {self.timeout}")
        if self.url is not None:
            url = urlsplit(self.url)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise OptionError("--base-url is no http address; expected one like http://host/v1")
            if url.username or url.password or url.query:
                raise OptionError(
                    "--base-url holds more than an address; put the key into the environment "
                    f"variable {self.api_key_env}"
                )

    @property
    def url(self) -> str | None:
        """Of the endpoint; None for OpenAI's own."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None

    @property
    def key(self) -> str:
        """The API key (raises OptionError where one is needed and there is none)."""
        key = os.environ.get(self.api_key_env, "").strip()
        if key or self.url is not None:
            return key or "none"  # local endpoints want no key, the library wants a word
        raise OptionError(
            f"no API key: set the environment variable {self.api_key_env}, or --base_url for "
            "another endpoint"
        )

    @property
    def prices(self) -> tuple[float, float] | None:
        """US dollars for a million tokens asked and answered; None where unknown."""
        if self.input_price is None and self.output_price is None:
            known = self.model == MODEL and self.url is None
            return (PUBLISHED_PRICE, PUBLISHED_PRICE) if known else None
        return self.input_price or 0.0, self.output_price or 0.0

    @property
    def endpoint(self) -> EndpointConfig:
        """Where to ask, and how."""
        return EndpointConfig(
            model=self.model,
            base_url=self.url,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            structured=self.structured,
            timeout=self.timeout,
            attempts=self.retries + 1,
            backoff=self.backoff,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a results file says of the judge."""
        return {
            "model": self.model,
            "base_url": self.url,
            "temperature": self.temperature,
            "seed": self.seed,
            "both_orders": self.both_orders,
            "prompt": DIGEST,
        }

    def chosen(self, pairs: Sequence[Pair]) -> list[Question]:
        """The questions about the first `n` pairs."""
        first = pairs[: self.n or None]
        return list(questions(first, seed=self.seed, both_orders=self.both_orders))


def judge_one(
    asked: Asked, a: Path, b: Path, names: tuple[str, str], file: Path, *, as_json: bool
) -> None:
    """Judge two files of answers, and report.

    Raises:
        DataError, OptionError, SaveError: as `read_pairs` and `Ledger` do.
        JudgeError: the endpoint is of no use, or pairs are left without a verdict.
    """
    pairs = read_pairs(a, b, names)
    wanted = asked.chosen(pairs)
    if len(pairs) > asked.n > 0:
        say(f"judging the first {asked.n} of {len(pairs)} pairs (--n 0 for all)")
    ledger = _ledger(asked, pairs, names, file)
    if asked.dry_run:
        _tell({str(file): _plan(ledger, wanted)}, as_json=as_json, example=wanted)
        return
    found = _judge(asked, ledger, wanted)
    _report({str(file): found}, as_json=as_json)
    _complain({file: ledger.failures(wanted)})


def judge_all(
    asked: Asked,
    folder: Path,
    out: Path,
    *,
    names: Collection[str],
    splits: Collection[str],
    as_json: bool,
) -> None:
    """Judge those comparisons of a folder that are not complete; report; raises as `judge_one`."""
    found: dict[str, Verdicts] = {}
    plans: dict[str, Mapping[str, Any]] = {}
    failures: dict[Path, dict[int, str]] = {}
    for comparison in comparisons(folder, names=names, splits=splits):
        file = out / comparison.file
        pairs = read_pairs(comparison.a, comparison.b, comparison.names)
        wanted = asked.chosen(pairs)
        done = _published(file, len({question.pair.row for question in wanted}))
        if done is not None:
            found[file.name] = done
            continue
        ledger = _ledger(asked, pairs, comparison.names, file)
        if not ledger.left(wanted) and not ledger.journal.exists():
            found[file.name] = read_results(file)
            continue
        if asked.dry_run:
            plans[file.name] = _plan(ledger, wanted)
            continue
        found[file.name] = _judge(asked, ledger, wanted, what=" vs ".join(comparison.names))
        failures[file] = ledger.failures(wanted)
    if asked.dry_run:
        _tell(plans, as_json=as_json, complete=len(found))
        return
    _report(found, as_json=as_json)
    _complain(failures)


def _published(file: Path, rows: int) -> Verdicts | None:
    """The verdicts of a file that the published script completed, packed or not; None of others."""
    for path in (file, file.with_name(file.name + ".gz")):
        if path.is_file():
            found = read_results(path)
            if "judge" not in found.content and found.tally.rows >= rows:
                return found
    return None


def _ledger(asked: Asked, pairs: Sequence[Pair], names: tuple[str, str], file: Path) -> Ledger:
    return Ledger(
        file,
        pairs,
        names=names,
        settings=asked.settings,
        prices=asked.prices,
        force=asked.force,
    )


def _judge(
    asked: Asked, ledger: Ledger, wanted: Sequence[Question], *, what: str = "judging"
) -> Verdicts:
    """Ask what is left, with a bar; whatever happens, write what there is."""
    left = len(ledger.left(wanted))
    key = asked.key if left else ""
    if left:
        ledger.begin()
    try:
        with progress_bar() as progress:
            task = progress.add_task(what, total=len(wanted), completed=len(wanted) - left)
            judged: Callable[[], None] = lambda: progress.advance(task)  # noqa: E731
            ask(
                wanted,
                ledger,
                asked.endpoint,
                key=key,
                concurrency=asked.concurrency,
                judged=judged,
            )
    except BaseException:
        ledger.close(wanted)
        done = len(wanted) - len(ledger.left(wanted))
        if done:
            say(
                f"stopped; {done} of {len(wanted)} verdicts are kept in {ledger.path}; "
                "the same command goes on from there"
            )
        raise
    return ledger.close(wanted)


def _plan(ledger: Ledger, wanted: Sequence[Question]) -> dict[str, Any]:
    """What would be asked. Four characters make a token, more or less."""
    left = ledger.left(wanted)
    characters = sum(len(part["content"]) for one in left for part in messages(one))
    tokens = characters // 4
    answered = 40 * len(left)
    cost = None
    if ledger.prices is not None:
        cost = (tokens * ledger.prices[0] + answered * ledger.prices[1]) / 1e6
    return {
        "questions": len(wanted),
        "judged": len(wanted) - len(left),
        "requests": len(left),
        "prompt_tokens": tokens,
        "completion_tokens": answered,
        "estimated_cost": None if cost is None else round(cost, 4),
    }


def _tell(
    plans: Mapping[str, Mapping[str, Any]],
    *,
    as_json: bool,
    example: Sequence[Question] = (),
    complete: int = 0,
) -> None:
    """Print plans."""
    if as_json:
        emit(dumps({"schema_version": SCHEMA_VERSION, "plan": plans, "complete": complete}))
        return
    if example:
        for part in messages(example[0]):
            emit(f"--- {part['role']}\n{part['content']}")
        emit("---")
    for file, plan in plans.items():
        emit(f"{file}: {plan['requests']} requests, {plan['judged']} judged already")
    tokens = sum(plan["prompt_tokens"] for plan in plans.values())
    costs = [plan["estimated_cost"] for plan in plans.values()]
    price = "price unknown (--input-price, --output-price)"
    if None not in costs:
        price = f"about ${sum(costs):.2f}"
    emit(
        f"in all {sum(plan['requests'] for plan in plans.values())} requests, about {tokens:,} "
        f"prompt tokens, {price}; nothing was asked"
        + (f"; {complete} comparisons are complete" if complete else "")
    )


def _report(found: Mapping[str, Verdicts], *, as_json: bool) -> None:
    reports = [summary(file, one) for file, one in found.items()]
    if as_json:
        emit(dumps({"schema_version": SCHEMA_VERSION, "files": reports}, ensure_ascii=False))
    else:
        print_tallies(reports)


def _complain(failures: Mapping[Path, Mapping[int, str]]) -> None:
    """Raise JudgeError where a pair has no verdict; the first are told why."""
    listed = [(file, row, why) for file, rows in failures.items() for row, why in rows.items()]
    if not listed:
        return
    for file, row, why in listed[:LISTED]:
        say(f"{file.name} row {row + 1}: {why}")
    raise JudgeError(
        f"{len(listed)} pairs have no verdict (see failures in the results file); the same command "
        "asks them again"
    )
