"""vLLM's own server, started and asked with nothing but the files of `gistkit export`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gistkit import GistModel
from gistkit.export import export, restore
from gistkit.gist import Gist
from gistkit.store import GistStore

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INSTRUCTIONS = ("Say it backwards.", "Everything costs nine coins. You are Nora and never laugh.")
INPUTS = ("a", "hello there, what does the boat cost today?", "boats", "no")
NEW = 24


@dataclass
class Server:
    """A running server, the exported folder and what it knows."""

    address: str
    folder: Path
    model: GistModel
    gist: Gist

    def request(self, text: str, **changes: Any) -> dict[str, Any]:
        """The exported request with an input."""
        request = json.loads((self.folder / "request.json").read_text())
        prompt = request["prompt"].replace("{input}", text)
        return {**request, "prompt": prompt, "max_tokens": NEW, **changes}

    def ask(self, request: dict[str, Any]) -> str:
        with self._post(request) as reply:
            return str(json.load(reply)["choices"][0]["text"])

    def stream(self, request: dict[str, Any]) -> list[str]:
        pieces = []
        with self._post({**request, "stream": True}) as reply:
            for line in reply:
                if line.startswith(b"data: {"):
                    pieces.append(json.loads(line[6:])["choices"][0]["text"])
        return pieces

    def _post(self, request: dict[str, Any]) -> Any:
        return urllib.request.urlopen(
            urllib.request.Request(
                f"{self.address}/v1/completions",
                json.dumps(request).encode(),
                {"Content-Type": "application/json"},
            ),
            timeout=120,
        )


@pytest.fixture(scope="module")
def server(folder: Path, model: GistModel, tmp_path_factory: Any) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("exported")
    gist = model.compress(INSTRUCTIONS[1], num_gist_tokens=5)
    exported = export(gist, model, place / "out", format="vllm", base=str(folder / "model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = place / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(folder / "model"), "--host", "127.0.0.1", "--port", str(port)),
                *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512"),
                *("--block-size", "32", "--gpu-memory-utilization", "0.05"),
                *("--kv-transfer-config", (exported / "kv_transfer_config.json").read_text()),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait(process, address, log)
            yield Server(address, exported, model, gist)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text()[-4000:])


def test_the_exported_request_is_answered_as_generate_does(server: Server) -> None:
    for text in INPUTS:
        wanted = server.model.generate(text, server.gist, max_new_tokens=NEW)
        assert [server.ask(server.request(text))] == wanted
    without = server.request(INPUTS[1], kv_transfer_params=None)
    assert [server.ask(without)] != server.model.generate(
        INPUTS[1], server.gist, max_new_tokens=NEW
    )


def test_streams_of_several_gists_at_once(server: Server) -> None:
    """All pieces, in order, beside each other and beside requests without a gist."""
    with GistStore(server.folder / "store") as store:
        gists = [server.model.compress(name, num_gist_tokens=5) for name in INSTRUCTIONS]
        ids = [store.put(None, gist) for gist in gists]
    cases = [(id, gist, text) for id, gist in zip(ids, gists, strict=True) for text in INPUTS]
    requests = [server.request(text, kv_transfer_params={"gist": id}) for id, _, text in cases] + [
        server.request(INPUTS[1], kv_transfer_params=None)
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        streams = list(pool.map(server.stream, requests))
    for (_, gist, text), pieces in zip(cases, streams, strict=False):
        assert ["".join(pieces)] == server.model.generate(text, gist, max_new_tokens=NEW)
        assert "".join(pieces) == "".join(server.model.stream(text, gist, max_new_tokens=NEW))
        assert len(pieces) > 1
    assert "".join(streams[-1]) not in ["".join(pieces) for pieces in streams[:-1]]


def test_an_unknown_gist_fails_and_the_server_lives(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError):
        server.ask(server.request("a", kv_transfer_params={"gist": "0" * 64}))
    wanted = server.model.generate("a", server.gist, max_new_tokens=NEW)
    assert [server.ask(server.request("a"))] == wanted


def test_the_folder_still_comes_back(server: Server) -> None:
    assert restore(server.folder).header() == server.gist.header()
