"""An exported gist is used by the other program as it is here, and comes back unchanged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from gistkit.errors import GistFileError, GistMismatchError, OptionError, UnsupportedModelError
from gistkit.export import FORMATS, export, restore
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.decoder import DecoderAdapter
from gistkit.models.families import FAMILIES
from gistkit.models.kv_batch import CACHE
from gistkit.store import GistStore
from gistkit.testing import tiny_gist_model

INSTRUCTION = "Everything costs nine coins. You are Nora and never laugh."
INPUTS = ["a cat", "what does the long boat cost today?"]
NEW = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GistModel:
    folder = tmp_path_factory.mktemp("model")
    tiny_gist_model(num_gist_tokens=[3, 1, 8]).save_pretrained(folder)
    return GistModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def gist(model: GistModel) -> Gist:
    return model.compress(INSTRUCTION)


def base_of(model: GistModel) -> str:
    return str(model.hf_model.config.name_or_path)


def from_cache(model: Any, folder: Path, ids: Tensor) -> list[int]:
    """As docs/export.md says: transformers and safetensors alone."""
    tensors = load_file(folder / "cache.safetensors")
    cache = DynamicCache(
        [
            (tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"])
            for i in range(len(tensors) // 2)
        ]
    )
    output = model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, **{CACHE: cache})
    return [int(id) for id in output[0, ids.shape[1] :]]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_it_comes_back_in_every_bit(format: str, k: int, model: GistModel, tmp_path: Path) -> None:
    gist = model.compress(INSTRUCTION, num_gist_tokens=k)
    export(gist, model, tmp_path / "out", format=format, base="base")
    found = restore(tmp_path / "out")
    assert found.header() == gist.header()
    assert found.tensors.keys() == gist.tensors.keys()
    assert all(torch.equal(found.tensors[name], gist.tensors[name]) for name in gist.tensors)
    assert model.generate(INPUTS, found) == model.generate(INPUTS, gist)


@pytest.mark.parametrize("format", FORMATS)
def test_half_precision_comes_back(format: str, tmp_path: Path) -> None:
    model = tiny_gist_model(num_gist_tokens=[3])
    model.hf_model.bfloat16()
    model.weights_changed()
    gist = model.compress(INSTRUCTION)
    export(gist, model, tmp_path / "out", format=format, base="base")
    found = restore(tmp_path / "out")
    assert found.dtype == torch.bfloat16
    assert all(torch.equal(found.tensors[name], gist.tensors[name]) for name in gist.tensors)


def test_plain_transformers_answers_from_a_cache(
    model: GistModel, gist: Gist, tmp_path: Path
) -> None:
    """Nothing of gistkit is needed: the folder says how the prompt reads."""
    folder = export(gist, model, tmp_path / "out", format="hf-cache", base=base_of(model))
    facts = json.loads((folder / "gist.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(facts["base_model"], dtype=facts["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(facts["base_model"])
    for text in INPUTS:
        prompt = facts["prompt"].replace("{input}", text)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert ids[0].tolist() == [model.gist_id] * 3 + model.encoder.input(text)
        answer = tokenizer.decode(from_cache(plain, folder, ids), skip_special_tokens=True)
        assert [answer] == model.generate(text, gist, max_new_tokens=NEW)
        other = model.compress("Say it backwards.")
        assert [answer] != model.generate(text, other, max_new_tokens=NEW)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_peft_answers_from_an_adapter(model: GistModel, gist: Gist, tmp_path: Path) -> None:
    folder = export(gist, model, tmp_path / "out", format="peft", base=base_of(model))
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), folder)
    tokenizer = AutoTokenizer.from_pretrained(name)
    ids, padding = model.pad([model.encoder.input(text) for text in INPUTS])
    output = adapted.generate(
        input_ids=ids, attention_mask=padding, max_new_tokens=NEW, do_sample=False
    )
    answers = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    assert answers == model.generate(INPUTS, gist, max_new_tokens=NEW)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", [n for n, f in FAMILIES.items() if f.adapter is DecoderAdapter])
def test_every_decoder_family(family: str, tmp_path: Path) -> None:
    windows = {"sliding_window": 16} if family in ("mistral", "gemma2", "gemma3_text") else {}
    model = tiny_gist_model(family, num_gist_tokens=[3], **windows)
    gist = model.compress(INSTRUCTION)
    ids = torch.tensor([model.encoder.input(INPUTS[1])])
    rows = model.adapter.begin(ids, torch.ones_like(ids), gist, gist_id=model.gist_id)
    wanted = []
    for _ in range(NEW):
        token = rows.logits.argmax(-1)
        wanted.append(int(token))
        rows.step(token)

    cached = export(gist, model, tmp_path / "cache", format="hf-cache", base=family)
    whole = torch.cat([torch.full((1, 3), model.gist_id), ids], dim=1)
    assert from_cache(model.hf_model, cached, whole) == wanted

    folder = export(gist, model, tmp_path / "adapter", format="peft", base=family)
    if family == "gpt_neox":  # the tiny one's config has a key that real ones lack
        model.hf_model.config.num_key_value_heads = model.hf_model.config.num_attention_heads
    adapted = PeftModel.from_pretrained(model.hf_model, folder)
    output = adapted.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)
    assert output[0, ids.shape[1] :].tolist() == wanted


def test_what_vllm_is_given(model: GistModel, gist: Gist, tmp_path: Path) -> None:
    """`tests/integrations/test_server.py` starts vLLM on such a folder and sends the request."""
    folder = export(gist, model, tmp_path / "out", format="vllm", base="base")
    start = json.loads((folder / "kv_transfer_config.json").read_text())
    request = json.loads((folder / "request.json").read_text())
    extra = start["kv_connector_extra_config"]
    with GistStore(extra["store"]) as store:
        kept = store.load(request["kv_transfer_params"]["gist"])
    assert extra["models"] == {"": kept.model}
    ids = model.tokenizer(request["prompt"].replace("{input}", "a cat"), add_special_tokens=False)
    assert ids["input_ids"] == [model.gist_id] * 3 + model.encoder.input("a cat")


def test_a_gist_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    model = tiny_gist_model("t5", num_gist_tokens=[2])
    gist = model.compress(INSTRUCTION)
    for format in FORMATS:
        with pytest.raises(UnsupportedModelError, match="T5"):
            export(gist, model, tmp_path / "out", format=format, base="base")
    assert not (tmp_path / "out").exists()


def test_layers_that_differ_have_no_place_in_peft(
    model: GistModel, gist: Gist, tmp_path: Path
) -> None:
    keys = gist.tensors["layers.1.keys"]
    wider = {
        **gist.tensors,
        "layers.1.keys": torch.cat([keys, keys], dim=1),
        "layers.1.values": torch.cat([keys, keys], dim=1),
    }
    other = Gist(wider, gist.lengths, gist.provenance, gist.model, gist.template)
    with pytest.raises(UnsupportedModelError, match="hf-cache"):
        export(other, model, tmp_path / "out", format="peft", base="base")
    export(other, model, tmp_path / "out", format="hf-cache", base="base")


def test_what_cannot_be_exported(model: GistModel, gist: Gist, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="hf-cache"):
        export(gist, model, tmp_path / "out", format="onnx", base="base")
    with pytest.raises(GistMismatchError, match="one by one"):
        export(model.compress(["a", "b"]), model, tmp_path / "out", format="peft", base="base")
    with pytest.raises(GistMismatchError, match="another model"):
        other = tiny_gist_model(seed=1)
        export(gist, other, tmp_path / "out", format="peft", base="base")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(OptionError, match="holds something"):
        export(gist, model, tmp_path / "full", format="peft", base="base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_has_changed_is_refused(
    format: str, model: GistModel, gist: Gist, tmp_path: Path
) -> None:
    folder = export(gist, model, tmp_path / "out", format=format, base="base")
    (file,) = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    if format == "vllm":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.unlink()
        file.write_bytes(data)
    else:
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        next(iter(tensors.values()))[..., -1] += 1
        save_file(tensors, file)
    with pytest.raises(GistFileError):
        restore(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "onnx"},
        {"gist": {"lengths": "x"}},
        {"gist": {}},
        {"id": "../../x"},
        {"schema_version": 2},
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_facts_that_mean_nothing(
    change: dict[str, Any], format: str, model: GistModel, gist: Gist, tmp_path: Path
) -> None:
    folder = export(gist, model, tmp_path / "out", format=format, base="base")
    facts = json.loads((folder / "gist.json").read_text())
    (folder / "gist.json").write_text(json.dumps(facts | change))
    with pytest.raises(GistFileError):
        restore(folder)


def test_files_of_others_are_refused(model: GistModel, gist: Gist, tmp_path: Path) -> None:
    with pytest.raises(GistFileError, match=r"no gist\.json"):
        restore(tmp_path)
    (tmp_path / "gist.json").write_text("[" * 100_000)
    with pytest.raises(GistFileError, match="cannot be read"):
        restore(tmp_path)
    for format, missing in (("peft", "adapter_config.json"), ("hf-cache", "cache.safetensors")):
        folder = export(gist, model, tmp_path / format, format=format, base="base")
        (folder / missing).write_text("[" * 100_000)
        with pytest.raises(GistFileError):
            restore(folder)
        (folder / missing).unlink()
        with pytest.raises(GistFileError):
            restore(folder)
