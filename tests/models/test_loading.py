"""Reading, teaching and writing models: published layouts, padded vocabularies, damaged folders."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gistkit import GistModel
from gistkit.errors import (
    ModelNotFoundError,
    NotAGistModelError,
    OptionError,
    SaveError,
    UnsupportedModelError,
)
from gistkit.models import loading
from gistkit.models.loading import load_tokenizer, parse_dtype
from gistkit.testing import EOS, VOCABULARY, byte_tokenizer, tiny_gist_model, tiny_model

FAMILIES = ["llama", "gemma", "t5"]  # untied, tied, encoder-decoder


def plain(family: str, **changes: Any) -> tuple[Any, Any]:
    return tiny_model(family, **changes), byte_tokenizer(closing=family == "t5")


def tables(model: Any) -> list[torch.Tensor]:
    """The input and output embeddings."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer.weight.detach().clone() for layer in layers]


# teaching a plain model


def test_a_head_of_its_own_stays_so_where_the_config_says_otherwise(tmp_path: Path) -> None:
    """flan-t5's case: transformers reads its config as tied, and its weights as they are."""
    model, tokenizer = plain("t5", vocab_size=VOCABULARY)
    own = model.lm_head.weight.detach() * 0.5 + 0.01
    model.lm_head.weight = torch.nn.Parameter(own)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    taught = GistModel.from_base(tmp_path).hf_model
    assert len(taught.lm_head.weight) == VOCABULARY + 1
    torch.testing.assert_close(taught.lm_head.weight[:-1], own)
    assert taught.encoder.embed_tokens.weight is taught.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 1, VOCABULARY + 40])
def test_the_new_rows_are_the_mean_of_those_in_use(family: str, rows: int) -> None:
    model, tokenizer = plain(family, vocab_size=rows)
    before = tables(model)
    gist = GistModel.from_base(model, tokenizer)
    assert gist.gist_id == VOCABULARY
    assert model.config.vocab_size == max(rows, VOCABULARY + 1)  # a padded vocabulary stays
    for old, new in zip(before, tables(model), strict=True):
        assert len(new) == max(rows, VOCABULARY + 1)
        torch.testing.assert_close(new[VOCABULARY], old[:VOCABULARY].mean(0))
        assert torch.equal(new[:VOCABULARY], old[:VOCABULARY])
        assert torch.equal(new[VOCABULARY + 1 :], old[VOCABULARY + 1 :])


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gemma", True), ("t5", True)])
def test_what_was_tied_stays_tied(family: str, tied: bool) -> None:
    model, tokenizer = plain(family, vocab_size=VOCABULARY)
    GistModel.from_base(model, tokenizer)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inputs is outputs) == tied
    if family == "t5":
        assert model.encoder.embed_tokens.weight is inputs
        assert model.decoder.embed_tokens.weight is inputs


def test_half_precision_means_are_computed_in_full() -> None:
    model, tokenizer = plain("llama")
    exact = tables(model.to(torch.bfloat16))[0][:VOCABULARY].float().mean(0).bfloat16()
    GistModel.from_base(model, tokenizer)
    assert torch.equal(tables(model)[0][VOCABULARY], exact)


def test_a_model_that_knows_the_token_is_left_as_it_is() -> None:
    first = tiny_gist_model()
    with torch.no_grad():
        first.hf_model.get_input_embeddings().weight[first.gist_id] = 7
    again = GistModel.from_base(first.hf_model, first.tokenizer, num_gist_tokens=5)
    assert tables(again.hf_model)[0][again.gist_id].unique().tolist() == [7]
    assert again.config.num_gist_tokens == (5,)


def test_one_tokenizer_for_two_models() -> None:
    """The second model has no row for the token that the first one's tokenizer got."""
    tokenizer = byte_tokenizer()
    GistModel.from_base(tiny_model("llama", vocab_size=VOCABULARY), tokenizer)
    model = tiny_model("llama", vocab_size=VOCABULARY, seed=1)
    before = tables(model)
    second = GistModel.from_base(model, tokenizer)
    for old, new in zip(before, tables(model), strict=True):
        torch.testing.assert_close(new[second.gist_id], old[:VOCABULARY].mean(0))
    second.generate("x", second.compress("Greet."), max_new_tokens=1)


def test_a_missing_pad_token_is_eos_as_published() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    model = GistModel.from_base(tiny_model("llama"), tokenizer)
    assert model.tokenizer.pad_token_id == EOS
    gists = model.compress(["Greet.", "A longer one."])
    alone = model.generate("hm", gists[0], max_new_tokens=5)
    assert model.generate(["hm", "x y z"], gists, max_new_tokens=5)[:1] == alone


def test_from_base_on_a_folder(tmp_path: Path) -> None:
    model, tokenizer = plain("llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    gist = GistModel.from_base(tmp_path, num_gist_tokens=(2, 3), dtype="bf16")
    assert gist.config.base_model == str(tmp_path)
    assert gist.hf_model.dtype == torch.bfloat16
    assert gist.compress("Greet.").dtype == torch.bfloat16


# saving and loading


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_the_same_model(family: str, tmp_path: Path) -> None:
    model = tiny_gist_model(family, num_gist_tokens=(2, 1))
    gist = model.compress(["Greet.", "A longer one."])
    loaded = GistModel.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    assert loaded.gist_id == model.gist_id
    expected = model.generate(["a", "b c"], gist, max_new_tokens=8)
    assert loaded.generate(["a", "b c"], gist, max_new_tokens=8) == expected
    again = loaded.compress(["Greet.", "A longer one."])
    assert all(torch.equal(t, gist.tensors[name]) for name, t in again.tensors.items())


def test_a_saved_chat_model_keeps_its_template(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}|{{ messages[1]['content'] }}|"
    model = GistModel.from_base(tiny_model("llama"), tokenizer, template="chat")
    loaded = GistModel.from_pretrained(model.save_pretrained(tmp_path))
    assert loaded.config.template == "chat"
    assert loaded.encoder.prompt("Greet.", "Ann", 1) == model.encoder.prompt("Greet.", "Ann", 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"])
def test_precision_is_chosen_when_loading(dtype: str, tmp_path: Path) -> None:
    path = tiny_gist_model().save_pretrained(tmp_path)
    loaded = GistModel.from_pretrained(path, dtype=dtype)
    assert loaded.hf_model.dtype == parse_dtype(dtype)
    loaded.generate("x", loaded.compress("Greet."), max_new_tokens=2)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown precision 'int8'; choose one of float32, bfl"):
        GistModel.from_pretrained(tmp_path, dtype="int8")


def test_what_a_folder_holds(tmp_path: Path) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "gist_config.json").read_text())
    assert config["num_gist_tokens"] == [1, 2, 4]
    card = (tmp_path / "README.md").read_text()
    assert "| gist tokens (k) | 1, 2, 4 |" in card
    assert card.startswith("---\nlibrary_name: gistkit\n")
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_saving_over_a_saved_model(tmp_path: Path) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    other = tiny_gist_model(seed=1)
    other.save_pretrained(tmp_path)
    assert GistModel.from_pretrained(tmp_path).fingerprint == other.fingerprint
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny_gist_model()
    old.save_pretrained(tmp_path / "model")
    other = tiny_gist_model(seed=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(other.tokenizer, "save_pretrained", full)  # the weights are written by then
    with pytest.raises(SaveError, match=r"could not write .*/model: No space left on device; free"):
        other.save_pretrained(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert GistModel.from_pretrained(tmp_path / "model").fingerprint == old.fingerprint


# published checkpoints: `<GIST>` is the last of 32001 or 32101 rows, and no gist_config.json


def published(shared: Path, folder: Path, layout: str) -> Path:
    """A tiny model saved as the published trainer saved its own."""
    family, name = {
        "llama": ("llama", "llama_toy_gist"),
        "t5": ("t5", "t5_toy_gist"),
    }[layout]
    shutil.copytree(shared / "golden/tokenizers" / name, folder)
    rows = load_tokenizer(str(folder)).convert_tokens_to_ids("<GIST>") + 1
    tiny_model(family, vocab_size=rows).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def ids(model: GistModel) -> list[Sequence[int]]:
    texts = [("Greet.", "Ann"), ("Greet  twice.", ""), ("Say:\nhi", "two\nlines")]
    return [model.encoder.prompt(i, x, k) for i, x in texts for k in (1, 3)]


@pytest.mark.parametrize("layout", ["llama", "t5"])
def test_a_published_checkpoint_loads(shared: Path, tmp_path: Path, layout: str) -> None:
    model = GistModel.from_pretrained(published(shared, tmp_path / "model", layout))
    assert model.gist_id == model.hf_model.config.vocab_size - 1
    assert model.config.num_gist_tokens == ()  # it does not say, so any k is allowed
    assert model.config.template == {"llama": "decoder", "t5": "encoder-decoder"}[layout]
    for k in (1, 7):
        gist = model.compress("Greet.", num_gist_tokens=k)
        assert gist.num_tokens == k
        assert len(model.generate(["Ann", ""], gist, max_new_tokens=4)) == 2


@pytest.mark.parametrize("layout", ["llama", "t5"])
def test_a_published_checkpoint_saved_again_reads_alike(
    shared: Path, tmp_path: Path, layout: str
) -> None:
    model = GistModel.from_pretrained(published(shared, tmp_path / "model", layout))
    for number in range(2):
        saved = model.save_pretrained(tmp_path / f"again-{number}")
        loaded = GistModel.from_pretrained(saved)
        assert ids(loaded) == ids(model)
        assert loaded.fingerprint == model.fingerprint
        model = loaded


@pytest.mark.parametrize("name", ["llama_toy_base", "t5_toy_base"])
def test_published_base_tokenizers_learn_the_token_as_published(shared: Path, name: str) -> None:
    """The tokenizers before and after the published trainer added `<GIST>` give the same ids."""
    family = "llama" if name.startswith("llama") else "t5"
    taught = load_tokenizer(str(shared / "golden/tokenizers" / name))
    rows = len(taught)
    ours = GistModel.from_base(tiny_model(family, vocab_size=rows), taught)
    known = load_tokenizer(str(shared / "golden/tokenizers" / name.replace("base", "gist")))
    theirs = GistModel.from_base(tiny_model(family, vocab_size=rows + 1), known)
    assert ours.gist_id == theirs.gist_id == rows
    assert ids(ours) == ids(theirs)


# what cannot be loaded


def test_no_such_folder_or_id(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", "nobody/nothing", "no such/model/at all"):
        with pytest.raises(ModelNotFoundError, match="no such folder, and no such model on"):
            GistModel.from_pretrained(path)
        with pytest.raises(ModelNotFoundError):
            GistModel.from_base(path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot load a model from"):
        GistModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage"])
def test_a_damaged_folder_is_one_line(tmp_path: Path, name: str, damage: str) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        left = {"empty": b"", "truncated": data[: len(data) // 2], "garbage": b"\xff{]" * 99}
        path.write_bytes(left[damage])
    with pytest.raises((ModelNotFoundError, NotAGistModelError)) as error:
        GistModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(ModelNotFoundError, match=r"its weights do not fit its config.json"):
        GistModel.from_pretrained(tmp_path)


def test_a_config_of_the_wrong_kind(tmp_path: Path) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    with pytest.raises(ModelNotFoundError, match=r"'hidden_size' expected int, got str"):
        GistModel.from_pretrained(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelNotFoundError, match="it has no tokenizer, or a damaged one; give"):
        GistModel.from_pretrained(tmp_path)


def test_a_pickle_that_is_none(tmp_path: Path) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for junk in (b"junk", b"", b"\x80\x04junk", b"PK\x03\x04"):
        (tmp_path / "pytorch_model.bin").write_bytes(junk)
        with pytest.raises(ModelNotFoundError, match="cannot load a model from"):
            GistModel.from_pretrained(tmp_path)


def test_code_of_a_checkpoint_is_not_run_nor_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_gist_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **own}))
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelNotFoundError, match="code of its own, which gistkit does not run"):
        GistModel.from_pretrained(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_gated_model_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelNotFoundError, match="it is gated; ask for access on its page"):
        GistModel.from_pretrained("some/model")


def test_weights_that_lack_a_layer(tmp_path: Path) -> None:
    """transformers would fill it with random numbers and warn."""
    tiny_gist_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"lacks model.layers.1.mlp.up_proj.weight"):
        GistModel.from_pretrained(tmp_path)


class Trap:
    """What a hostile checkpoint would run when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("sprung").absolute(),))  # type: ignore[return-value]


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_gist_model().save_pretrained("model")
    Path("model/model.safetensors").unlink()
    torch.save({"model.norm.weight": Trap()}, "model/pytorch_model.bin")
    with pytest.raises(ModelNotFoundError):
        GistModel.from_pretrained("model")
    assert not Path("sprung").exists()
    torch.load("model/pytorch_model.bin", weights_only=False)  # the trap does work
    assert Path("sprung").exists()


def test_a_plain_model_is_not_a_gist_model(shared: Path) -> None:
    with pytest.raises(NotAGistModelError, match="not a gist model: its tokenizer has no"):
        GistModel.from_pretrained(shared / "models/stories260K")


def test_an_unsupported_config_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported: it uses absolute"):
        GistModel.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="absolute positions"):
        GistModel.from_base(tmp_path)
