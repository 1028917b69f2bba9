"""LoRA: what is trained, what is saved, and that it loads as the model that was trained."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gistkit import GistModel
from gistkit.errors import MissingExtraError, ModelNotFoundError, OptionError
from gistkit.models import lora
from gistkit.training.arguments import parse_config, parse_lora
from gistkit.training.settings import LoraArguments
from tests.training.tiny_runs import raw, refused, save_base, train

TEXTS = ["Be kind.", "Answer in one word, please.", "No."]
INPUTS = ["Who are you?", "Where?", "What is the time?"]
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("t5", {}),
    ("t5", {"untied": True}),
]
OTHER = pytest.param(("gpt_neox", {}), marks=pytest.mark.slow)


def saved_base(folder: Path, family: str, changes: dict[str, Any]) -> Path:
    changes = {**changes}
    untied = changes.pop("untied", False)
    save_base(folder, family, **changes)
    if untied:  # as flan-t5: a head of its own, under a config that transformers reads as tied
        model = GistModel.from_base(folder).hf_model
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5 + 0.01)
        model.config.tie_word_embeddings = False
        model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: GistModel) -> torch.Tensor:
    """Of the masked pass: all prompts, and an output of three tokens."""
    pairs = zip(TEXTS, INPUTS, strict=True)
    rows = [model.encoder.prompt(text, x, 2) for text, x in pairs]
    if model.adapter.padding_side == "left":
        ids, padding = model.pad(rows)
        more: dict[str, Any] = {}
    else:
        ids, padding = model.pad([row[::-1] for row in rows])
        ids, padding = ids.flip(1), padding.flip(1)
        more = {"labels": torch.tensor([[70, 71, 72]] * len(rows))}
    output = model.adapter.forward(ids, padding, gist_id=model.gist_id, condition="gist", **more)
    assert isinstance(output.logits, torch.Tensor)
    return output.logits * padding[..., None] if not more else output.logits


@torch.no_grad()
def from_gists(model: GistModel) -> torch.Tensor:
    """Logits of what follows the gist, read from the gist; padded on the left."""
    gist = model.compress(TEXTS, num_gist_tokens=2)
    ids, padding = model.pad([model.encoder.input(x) for x in INPUTS])
    more: dict[str, Any] = {}
    if model.adapter.padding_side == "right":
        more = {"labels": torch.tensor([[70, 71, 72]] * len(INPUTS))}
    found = model.adapter.read(ids, padding, gist, gist_id=model.gist_id, **more).logits
    return found if more else found * padding[..., None]


def adapt(model: GistModel, base: Path, **changes: Any) -> lora.LoraModel:
    settings = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", **changes}
    return lora.add(model.hf_model, model.gist_id, base=str(base), **settings)


def learn(model: GistModel, wrapped: lora.LoraModel, *, steps: int = 3) -> None:
    ids, padding = model.pad([model.encoder.prompt(text, "x", 2) for text in TEXTS])
    labels = ids if model.adapter.padding_side == "left" else ids[:, :4].contiguous()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.03)
    for _ in range(steps):
        output: Any = model.adapter.forward(
            ids, padding, gist_id=model.gist_id, condition="gist", labels=labels, model=wrapped
        )
        output["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(params=[*SHAPES, OTHER], ids=lambda shape: "-".join([shape[0], *shape[1]]))
def trained(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[GistModel, lora.LoraModel, Path]]:
    family, changes = request.param
    base = saved_base(tmp_path / "base", family, changes)
    model = GistModel.from_base(base, num_gist_tokens=2)
    wrapped = adapt(model, base)
    learn(model, wrapped)
    yield model, wrapped, base


def save(model: GistModel, wrapped: lora.LoraModel, folder: Path) -> Path:
    wrapped.save_pretrained(str(folder))
    model.tokenizer.save_pretrained(folder)
    model.save_gist_files(folder)
    return folder


def test_only_the_adapter_and_the_gist_row_learn(
    trained: tuple[GistModel, lora.LoraModel, Path],
) -> None:
    model, wrapped, base = trained
    assert wrapped.get_base_model() is model.hf_model
    names = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    rows = [name for name in names if "lora_" not in name]
    assert len(rows) == 1
    assert "trainable_tokens" in rows[0]
    after = logits(model)
    with lora.without_adapter(wrapped):
        torch.testing.assert_close(logits(model), logits(GistModel.from_base(base)))
        assert (logits(model) - after).abs().max() > 1e-3
    torch.testing.assert_close(logits(model), after)


def test_the_theorem_holds_with_the_adapter_in_place(
    trained: tuple[GistModel, lora.LoraModel, Path],
) -> None:
    model, _, _ = trained
    full, read = logits(model), from_gists(model)
    for row, x in enumerate(INPUTS):
        n = full.shape[1] if full.shape[1] == read.shape[1] else len(model.encoder.input(x))
        assert (full[row, -n:] - read[row, -n:]).abs().max() < 1e-4


def test_saved_apart_and_merged_it_is_the_same_model(
    trained: tuple[GistModel, lora.LoraModel, Path], tmp_path: Path
) -> None:
    model, wrapped, base = trained
    expected, before = logits(model), GistModel.from_base(base).fingerprint
    folder = save(model, wrapped, tmp_path / "adapter")
    rows = len(model.tokenizer) * model.hf_model.config.hidden_size
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.numel() < rows for tensor in saved.values()), "an embedding was saved"
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]

    apart = GistModel.from_pretrained(folder)
    torch.testing.assert_close(logits(apart), expected, atol=1e-4, rtol=1e-4)
    lora.merge(wrapped)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "merged")
    merged = GistModel.from_pretrained(tmp_path / "merged")
    assert merged.fingerprint == model.fingerprint == apart.fingerprint != before
    assert not any("lora" in name for name, _ in merged.hf_model.named_parameters())


def test_fingerprints_tell_adapters_apart(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    found = set()
    for steps in (1, 2):
        model = GistModel.from_base(base, num_gist_tokens=2)
        found.add(model.fingerprint)
        wrapped = adapt(model, base)
        learn(model, wrapped, steps=steps)
        folder = save(model, wrapped, tmp_path / f"adapter{steps}")
        found.add(GistModel.from_pretrained(folder).fingerprint)
    assert len(found) == 3


@pytest.mark.parametrize("family", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_run_merged_and_a_run_apart(family: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family)
    plain = GistModel.from_base(base, num_gist_tokens=2)
    folders = {merge: tmp_path / str(merge) for merge in (True, False)}
    for merge, folder in folders.items():
        train(base, folder, lora={"r": 4, "alpha": 8, "merge": merge}, max_steps=2)
    assert (folders[True] / "model.safetensors").is_file()
    assert not (folders[True] / "adapter_model.safetensors").exists()
    assert (folders[False] / "adapter_model.safetensors").is_file()
    assert not (folders[False] / "model.safetensors").exists()
    one, other = (GistModel.from_pretrained(folder) for folder in folders.values())
    assert one.fingerprint == other.fingerprint != plain.fingerprint
    assert one.config.num_gist_tokens == (2, 1)
    # a checkpoint is a gist model, too, and training goes on from an adapter
    GistModel.from_pretrained(folders[False] / "checkpoint-2")
    train(folders[False], tmp_path / "more", lora=True, max_steps=1)
    assert GistModel.from_pretrained(tmp_path / "more").config.num_gist_tokens == (2, 1)


def test_a_lora_run_resumes_as_if_never_interrupted(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    options = {"lora": {"r": 4, "dropout": 0.2, "merge": False}, "lr_scheduler_type": "constant"}
    train(base, tmp_path / "whole", **options)
    train(base, tmp_path / "parts", **options, max_steps=2)
    train(base, tmp_path / "parts", **options)
    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts")
    )
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=0, rtol=0)


def test_settings() -> None:
    assert parse_lora(None) is None
    assert parse_lora(False) is None
    assert parse_lora(True) == LoraArguments()
    assert parse_lora({"r": 8, "target_modules": ["q_proj"]}) == LoraArguments(
        r=8, target_modules=("q_proj",)
    )


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"rank": 8}, "unknown key training.lora.rank"),
        ({"r": 0}, "training.lora.r must be at least 1, not 0"),
        ({"alpha": "x"}, "training.lora.alpha"),
        ({"dropout": 1}, "below 1, not 1"),
        ({"merge": "yes"}, "true or false"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], part: str) -> None:
    with pytest.raises(OptionError, match=part):
        parse_lora(given)


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    message = refused(base, tmp_path / "run", lora={"target_modules": ["nonsense"]})
    assert "training.lora" in message
    assert "nonsense" in message


def test_random_weights_cannot_be_adapted(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    message = refused(base, tmp_path / "run", lora=True, model={"pretrained": False})
    assert "model.pretrained=false" in message


def test_an_adapter_whose_base_is_gone(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    model = GistModel.from_base(base)
    folder = save(model, adapt(model, base), tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelNotFoundError, match="base"):
        GistModel.from_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "elsewhere")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    GistModel.from_pretrained(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelNotFoundError, match="adapter"):
        GistModel.from_pretrained(folder)


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    config = parse_config(raw(base, tmp_path / "run", lora=True))
    assert config.lora is not None
    monkeypatch.delitem(sys.modules, "gistkit.models.lora")
    monkeypatch.delattr("gistkit.models.lora", raising=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    from gistkit.training.start import add_adapter

    with pytest.raises(MissingExtraError, match=r"pip install 'gistkit\[lora\]'"):
        add_adapter(GistModel.from_base(base), config)
