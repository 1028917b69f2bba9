"""The client of a chat endpoint that speaks OpenAI's API.

Rate limits, server errors and time-outs are retried; a reply that is no verdict is requested again.
"""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, Self

from gistkit.errors import JudgeError, MissingExtraError
from gistkit.evaluation.judge.pairs import Question
from gistkit.evaluation.judge.prompt import (
    SCHEMA,
    UnreadableVerdict,
    Verdict,
    messages,
    parse,
    reminded,
    writable,
)

MODEL = "gpt-3.5-turbo"  # the published judge
LONGEST_WAIT = 600.0  # seconds that a server may ask us to wait
LIMITED = 50  # times that one question may meet a rate limit
_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
}


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """The endpoint and its options.

    Attributes:
        base_url: None for OpenAI's own.
        max_tokens: of a reply; None leaves it to the endpoint.
        structured: request a JSON schema; dropped where the endpoint refuses it.
        timeout: seconds for one request.
        retries: further requests for a question whose first one failed, rate limits left aside.
        backoff: seconds to wait after a first error; doubles, up to a minute.
    """

    model: str = MODEL
    base_url: str | None = None
    temperature: float = 0.0
    max_tokens: int | None = None
    structured: bool = True
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0


@dataclass(slots=True)
class Usage:
    """Requests and tokens, those of failed requests included."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Reply:
    verdict: Verdict | None
    error: str
    usage: Usage
    reached: bool = True  # whether the endpoint answered at all


class _Retry(Exception):
    """A request to be retried; `wait` is the server's `Retry-After`, in seconds."""

    def __init__(
        self, why: str, *, wait: float | None = None, limited: bool = False, reached: bool = True
    ) -> None:
        super().__init__(why)
        self.wait, self.limited, self.reached = wait, limited, reached


class _Refused(Exception):
    """A request that the endpoint rejects for good."""


class Endpoint:
    """A connection; an async context manager. `key` is sent, never shown.

    Raises MissingExtraError where openai is not installed.
    """

    def __init__(self, config: EndpointConfig, *, key: str) -> None:
        try:
            self._openai: Any = import_module("openai")
        except ImportError as error:
            raise MissingExtraError("openai", "judge") from error
        self.config = config
        self._key = key
        self._structured = config.structured
        self._not_before = 0.0  # of the event loop's clock: all wait for a rate limit
        self._jitter = random.Random(0)
        self._client = self._openai.AsyncOpenAI(
            api_key=key, base_url=config.base_url, timeout=config.timeout, max_retries=0
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def ask(self, question: Question) -> Reply:
        """Ask until there is a verdict, or no attempt is left.

        Raises JudgeError where every other question would fail as well: the key is refused, there
        is no such model, the quota is used up, or the endpoint asks for a very long wait.
        """
        usage = Usage()
        conversation = messages(question)
        tries = limited = 0
        error, reached, refused = "", True, False
        while tries <= self.config.retries and limited < LIMITED:
            await self._wait_for_limits()
            structured = self._structured and not refused
            usage.requests += 1
            try:
                content = await self._request(conversation, usage, structured=structured)
                if refused:
                    self._structured = False  # it was the schema
                return Reply(parse(content), "", usage)
            except UnreadableVerdict as failure:
                error, reached = str(failure), True
                conversation = reminded(conversation, content)
                tries += 1
            except _Retry as failure:
                error, reached = str(failure), failure.reached
                tries, limited = tries + (not failure.limited), limited + failure.limited
                await self._wait(failure, limited if failure.limited else tries)
            except _Refused as failure:
                if not structured:
                    return Reply(None, str(failure), usage)
                refused = True  # some endpoints refuse the schema: ask without
        return Reply(None, error, usage, reached)

    async def _request(
        self, conversation: list[dict[str, str]], usage: Usage, *, structured: bool
    ) -> str:
        options: dict[str, Any] = {"temperature": self.config.temperature}
        if structured:
            options["response_format"] = _FORMAT
        if self.config.max_tokens is not None:
            options["max_tokens"] = self.config.max_tokens
        lib = self._openai
        try:
            # the library's own time limit starts again with every byte
            async with asyncio.timeout(self.config.timeout):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=self.config.model, messages=conversation, **options
                )
        except lib.APIStatusError as error:
            raise self._of_status(error) from None
        except (TimeoutError, lib.APITimeoutError):
            why = f"no answer within {self.config.timeout:g} s"
            raise _Retry(why, reached=False) from None
        except lib.APIConnectionError as error:
            cause = error.__cause__ or error
            why = self._hidden(f"no connection ({str(cause) or type(cause).__name__})")
            raise _Retry(why, reached=False) from None
        try:
            return _content(json.loads(response.text), usage)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Retry("an answer that is not the API's JSON") from None

    def _of_status(self, error: Any) -> Exception:
        status: int = error.status_code
        body = error.body if isinstance(error.body, dict) else {}
        message = " ".join(str(body.get("message") or "").split())[:200]
        why = self._hidden(f"status {status}" + (f" ({message})" if message else ""))
        where = self.config.base_url or "the endpoint"
        if body.get("code") == "insufficient_quota" or status == 402:
            return JudgeError(f"{where}: {why}; the quota is used up")
        if status in (401, 403):
            return JudgeError(f"{where}: {why}; check that the API key is the right one")
        if status == 404:
            return JudgeError(
                f"{where}: {why}; check `base_url` and that it has a model {self.config.model!r}"
            )
        if status in (408, 409, 429) or status >= 500:
            return _Retry(why, wait=retry_after(error.response.headers), limited=status == 429)
        return _Refused(why)

    def _hidden(self, text: str) -> str:
        """`text` without the key, which some endpoints repeat in their errors."""
        return writable(text.replace(self._key, "***") if self._key else text)

    async def _wait_for_limits(self) -> None:
        clock = asyncio.get_running_loop().time
        while (left := self._not_before - clock()) > 0:
            await asyncio.sleep(left + 0.01)

    async def _wait(self, retry: _Retry, times: int) -> None:
        """Wait as `Retry-After` says, else longer each time; a rate limit pauses all questions."""
        if retry.wait is not None and retry.wait > LONGEST_WAIT:
            raise JudgeError(
                f"{self.config.base_url or 'the endpoint'} asks to wait {retry.wait:.0f} s "
                f"({retry}); rerun the same command then"
            )
        wait = retry.wait
        if wait is None:
            longest = min(60.0, self.config.backoff * 2.0 ** min(times - 1, 10))
            wait = longest * self._jitter.uniform(0.5, 1.0)  # not all at once
        if retry.limited or retry.wait is not None:
            now = asyncio.get_running_loop().time()
            self._not_before = max(self._not_before, now + wait)
        else:
            await asyncio.sleep(wait)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, given as such or as a date; None without.

    >>> retry_after({"retry-after": "2.5"})
    2.5
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _content(completion: dict[str, Any], usage: Usage) -> str:
    """The text of a completion; adds its tokens to `usage`."""
    used = completion.get("usage")
    if isinstance(used, dict):
        usage.prompt_tokens += _count(used.get("prompt_tokens"))
        usage.completion_tokens += _count(used.get("completion_tokens"))
    message = completion["choices"][0]["message"]
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):  # parts, as some endpoints send them
        content = "".join(str(part.get("text", "")) for part in content)
    return writable(str(content))


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
