"""`gistkit serve` with vLLM: what is printed, and mistakes in one line."""

import asyncio
import json
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gistkit.errors import OptionError, UnavailableError
from gistkit.integrations.config import ConnectorConfig
from gistkit.model import GistModel
from gistkit.serving.vllm import handshake
from gistkit.serving.vllm.client import BrokenError, EndpointError, ServerInfo
from gistkit.serving.vllm.handshake import Identity, discover
from gistkit.serving.vllm.tokenizer_model import tokenizer_model
from gistkit.store import GistKey
from gistkit.testing import tiny_gist_model
from tests.cli.console import Run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vllm-args", "--x"], "for --engine vllm; give that too"),
        (["--print-command"], "for --engine vllm; give that too"),
        (["--compressor", "transformers"], "for --engine vllm; give that too"),
        (["--endpoint", "http://a:1", "--vllm-args", "--x"], "leave out --endpoint"),
        (["--endpoint", "http://a:1", "--print-command"], "leave out --endpoint"),
        (["--engine", "vllm", "--kv-limit", "9"], "--kv-limit is for the transformers engine"),
        (["--engine", "vllm", "--vllm-args", "'"], "--vllm-args cannot be read"),
        (["--engine", "vllm", "--vllm-args", "--model x"], "leave --model out of --vllm-args"),
        (["--engine", "vllm", "--vllm-args", "--ssl-keyfile x"], "leave --ssl-... out"),
        (["--engine", "vllm", "--max-rows", "0"], "--max-rows must be at least 1"),
        (["--engine", "vllm", "--device", "cpu"], "--device is for --compressor transformers"),
        (["--endpoint", "http://a:1", "--max-length", "0"], "--max-length must be at least 1"),
        (
            ["--endpoint", "http://a:1", "--precision", "bf16"],
            "--precision is chosen where",
        ),
        (["--engine", "transformers", "--endpoint", "http://a:1"], "does not go with --endpoint"),
        (["--store-bytes", "0"], "--store-bytes must be at least 1"),
        (["--engine", "llama.cpp"], "is not one of 'transformers', 'vllm'"),
        (["--endpoint", "a:1"], "must be like http://HOST:PORT"),
        (["--endpoint", "http://a:1/v2"], "must be like http://HOST:PORT"),
        (["--endpoint", "http://a:1/#b"], "must be like http://HOST:PORT"),
        (["--endpoint", "http://me:secret@a:1"], "must be like http://HOST:PORT"),
        (["--endpoint", "http://a:99999"], "must be like http://HOST:PORT"),
    ],
)
def test_options_that_mean_nothing(
    arguments: list[str], message: str, run: Run, decoder: Path, tmp_path: Path
) -> None:
    place = ["--store", str(tmp_path / "store"), "--port", "0"]
    assert message in run("serve", decoder, *place, *arguments).error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vllm-args", "'"], "--vllm-args cannot be read"),
        (["--vllm-args", "--port 9000"], "leave --port out of --vllm-args"),
        (["--vllm-args", "--served_model_name=x"], "gistkit sets it; use --name"),
        (["--vllm-args", "--kv-transfer-config.kv_role both"], "leave --kv-transfer-config out"),
        (["--vllm-args", "--api-key x"], "VLLM_API_KEY in the environment"),
        (["--store", ""], "--store is empty"),
        (["--port", "99999"], "--port must be between 0 and 65535"),
        (["--port", "0"], "give the port to listen on"),
        (["--host", ""], "--host is empty"),
        (["--max-rows", "4"], "--max-rows is an option of the gateway"),
        (["--api-keys", "keys.json"], "--api-keys is an option of the gateway"),
        (["--compressor", "vllm"], "--compressor is an option of the gateway"),
        (["--device", "cpu"], "--device is an option of the gateway"),
    ],
)
def test_what_a_printed_command_cannot_hold(
    arguments: list[str], message: str, run: Run, decoder: Path, tmp_path: Path
) -> None:
    place = ["--store", str(tmp_path / "store"), "--engine", "vllm", "--print-command"]
    assert message in run("serve", decoder, *place, *arguments).error


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_extra_is_named(run: Run, decoder: Path, tmp_path: Path) -> None:
    place = ["--store", str(tmp_path / "store"), "--port", "0"]
    error = run("serve", decoder, *place, "--engine", "vllm").error
    assert error == "vllm is not installed: pip install 'gistkit[vllm]'"


def test_models_that_vllm_cannot_serve(run: Run, encoder_decoder: Path, tmp_path: Path) -> None:
    ask = ["--engine", "vllm", "--print-command", "--store", str(tmp_path / "store")]
    assert "not of encoder-decoders" in run("serve", encoder_decoder, *ask).error
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    assert "is a LoRA adapter, and vLLM needs a whole model" in run("serve", adapter, *ask).error


def test_the_command_for_a_server_elsewhere(run: Run, decoder: Path, tmp_path: Path) -> None:
    ended = run(
        *("serve", decoder, "--engine", "vllm", "--print-command", "--name", "mine"),
        *("--host", "0.0.0.0", "--port", "8001", "--store", tmp_path / "my store"),
        *("--precision", "bf16", "--store-bytes", "9000"),
        *("--vllm-args", "--tensor-parallel-size 2"),
    )
    assert ended.status == 0
    python, minus_m, module, *options = shlex.split(ended.out)
    assert (python, minus_m, module) == ("python", "-m", "vllm.entrypoints.openai.api_server")
    model = GistModel.from_pretrained(decoder, dtype="bf16")
    told = " ".join(options)
    assert f"--served-model-name mine {Identity.of(model).name} " in told
    assert "--host 0.0.0.0 --port 8001 --dtype bfloat16" in told
    assert told.startswith("--tensor-parallel-size 2 --model ")  # what is ours has the last word
    config = json.loads(options[options.index("--kv-transfer-config") + 1])
    served = ConnectorConfig.parse(config["kv_connector_extra_config"])
    assert served.models[""] == model.fingerprint
    assert served.store == str(tmp_path / "my store")
    assert served.max_bytes == 9000


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_a_model_without_weights_is_the_same_model(family: str, tmp_path: Path) -> None:
    """Weights tied or not; and another one where a word means another token, or k is another."""
    folder = tmp_path / "model"
    tiny_gist_model(family).save_pretrained(folder)
    model = GistModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    ours = Identity.of(model)

    def found() -> Identity:
        return Identity.of(tokenizer_model(str(folder), model.fingerprint))

    assert found() == ours and Identity.among(["mine", ours.name]) == ours

    def swapped(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    def retrained(content: dict[str, Any]) -> None:
        content["num_gist_tokens"] = [3]

    for name, change in (("tokenizer.json", swapped), ("gist_config.json", retrained)):
        before = (folder / name).read_text()
        content = json.loads(before)
        change(content)
        (folder / name).write_text(json.dumps(content))
        assert found() != ours
        (folder / name).write_text(before)
    assert found() == ours


def test_a_model_without_weights_makes_the_same_prompts(decoder: Path, tmp_path: Path) -> None:
    model = GistModel.from_pretrained(decoder)
    light = tmp_path / "light"
    shutil.copytree(decoder, light, ignore=shutil.ignore_patterns("*.safetensors"))
    found = tokenizer_model(str(light), model.fingerprint)
    for k in (2, 4):
        assert GistKey.of(found, "Be brief.", k) == GistKey.of(model, "Be brief.", k)
    assert found.encoder.input("abc") == model.encoder.input("abc")
    assert found.config == model.config
    assert found.adapter.max_positions == model.adapter.max_positions
    with pytest.raises(OptionError, match="trained for 2, 4"):
        found.check_k(3)


@pytest.mark.parametrize("key", ["schlüssel", "bad\nkey", "open sesame"])
def test_a_key_that_is_none_is_not_told(
    key: str, run: Run, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GISTKIT_ENDPOINT_KEY", key)
    place = ["--store", str(tmp_path / "store"), "--port", "0"]
    error = run("serve", decoder, *place, "--endpoint", "http://127.0.0.1:1").error
    assert error == "GISTKIT_ENDPOINT_KEY must be plain ASCII without blanks or line ends"


Told = dict[str, ServerInfo | Exception]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What endpoints say of themselves, by their URL."""
    answers: Told = {}

    class Endpoint:
        def __init__(self, url: str, client: object) -> None:
            self._url = url

        async def info(self) -> ServerInfo:
            answer = answers[self._url]
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(handshake, "Endpoint", Endpoint)
    return answers


def test_the_weights_are_what_endpoints_say(told: Told) -> None:
    one, other = Identity("a" * 64, "c" * 64), Identity("b" * 64, "c" * 64)
    told |= {"one": BrokenError("gone"), "two": ServerInfo([one.name], 9)}
    told["three"] = ServerInfo(["x", one.name], 9)
    assert asyncio.run(discover(list(told), None)) == one
    told["three"] = ServerInfo([other.name], 9)
    with pytest.raises(OptionError, match="different models"):
        asyncio.run(discover(list(told), None))


def test_endpoints_that_cannot_be_used(told: Told) -> None:
    told |= {"one": EndpointError("status 401"), "two": ServerInfo(["x"], 9)}
    with pytest.raises(UnavailableError, match=r"one: status 401; two: .*--print-command"):
        asyncio.run(discover(list(told), None))
    told |= {"one": BrokenError("refused"), "two": TimeoutError()}
    with pytest.raises(UnavailableError, match="one: refused; two: no answer in time"):
        asyncio.run(discover(list(told), None, patience=0))
