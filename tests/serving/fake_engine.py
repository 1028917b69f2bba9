"""An engine that says what it was asked, one word at a time; some words make it fail.

BUSY    the queue is full            SLOW    a word every 0.2 s
GONE    the engine stopped           BREAK   fails in the middle
CRASH   a mistake of ours            BREAK-LOUD  the same with a message that quotes the prompt
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from gistkit.errors import BusyError, PromptError, UnavailableError
from gistkit.fidelity import PARTS, Fidelity, with_fidelity
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.prompts import check_text
from gistkit.serving.engine import Engine, Prepared, Prompt, Sampling, StreamChunk, TokenLogprob
from gistkit.store import GistKey, GistStore


class FakeEngine(Engine):
    """Compresses truly, with a tiny model; answers falsely."""

    name = "tiny"
    trained = (1, 2, 4)
    max_length: int | None = 512
    healthy = True

    def __init__(self, model: GistModel, store: GistStore) -> None:
        self.model, self.store = model, store
        self.closed = self.running = 0
        self.score = 0.99
        self.clients: list[str] = []
        self.samplings: list[Sampling] = []

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        if "BUSY" in instruction:
            raise BusyError("too many instructions wait", 3.2)
        k = self.model.check_k(num_gist_tokens)
        key = GistKey.of(self.model, instruction, k)
        return key.id, self.store.get_or_compress(self.model, instruction, num_gist_tokens=k)

    async def measure(
        self, gist_id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        gist = self.store.load(gist_id)
        parts = dict.fromkeys(PARTS, self.score)
        found = Fidelity(self.score, parts, 0.1, len(probes), 3, not probes, 0)
        self.store.update(gist_id, with_fidelity(gist, found))
        return found.to_json()

    async def prepare(
        self,
        prompt: Prompt,
        gist: Gist | None,
        sampling: Sampling,
        *,
        client: str = "",
        gist_id: str = "",
        fit: bool = False,
    ) -> Prepared:
        text = self._text(prompt, gist)
        num_cached = 0 if gist is None else gist.num_tokens
        prompt_tokens = num_cached + len(text.split())
        assert self.max_length is not None
        if fit:
            room = max(1, self.max_length - prompt_tokens)
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        total_tokens = prompt_tokens + sampling.max_tokens
        if total_tokens > self.max_length:
            raise PromptError(f"{total_tokens} tokens are too many")
        return Prepared(
            ids=[ord(letter) for letter in text],
            gist=gist,
            gist_id=gist_id,
            instruction="" if gist else prompt.instruction,
            sampling=sampling,
            client=client,
            num_cached=num_cached,
            prompt_tokens=prompt_tokens,
            total_tokens=total_tokens,
            kv_bytes=8 * total_tokens,
        )

    async def stream(
        self, prepared: Prepared, *, whole: bool = False
    ) -> AsyncIterator[StreamChunk]:
        sampling = prepared.sampling
        self.clients.append(prepared.client)
        self.samplings.append(sampling)
        text = "".join(map(chr, prepared.ids))
        if "BUSY" in text:
            raise BusyError("the queue is full", 1.5)
        if "GONE" in text:
            raise UnavailableError("the engine stopped")
        if "CRASH" in text:
            raise RuntimeError(f"secret {text}")
        if sampling.n > 8:
            raise PromptError("too many at once")
        self.running += 1
        try:
            words = [("gist:" if prepared.gist else "full:"), *text.split()]
            for place, word in enumerate(words[: sampling.max_tokens]):
                if place == 2 and "BREAK" in text:
                    raise UnavailableError("the engine stopped in the middle")
                if "SLOW" in text:
                    await asyncio.sleep(0.2)
                last = place + 1 == min(len(words), sampling.max_tokens)
                stopped = word in sampling.stop
                for index in range(sampling.n):
                    finish = "stop" if stopped or (last and len(words) == place + 1) else None
                    yield StreamChunk(
                        index,
                        "" if stopped else f" {word}" if place else word,
                        1,
                        self._logprobs(word, sampling),
                        finish or ("length" if last else None),
                    )
                if stopped:
                    return
        finally:
            self.running -= 1
            self.closed += 1

    def stats(self) -> Mapping[str, float]:
        return {"running": self.running, "waiting": 0, "kv_bytes": 0, "kv_limit": 1000}

    @staticmethod
    def _logprobs(word: str, sampling: Sampling) -> tuple[TokenLogprob, ...]:
        if sampling.logprobs is None:
            return ()
        top = [(word, -0.5), ("other", float("-inf"))][: sampling.logprobs]
        return (TokenLogprob(word, -0.5, tuple(top)),)

    @staticmethod
    def _text(prompt: Prompt, gist: Gist | None) -> str:
        turns = prompt.turns
        texts = [turns] if isinstance(turns, str) else [turn.text for turn in turns]
        if gist is None and prompt.instruction:
            texts.insert(0, prompt.instruction)
        for text in texts:
            check_text("input", text)
        return " ".join(texts)
