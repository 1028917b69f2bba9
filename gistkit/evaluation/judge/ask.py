"""Asking many questions at once, and keeping every verdict as soon as it is there."""

import asyncio
from collections.abc import Callable, Sequence

from gistkit.errors import JudgeError
from gistkit.evaluation.judge.endpoint import Endpoint, EndpointConfig
from gistkit.evaluation.judge.journal import Ledger
from gistkit.evaluation.judge.pairs import Question

PASSES = 2  # questions without a verdict are asked once more, when all others are done
LOST = 5  # so many questions in a row that the endpoint does not react to end the run


def ask(
    questions: Sequence[Question],
    ledger: Ledger,
    config: EndpointConfig,
    *,
    key: str,
    concurrency: int,
    judged: Callable[[], object] = lambda: None,
) -> None:
    """Ask what `ledger` has no verdict on, at most `concurrency` at once.

    Questions that fail are kept as failures. Ctrl-C and errors lose only what is on its way.

    Args:
        judged: called after each verdict.

    Raises:
        JudgeError: the endpoint is of no use: see `Endpoint.ask`, or it does not react any more.
        MissingExtraError: openai is not installed.
        SaveError: a verdict could not be kept.
    """
    if ledger.left(questions):
        asyncio.run(_ask(questions, ledger, config, key, concurrency, judged))


async def _ask(
    questions: Sequence[Question],
    ledger: Ledger,
    config: EndpointConfig,
    key: str,
    concurrency: int,
    judged: Callable[[], object],
) -> None:
    lost = 0

    async def work(endpoint: Endpoint, left: list[Question]) -> None:
        nonlocal lost
        while left:
            question = left.pop()
            answer = await endpoint.ask(question)
            ledger.record(question, answer)
            if answer.verdict is not None:
                judged()
            lost = 0 if answer.reached else lost + 1
            if lost >= LOST:
                raise JudgeError(
                    f"{config.base_url or 'the endpoint'} does not react: {answer.error}; see that "
                    "it runs, then give the same command again"
                )

    async with Endpoint(config, key=key) as endpoint:
        for _ in range(PASSES):
            left = ledger.left(questions)[::-1]
            workers = [asyncio.create_task(work(endpoint, left)) for _ in range(concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:  # an error of one ends all
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
