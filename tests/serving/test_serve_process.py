"""`gistkit serve`, started, asked, and told to leave."""

import json
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving.serve_process import command, refused, serving

SHOP = {"role": "system", "content": "Everything costs nine coins. You are Nora."}
ORDER = {"role": "user", "content": "Tom wants a cake"}
ANSWER = "Tom, one cake, nine coins, Nora"


def test_it_answers_and_leaves_when_it_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, "--log-prompts") as server:
        assert server.url.startswith("http://127.0.0.1:")
        with server.client() as client:
            found = client.chat.completions.create(model="toy", messages=[SHOP, ORDER])
            assert found.choices[0].message.content == ANSWER
            assert found.gist["status"] == "used"
            assert found.usage.prompt_tokens_details.cached_tokens == found.gist["k"]
        assert server.leave() == 0
    (line,) = server.events("request")
    assert line["prompt"]["inputs"] == [[["user", ORDER["content"]]]]
    assert server.events("leaving")[0]["unfinished"] == 0
    assert server.events("ended")
    # the next one finds the gist
    with serving(tmp_path) as server, server.client() as client:
        again = client.chat.completions.create(model="toy", messages=[SHOP, ORDER])
        assert again.gist["id"] == found.gist["id"]
        stats = httpx.get(f"{server.url}/metrics").text
        assert 'gistkit_store{what="compressed"} 1.0' in stats  # by both together
        assert server.leave(signal.SIGINT) == 0
    assert "Nora" not in "".join(server.lines)  # nobody asked for prompts in the log


def test_answers_under_way_end_before_it_leaves(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-rows", 2) as server:
        found: list[Any] = []
        begun = threading.Barrier(7)

        def ask(number: int) -> None:
            with server.client() as client:
                stream = client.completions.create(
                    model="toy", prompt=f"Tom {number}", max_tokens=100, stream=True
                )
                pieces = [next(iter(stream))] if number < 2 else []
                begun.wait(60)
                pieces += list(stream)
                found.append(pieces[-1].choices[0].finish_reason)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        begun.wait(60)
        assert server.leave() == 0
        for thread in threads:
            thread.join(60)
        assert len(found) == 6 and set(found) <= {"stop", "length"}
    assert [one["status"] for one in server.events("request")] == [200] * 6


def test_keys_from_a_file(tmp_path: Path) -> None:

    keys = tmp_path / "keys.json"
    made = subprocess.run(
        command("--api-keys", keys, "--new-key", "shop", "--scope", "chat"),
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0 and "shown once" in made.stderr
    key = made.stdout.strip()
    with serving(tmp_path, "--api-keys", keys, "--name", "shop/model") as server:
        with server.client() as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with server.client(key) as client:
            assert client.models.list().data[0].id == "shop/model"
            assert client.models.retrieve("shop/model").id == "shop/model"
            with pytest.raises(openai.PermissionDeniedError):
                client.get("/gists", cast_to=object)
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert server.leave() == 0
    assert key not in "".join(server.lines)
    assert {one["client"] for one in server.events("request")} == {"127.0.0.1", "shop"}


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in refused(
            "--port", port
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "-1"], "--port must be between 0 and 65535, not -1"),
        (["--port", "70000"], "--port must be between 0 and 65535, not 70000"),
        (["--port", "x"], "'--port'"),
        (["--host", ""], "--host is empty"),
        (["--host", "a..b"], "cannot listen on a..b"),
        (["--host", "203.0.113.7"], "Cannot assign requested address"),
        (["--timeout", "0"], "--timeout must be more than 0 seconds, not 0"),
        (["--timeout", "nan"], "--timeout must be more than 0 seconds"),
        (["--drain-seconds", "-1"], "--drain-seconds must be 0 or more"),
        (["--max-body", "0"], "--max-body must be at least 1 byte"),
        (["--min-fidelity", "2"], "--min-fidelity must be between 0 and 1"),
        (["--max-rows", "0", "--port", "0"], "--max-rows must be at least 1"),
        (["--max-waiting", "0", "--port", "0"], "--max-waiting must be at least 1"),
        (["--max-length", "0", "--port", "0"], "--max-length must be at least 1"),
        (["--kv-limit", "-5", "--port", "0"], "--kv-limit must be at least 1"),
        (["--store-bytes", "-1", "--port", "0"], "--store-bytes must be at least 1"),
        (["--store", "/dev/null/x", "--port", "0"], "/dev/null"),
        (["--store", "what://x", "--port", "0"], "what://x"),
        (["--api-keys", "nowhere.json"], "no key file at nowhere.json"),
        (["--new-key", "a"], "--new-key needs --api-keys"),
        (["--scope", "chat"], "--scope is for --new-key"),
        (["nowhere", "--port", "0"], "nowhere"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from gistkit.cli import main

    monkeypatch.setenv("GISTKIT_STORE", str(tmp_path / "store"))
    assert main(["serve", *arguments]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("gistkit: error: ") and message in line


def test_lines_of_the_log_are_json(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        httpx.get(f"{server.url}/nothing")
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as sent:
            sent.sendall(b"nonsense\r\n\r\n")
            assert sent.recv(100).startswith(b"HTTP/1.1 400")
        assert server.leave() == 0
    assert json.loads(server.lines[0])["event"] == "listening"
    assert len(server.events("request")) == 1
