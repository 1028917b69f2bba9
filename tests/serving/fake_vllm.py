"""A server that speaks as vLLM with our connector does, and misbehaves when it is told to.

It answers truly, with a tiny model, so that a wrong answer shows. Sockets are its own: it can break
a connection at any byte, as a process that is killed does.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gistkit.errors import GistkitError
from gistkit.gist import Gist, Provenance
from gistkit.integrations.config import ConnectorConfig, connector_config
from gistkit.integrations.requests import Load, Save, parse_request
from gistkit.model import GistModel
from gistkit.serving.vllm.handshake import Identity
from gistkit.store import GistStore

LENGTH = 400  # tokens: less than the model could place


Tokens = list[tuple[int, dict[int, float]]]
"""Ids, each with the log-probabilities of all."""


class BreakError(Exception):
    """The connection is to be broken."""


class FakeVllm:
    """One server, in a thread; `kill` it and `start` it again as often as you like.

    Attributes:
        fault: how it misbehaves with completions; "": not at all.
            drop        breaks the connection before it says anything
            halfway     breaks it after a few tokens
            500, 503    these statuses
            event       an error inside a stream that has begun
            silent      says nothing, for ever
            held        says nothing until it has another fault, or none
            foreign     a connector that is not there: gists are ignored, nothing is kept
        pause: seconds between two tokens.
        asked: bodies of completions.
        cancelled: answers that a client did not wait for.
    """

    def __init__(self, model: GistModel, store: Path | str, *, key: str = "") -> None:
        self.model, self.key = model, key
        self.fault, self.pause = "", 0.0
        self.asked: list[dict[str, Any]] = []
        self.cancelled = self.running = self.port = 0
        self.names = [Identity.of(model).name]
        self.sick = False
        self.use_store(store)
        self._lock = threading.Lock()
        self._known: dict[str, Tokens] = {}
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def use_store(self, store: Path | str) -> None:
        config = connector_config(self.model, store)
        self._config = ConnectorConfig.parse(config["kv_connector_extra_config"])
        self._store = GistStore(store)

    def start(self) -> None:
        self._do(self._start())

    def kill(self) -> None:
        """As kill -9: connections break, nobody listens."""
        self._do(self._kill())

    def close(self) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._store.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _kill(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0.02)  # who was let in just now has begun then, and can be ended
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                _, path, _ = head.split(" ", 2)
                fields = dict(
                    line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
                )
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                await self._route(path, fields.get("authorization", ""), body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, BreakError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _route(
        self,
        path: str,
        authorization: str,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if path == "/health":
            await _whole(writer, 503 if self.sick else 200, None)
        elif self.key and authorization != f"bearer {self.key}":
            await _whole(writer, 401, {"error": "Unauthorized"})
        elif path == "/v1/models":
            card = [{"id": name, "max_model_len": LENGTH} for name in ("own", *self.names)]
            await _whole(writer, 200, {"data": card})
        else:
            await self._complete(json.loads(body), reader, writer)

    async def _complete(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert body["stream"] and body["n"] == 1 and body["ignore_eos"]
        if body["model"] not in self.names:
            await _whole(writer, 404, _error(404, "The model does not exist."))
            return
        if len(body["prompt"]) + body["max_tokens"] > LENGTH:
            await _whole(writer, 400, _error(400, "the maximum context length"))
            return
        greeting = "compress" in (body.get("kv_transfer_params") or {})
        self.asked.append(body)
        fault = "" if greeting and self.fault != "foreign" else self.fault
        if fault in ("500", "503"):
            await _whole(writer, int(fault), _error(int(fault), "CUDA error"))
            return
        if fault == "drop":
            raise BreakError
        self.running += 1
        try:
            while fault == self.fault == "held":
                await asyncio.sleep(0.01)
            if fault == "silent":
                await reader.read(1)  # until the client goes away
                raise BreakError
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            count = 0
            if fault == "event":
                await _event(writer, _error(500, "Internal server error"))
            else:
                gone = asyncio.ensure_future(reader.read(1))
                try:
                    async for choice in self._choices(body, foreign=fault == "foreign"):
                        if fault == "halfway" and count == 3:
                            raise BreakError
                        await asyncio.wait({gone}, timeout=self.pause)
                        if gone.done():
                            raise ConnectionError
                        await _event(writer, choice)
                        count += 1
                except ConnectionError:
                    self.cancelled += 1
                    raise BreakError from None
                finally:
                    gone.cancel()
                    await asyncio.gather(gone, return_exceptions=True)
            await _event(writer, "[DONE]")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self.running -= 1

    async def _choices(self, body: dict[str, Any], *, foreign: bool) -> AsyncIterator[Any]:
        try:
            tokens = await asyncio.to_thread(self._tokens, body, foreign)
        except GistkitError:
            yield _error(500, "Internal server error")
            return
        step = body.get("stream_interval", 1)
        starts = range(0, len(tokens), step)
        for start in starts:
            part = tokens[start : start + step]
            finish = "stop" if part[-1][0] in body["stop_token_ids"] else "length"
            choice: dict[str, Any] = {
                "index": 0,
                "text": "not to be looked at",
                "token_ids": [token for token, _ in part],
                "finish_reason": finish if start == starts[-1] else None,
                "logprobs": None,
            }
            if "logprobs" in body:
                assert body["return_tokens_as_token_ids"]
                choice["logprobs"] = {
                    "token_logprobs": [values[token] for token, values in part],
                    "top_logprobs": [
                        _top(token, values, body["logprobs"]) for token, values in part
                    ],
                }
            yield {"choices": [choice]}

    @torch.no_grad()
    def _tokens(self, body: dict[str, Any], foreign: bool) -> Tokens:
        """Ids and all log-probabilities, step by step, as the connector and the model have them."""
        with self._lock:
            prompt = body["prompt"]
            params = None if foreign else body.get("kv_transfer_params")
            action = parse_request(params, prompt, "", self._config, self._store)
            gist = self._store.load(action.id) if isinstance(action, Load) else None
            if isinstance(action, Save):
                self._save(action, prompt)
            same = json.dumps({name: body[name] for name in body if name != "stream_interval"})
            known = self._known.get(same)
            if known is not None:
                return known
            ids = torch.tensor([prompt[gist.num_tokens :] if gist is not None else prompt])
            model = self.model
            rows = model.adapter.begin(ids, torch.ones_like(ids), gist, gist_id=model.gist_id)
            seed = body["seed"]
            chance = torch.Generator().manual_seed(0 if seed is None else seed)
            found: Tokens = []
            while len(found) < body["max_tokens"]:
                logits = rows.logits[0].float()
                if body["temperature"]:
                    shares = (logits / body["temperature"]).softmax(-1)
                    token = int(torch.multinomial(shares, 1, generator=chance))
                else:
                    token = int(logits.argmax())
                found.append((token, dict(enumerate(logits.log_softmax(-1).tolist()))))
                if token in body["stop_token_ids"]:
                    break
                rows.step(torch.tensor([token]))
            self._known[same] = found
            return found

    def _save(self, action: Save, prompt: list[int]) -> None:
        ids = torch.tensor([prompt])
        made = self.model.adapter.compress(ids, torch.ones_like(ids), action.k)
        row = Provenance(action.instruction_sha256, len(action.key.tokens))
        gist = Gist(made, (action.k,), (row,), action.key.model, action.key.template)
        self._store.put(action.key, replace(gist))


def _top(token: int, values: dict[int, float], most: int) -> dict[str, float]:
    """The token itself first, and then the likeliest, as vLLM has it."""
    best = sorted(values, key=lambda one: -values[one])[:most]
    return {f"token_id:{id}": values[id] for id in (token, *best)}


async def _whole(writer: asyncio.StreamWriter, status: int, content: Any) -> None:
    data = b"" if content is None else json.dumps(content).encode()
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()


async def _event(writer: asyncio.StreamWriter, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    data = f"data: {text}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}
