"""`gistkit serve` in front of real vLLM servers, as clients see it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gistkit import GistModel
from gistkit.integrations.server import MODULE
from gistkit.serving.vllm.process import free_port
from tests.integrations.engines import KS, random_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INSTRUCTIONS = ("Say it backwards.", "Everything costs nine coins. You are Nora and never laugh.")
INPUTS = ("a", "hello there, what does the boat cost today?")
ARGS = "--enforce-eager --max-model-len 512 --gpu-memory-utilization 0.05 --block-size 32"
START = 420  # seconds, on two cores that others use, too
TOKENS = 24
LONG = 400  # tokens: time enough to kill a server in their midst
USER = [{"role": "user", "content": "a"}]
ENVIRONMENT = {
    **{
        name: value
        for name, value in os.environ.items()
        if name not in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")
    },
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def model(folder: Path) -> GistModel:
    return random_model(folder / "model")


@dataclass
class Gateway:
    """A running `gistkit serve`."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path
    client: openai.OpenAI

    def number(self, what: str) -> float:
        page = httpx2.get(f"{self.url}/metrics", trust_env=False).text
        (line,) = [x for x in page.splitlines() if x.startswith(f'gistkit_engine{{what="{what}"}}')]
        return float(line.split()[-1])


def until(what: Any, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it takes too long"
        time.sleep(0.1)


@contextmanager
def gateway(folder: Path, *options: str) -> Iterator[Gateway]:
    """`gistkit serve` over the model and the store in a folder."""
    log, port = folder / f"gateway-{time.monotonic_ns()}.log", free_port()
    place = ["--store", str(folder / "store"), "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gistkit", "serve", str(folder / "model"), *place, *options],
            stderr=file,
            env=ENVIRONMENT,
            text=True,
        )
    try:
        until(lambda: "listening" in log.read_text() or process.poll() is not None, START)
        assert process.poll() is None, log.read_text()[-4000:]
        url = f"http://127.0.0.1:{port}"
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:
            yield Gateway(process, url, log, client)
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def alone(folder: Path, model: GistModel) -> Iterator[Gateway]:
    """One machine: vLLM as a child."""
    with gateway(folder, "--engine", "vllm", "--vllm-args", ARGS) as found:
        yield found


def asked(instruction: str, text: str, **more: Any) -> dict[str, Any]:
    """What to ask the client for."""
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
    return {"model": "model", "messages": messages, "max_tokens": TOKENS, **more}


def test_chat_answers_as_generate_does(alone: Gateway, model: GistModel) -> None:
    client = alone.client
    for k in KS:
        for instruction in INSTRUCTIONS:
            gist = model.compress(instruction, num_gist_tokens=k)
            for text in INPUTS:
                (wanted,) = model.generate(text, gist, max_new_tokens=TOKENS)
                extra = {"gist_tokens": k}
                found = client.chat.completions.create(**asked(instruction, text), extra_body=extra)
                assert found.choices[0].message.content == wanted
                assert found.model_extra["gist"]["status"] == "used"
                usage = found.usage
                assert usage.prompt_tokens_details.cached_tokens == k
                assert usage.prompt_tokens == k + len(model.encoder.input(text))
                assert usage.model_extra["replaced_tokens"] == gist.provenance[0].instruction_tokens
                stream = client.chat.completions.create(
                    **asked(instruction, text), extra_body=extra, stream=True
                )
                pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
                assert "".join(pieces) == wanted
                assert len(pieces) > 2  # the role, and more than one part


def test_a_refused_gist_is_answered_from_the_full_prompt(alone: Gateway, model: GistModel) -> None:
    for extra in ({"gist": "off"}, {"gist_tokens": 7}, {"gist": "0" * 64}):
        found = alone.client.chat.completions.create(
            **asked(INSTRUCTIONS[1], INPUTS[1]), extra_body=extra
        )
        (wanted,) = model.generate(INPUTS[1], instructions=INSTRUCTIONS[1], max_new_tokens=TOKENS)
        assert found.choices[0].message.content == wanted
        assert found.model_extra["gist"]["status"] in ("off", "refused")
        assert found.usage.model_extra["replaced_tokens"] == 0


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"extra_body": {"prompt_logprobs": 1}}, 400, "invalid_value"),
        ({"max_tokens": 600}, 400, "invalid_value"),
        ({"messages": USER, "extra_body": {"gist": "0" * 64}}, 404, "gist_not_found"),
        ({"model": "other"}, 404, "model_not_found"),
    ],
)  # fmt: skip
def test_clients_are_told_what_is_wrong(
    more: dict[str, Any], status: int, code: str, alone: Gateway
) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        alone.client.chat.completions.create(**(asked(INSTRUCTIONS[0], "a") | more))
    assert (error.value.status_code, error.value.code) == (status, code)


def test_n_stop_seed_and_logprobs(alone: Gateway, model: GistModel) -> None:
    client = alone.client
    gist = model.compress(INSTRUCTIONS[1])
    (wanted,) = model.generate(INPUTS[1], gist, max_new_tokens=TOKENS)
    found = client.chat.completions.create(
        **asked(INSTRUCTIONS[1], INPUTS[1], n=2, stop=wanted[9:11], logprobs=True, top_logprobs=2)
    )
    assert [choice.message.content for choice in found.choices] == [wanted[:9].strip()] * 2
    assert {choice.finish_reason for choice in found.choices} == {"stop"}
    tokens = found.choices[0].logprobs.content
    assert "".join(one.token for one in tokens).startswith(wanted[:9])
    assert all(one.top_logprobs[0].logprob == one.logprob for one in tokens)
    drawn = asked(INSTRUCTIONS[1], INPUTS[1], n=2, temperature=1.0, seed=7)
    both = [client.chat.completions.create(**drawn) for _ in range(2)]
    first, second = ([c.message.content for c in one.choices] for one in both)
    assert first == second and first[0] != first[1]


def test_why_a_gist_was_not_kept_is_in_the_log(alone: Gateway, model: GistModel) -> None:
    """And the answer is the full prompt's."""
    new = Path(alone.log).parent / "store" / "new"
    new.rename(new.with_suffix(".gone"))
    try:
        instruction = "Nobody keeps this."
        found = alone.client.chat.completions.create(**asked(instruction, "a"))
        (wanted,) = model.generate("a", instructions=instruction, max_new_tokens=TOKENS)
        assert found.choices[0].message.content == wanted
        gist = found.model_extra["gist"]
        assert gist["status"] == "refused" and "its log says why" in gist["reason"]
        until(lambda: "cannot be stored: could not write to the store" in alone.log.read_text(), 10)
    finally:
        new.with_suffix(".gone").rename(new)


def test_a_client_that_leaves_ends_its_answer_in_vllm(alone: Gateway) -> None:
    before = alone.number("tokens")
    long = asked(INSTRUCTIONS[0], "a", max_tokens=400, n=16, temperature=1.0)
    stream = alone.client.chat.completions.create(**long, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: alone.number("running") == 0, 10)
    assert 0 < alone.number("tokens") - before < 16 * 400


class Server:
    """A vLLM server started with the command that `--print-command` prints."""

    def __init__(self, folder: Path, port: int, command: list[str], core: int) -> None:
        # each its own: else one may wait for the other, and have begun nothing when it is killed
        self.environment = ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": str(core)}
        self.command = [sys.executable, *command[1:]]
        self.log, self.url = folder / f"{port}.log", f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                self.command,
                stdout=file,
                stderr=file,
                env=self.environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def pair(folder: Path, model: GistModel) -> Iterator[list[Server]]:
    """Two servers; the first one's store is used by both."""
    found = []
    for core, port in enumerate((free_port(), free_port())):
        options = ["--engine", "vllm", "--vllm-args", ARGS, "--print-command"]
        place = ["--store", str(folder / "store"), "--port", str(port)]
        command = subprocess.run(
            [sys.executable, "-m", "gistkit", "serve", str(folder / "model"), *place, *options],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", MODULE]
        found.append(Server(folder, port, words, core))
    try:
        yield found
    finally:
        for server in found:
            server.kill()


def test_one_of_two_is_killed_under_load_and_comes_back(
    folder: Path, model: GistModel, pair: list[Server]
) -> None:
    """No wrong answer, nothing lost that had not begun, clear errors for the rest."""
    names = [f"Everything costs {n} coins. You are Nora." for n in range(5)]
    wanted = {
        name: model.generate("a boat please", model.compress(name), max_new_tokens=LONG)[0]
        for name in names
    }
    until(lambda: all(_well(server.url) for server in pair), START)
    victim = pair[0]
    with gateway(folder, "--endpoint", pair[0].url, "--endpoint", pair[1].url) as found:
        assert found.number("endpoints_up") == 2
        begun, broken, right = set[int](), set[int](), set[int]()
        lock = threading.Lock()

        def one(number: int) -> None:
            name, streamed = names[number % len(names)], number % 2 == 1
            question = asked(name, "a boat please", max_tokens=LONG)
            text = ""
            try:
                if not streamed:
                    answer = found.client.chat.completions.create(**question)
                    text = answer.choices[0].message.content
                else:
                    for chunk in found.client.chat.completions.create(**question, stream=True):
                        text += (chunk.choices and chunk.choices[0].delta.content) or ""
                        if text:
                            begun.add(number)
            except openai.APIError as error:
                assert "failed in the middle of this answer; try again" in str(error)
                assert streamed and number in begun and wanted[name].startswith(text)
                with lock:
                    broken.add(number)
            else:
                assert text == wanted[name]
                with lock:
                    right.add(number)

        with ThreadPoolExecutor(24) as pool:
            tasks = [pool.submit(one, number) for number in range(72)]
            until(lambda: len(begun - right) > 6, 120)
            victim.kill()
            for task in tasks:
                task.result()
        assert broken and broken <= begun
        assert len(right) + len(broken) == 72
        assert found.number("endpoints_up") == 1
        victim.start()
        until(lambda: found.number("endpoints_up") == 2, START)
        before = _counted(victim.url, "vllm:request_success_total")
        begun.clear()
        # The other one has all gists at hand and so gets the first eight or nine: enough for both.
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(one, range(100, 148)))
        assert _counted(victim.url, "vllm:request_success_total") - before > 5
        events = [json.loads(line) for line in found.log.read_text().splitlines()]
        states = [e["event"] for e in events if e.get("url") == victim.url]
        assert states.index("a server is down") < len(states) - 1 - states[::-1].index(
            "a server is up"
        )


def _counted(url: str, what: str) -> float:
    page = httpx2.get(f"{url}/metrics", trust_env=False).text
    return sum(float(x.split()[-1]) for x in page.splitlines() if x.startswith(what))


def _well(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
