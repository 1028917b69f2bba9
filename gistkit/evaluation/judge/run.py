"""Judge pairs of answers and write the results file.

options = JudgeOptions(model="Qwen/Qwen3-32B", base_url="http://localhost:8000/v1")
names = ("gist", "full")
pairs = read_pairs(Path("gist.csv"), Path("full.csv"), names)
verdicts = JudgeRun(options, pairs, names, Path("gist-vs-full.json")).judge()
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gistkit.errors import JudgeError, OptionError
from gistkit.evaluation.judge.endpoint import MODEL, Endpoint, EndpointConfig
from gistkit.evaluation.judge.journal import VerdictJournal
from gistkit.evaluation.judge.pairs import SEED, Pair, Question, questions
from gistkit.evaluation.judge.prompt import DIGEST, messages
from gistkit.evaluation.judge.results import Verdicts

PUBLISHED_PRICE = 2.0  # US dollars for a million tokens of the published judge
PASSES = 2  # questions without a verdict are asked once more, after all others
UNREACHABLE = 5  # questions in a row without a response that end the run


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions(EndpointConfig):
    """The judge, its endpoint, and what it judges.

    Attributes:
        base_url: None is OPENAI_BASE_URL, and without that OpenAI's own.
        seed: decides which answer is shown first.
        both_orders: judge each pair in both orders; unequal verdicts are a tie.
        n: judge the first n pairs; 0 is all.
        concurrency: requests at once.
        input_price, output_price: US dollars per million prompt and completion tokens; None is
            unknown, except for the published judge.

    Raises:
        OptionError: a number that is too small, or a `base_url` that is no http address.
    """

    api_key_env: str = "OPENAI_API_KEY"
    seed: int = SEED
    both_orders: bool = False
    n: int = 0
    concurrency: int = 8
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("n", 0), ("seed", 0), ("temperature", 0), ("max_tokens", 1), ("concurrency", 1),
            ("retries", 0), ("backoff", 0), ("input_price", 0), ("output_price", 0),
        ):  # fmt: skip
            number = getattr(self, name)
            if number is not None and not number >= least:
                raise OptionError(f"`{name}` must be at least {least}, not {number}")
        if not self.timeout > 0:
            raise OptionError(f"`timeout` must be more than 0 seconds, not {self.timeout}")
        if self.url is not None:
            url = urlsplit(self.url)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise OptionError("`base_url` is no http address; expected one like http://host/v1")
            if url.username or url.password or url.query:
                raise OptionError(
                    "`base_url` holds more than an address; put the key into the environment "
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
            return key or "none"  # local endpoints need no key, but the library wants a word
        raise OptionError(
            f"no API key: set the environment variable {self.api_key_env}, or `base_url` for "
            "another endpoint"
        )

    @property
    def prices(self) -> tuple[float, float] | None:
        """US dollars per million prompt and completion tokens; None where unknown."""
        if self.input_price is None and self.output_price is None:
            known = self.model == MODEL and self.url is None
            return (PUBLISHED_PRICE, PUBLISHED_PRICE) if known else None
        return self.input_price or 0.0, self.output_price or 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """The record of the judge in a results file."""
        return {
            "model": self.model,
            "base_url": self.url,
            "temperature": self.temperature,
            "seed": self.seed,
            "both_orders": self.both_orders,
            "prompt": DIGEST,
        }


class JudgeRun:
    """Pairs to be judged, and the verdicts of earlier runs, which stay in `results_file`.

    `questions` are all of them, judged ones included. With `force`, start over where there is a
    results file already. Raises DataError and SaveError, as `VerdictJournal` does.
    """

    def __init__(
        self,
        options: JudgeOptions,
        pairs: Sequence[Pair],
        names: tuple[str, str],
        results_file: Path,
        *,
        force: bool = False,
    ) -> None:
        self.options = options
        first = pairs[: options.n or None]
        self.questions = list(questions(first, seed=options.seed, both_orders=options.both_orders))
        self.journal = VerdictJournal(
            results_file,
            pairs,
            names=names,
            settings=options.settings,
            prices=options.prices,
            force=force,
        )

    @property
    def left(self) -> list[Question]:
        return self.journal.left(self.questions)

    def judge(self, judged: Callable[[], object] = lambda: None) -> Verdicts:
        """Ask the remaining questions; verdicts are written even if an error ends the run.

        Questions that fail are recorded as failures: see `journal.failures`. `judged` is called
        after each verdict.

        Raises:
            JudgeError: the endpoint cannot be used: see `Endpoint.ask`, or it stopped reacting.
            OptionError: there is no API key.
            MissingExtraError: openai is not installed.
            SaveError: another run judges into the same file, or a verdict could not be written.
        """
        if not self.left:
            return self.journal.close(self.questions)
        key = self.options.key
        self.journal.journal.open()
        try:
            asyncio.run(_ask(self.options, key, self.questions, self.journal, judged))
        finally:
            found = self.journal.close(self.questions)
        return found

    def plan(self) -> dict[str, Any]:
        """An estimate of the remaining requests, at four characters a token."""
        left = self.left
        characters = sum(len(part["content"]) for question in left for part in messages(question))
        prompt, completion = characters // 4, 40 * len(left)
        cost = None
        if prices := self.options.prices:
            cost = round((prompt * prices[0] + completion * prices[1]) / 1e6, 4)
        return {
            "questions": len(self.questions),
            "judged": len(self.questions) - len(left),
            "requests": len(left),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "estimated_cost": cost,
        }


async def _ask(
    options: JudgeOptions,
    key: str,
    questions: Sequence[Question],
    journal: VerdictJournal,
    judged: Callable[[], object],
) -> None:
    unreachable = 0  # questions in a row

    async def work(endpoint: Endpoint, left: list[Question]) -> None:
        nonlocal unreachable
        while left:
            question = left.pop()
            reply = await endpoint.ask(question)
            journal.record(question, reply)
            if reply.verdict is not None:
                judged()
            unreachable = 0 if reply.reached else unreachable + 1
            if unreachable >= UNREACHABLE:
                raise JudgeError(
                    f"{options.url or 'the endpoint'} does not respond: {reply.error}; check that "
                    "it runs, then rerun the same command to resume"
                )

    async with Endpoint(replace(options, base_url=options.url), key=key) as endpoint:
        for _ in range(PASSES):
            left = journal.left(questions)[::-1]
            workers = [
                asyncio.create_task(work(endpoint, left)) for _ in range(options.concurrency)
            ]
            try:
                await asyncio.gather(*workers)
            finally:  # an error in one worker ends all
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
