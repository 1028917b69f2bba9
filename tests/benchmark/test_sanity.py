"""The sanity checks pass where all is right, and name the place where one thing is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gistkit import Gist, GistModel
from gistkit.benchmark.sanity import Check, Difference, check
from gistkit.models import decoder, encoder_decoder
from gistkit.models.decoder import DecoderAdapter
from gistkit.models.families import FAMILIES
from gistkit.testing import tiny_gist_model
from tests.benchmark.benchmark_command import AsJson, Command

PAIRS = [("Answer in one word.", "Capital?"), ("Tell me a long story about a dog.", "Now. Go")]
DTYPES = [torch.float32, torch.bfloat16]


def checked(model: GistModel, pairs: Any = PAIRS, k: int = 2) -> list[Check]:
    return list(check(model, pairs, ks=[k], max_new_tokens=4))


def first(model: GistModel) -> Difference:
    """The first difference among all prompts in one batch."""
    found = next(check(model, PAIRS, ks=[2], max_new_tokens=4)).first
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exact(family: str, dtype: torch.dtype) -> None:
    model = tiny_gist_model(family)
    model.hf_model.to(dtype)
    for one in checked(model):
        assert one.first is None, str(one.first)
        parts = {name.split(", ")[1] for name in one.worst}
        assert {"hidden states", "keys", "values", "logits"} <= parts
        assert one.tokens == 8
        assert dtype == torch.bfloat16 or one.ties == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_trained_models_are_exact(dtype: torch.dtype, shared: Path) -> None:
    stories = GistModel.from_base(shared / "models/stories260K", dtype=dtype)
    for model in (GistModel.from_pretrained("toy", dtype=dtype), stories):
        found = list(check(model, ks=[model.config.default_k]))
        assert [str(one.first) for one in found if one.first] == []


def broken_gist(
    model: GistModel, monkeypatch: pytest.MonkeyPatch, edit: Callable[[dict[str, Tensor]], None]
) -> None:
    """Have `compress` give tensors that `edit` has changed."""
    whole = model.adapter.compress

    def compress(ids: Tensor, padding: Tensor, k: int) -> dict[str, Tensor]:
        tensors = whole(ids, padding, k)
        edit(tensors)
        return tensors

    monkeypatch.setattr(model.adapter, "compress", compress)


@pytest.fixture(params=DTYPES, ids=str)
def llama(request: pytest.FixtureRequest) -> GistModel:
    model = tiny_gist_model("llama", num_hidden_layers=3)
    model.hf_model.to(request.param)
    return model


@pytest.fixture
def t5() -> GistModel:
    return tiny_gist_model("t5", num_layers=3)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", ["keys", "values"])
def test_one_stale_row(
    llama: GistModel, monkeypatch: pytest.MonkeyPatch, layer: int, kind: str
) -> None:
    """Prompt 1's second gist token has, in one layer, what another layer computed."""

    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"layers.{layer}.{kind}"][1, :, 1] = tensors[f"layers.1.{kind}"][1, :, 1]

    broken_gist(llama, monkeypatch, edit)
    found = first(llama)
    assert found.place == f"decoder layer {layer}, {kind}"
    assert (found.prompt, found.segment, found.position) == (1, "gist", 1)
    assert found.token == "<GIST>"


def test_rows_in_the_wrong_order(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.flip(0) for name, tensor in tensors.items()})

    broken_gist(llama, monkeypatch, edit)
    # the first layer's values are the same gist tokens' embeddings in every prompt; keys as well
    assert first(llama).place == "decoder layer 1, keys"


def test_gist_tokens_in_the_wrong_order(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.flip(2) for name, tensor in tensors.items()})

    broken_gist(llama, monkeypatch, edit)
    found = first(llama)
    assert (found.place, found.segment) == ("decoder layer 0, keys", "gist")


def test_the_column_before_the_gist_is_kept(
    llama: GistModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = llama.adapter.compress

    def compress(ids: Tensor, padding: Tensor, k: int) -> dict[str, Tensor]:
        return {name: tensor[:, :, :-1] for name, tensor in whole(ids, padding, k + 1).items()}

    monkeypatch.setattr(llama.adapter, "compress", compress)
    found = first(llama)
    assert (found.place, found.segment, found.position) == ("decoder layer 0, keys", "gist", 0)


def test_a_gist_at_the_wrong_position(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = llama.adapter
    assert isinstance(adapter, DecoderAdapter)

    def compress(ids: Tensor, padding: Tensor, k: int) -> dict[str, Tensor]:
        positions = torch.arange(1 + k - ids.shape[1], 1 + k).expand(ids.shape)
        return adapter._keep(ids, padding, positions, k)

    monkeypatch.setattr(adapter, "compress", torch.no_grad()(compress))
    found = first(llama)
    assert (found.place, found.segment, found.position) == ("decoder layer 0, keys", "gist", 0)


def test_an_input_at_the_wrong_position(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions start over after the gist."""
    adapter, whole = llama.adapter, llama.adapter.read
    counted = decoder.count_positions

    def read(*args: Any, **options: Any) -> Any:
        with monkeypatch.context() as inside:
            inside.setattr(decoder, "count_positions", lambda padding: counted(padding) - 2)
            return whole(*args, **options)

    monkeypatch.setattr(adapter, "read", read)
    found = first(llama)
    assert (found.place, found.segment, found.position) == ("decoder layer 0, keys", "input", 0)


def leaky(whole: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The instruction's last token is taken for a gist token."""

    def relabelled(ids: Tensor, *rest: Any) -> Tensor:
        labels = whole(ids, *rest).clone()
        last = (labels == 0).long().cumsum(-1).argmax(-1)
        labels[torch.arange(len(labels)), last] = 1
        return labels

    return relabelled


def test_a_leaked_column_of_the_mask(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "relabelled", leaky(decoder.relabelled))
    found = first(llama)
    assert (found.place, found.segment) == ("decoder layer 1, hidden states", "input")


def test_one_leaked_cell_of_the_mask(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third last token before the answer's end sees the instruction; nobody else does."""
    whole = decoder.create_masks_for_generate

    def leaking(*args: Any, **given: Any) -> Any:
        mask = whole(*args, **given).clone()
        mask[1, :, -3, : mask.shape[-1] - 20] = True
        return mask

    monkeypatch.setattr(decoder, "create_masks_for_generate", leaking)
    found = first(llama)
    assert (found.place, found.prompt) == ("decoder layer 1, hidden states", 1)
    assert (found.segment, found.position) == ("output", 1)


def test_a_hidden_gist(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input cannot see the first gist token."""
    whole = Gist.mask.fget  # type: ignore[attr-defined]

    def mask(gist: Gist) -> Tensor:
        found: Tensor = whole(gist).clone()
        found[:, 0] = 0
        return found

    monkeypatch.setattr(Gist, "mask", property(mask))
    assert first(llama).segment == "input"


def test_answers_that_do_not_follow(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation answers from another gist; nothing else is wrong."""
    whole = llama.adapter.generate

    def generate(ids: Tensor, padding: Tensor, gist: Gist, *rest: Any, **options: Any) -> Tensor:
        tensors = {name: -tensor for name, tensor in gist.tensors.items()}
        return whole(ids, padding, replace(gist, tensors=tensors), *rest, **options)

    monkeypatch.setattr(llama.adapter, "generate", generate)
    found = first(llama)
    assert (found.place, found.segment) == ("answer", "output")


def test_no_number(llama: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["layers.1.values"][0, 0, 0, 0] = float("nan")

    broken_gist(llama, monkeypatch, edit)
    assert first(llama).place == "decoder layer 1, values"


@pytest.mark.parametrize("name", ["blocks.0.hidden", "blocks.2.hidden"])
def test_t5_one_stale_row(t5: GistModel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name][1, 1] = tensors["output.hidden"][0, 1]

    broken_gist(t5, monkeypatch, edit)
    found = first(t5)
    assert found.place == f"encoder layer {name[7]}, hidden states"
    assert (found.prompt, found.segment, found.position) == (1, "gist", 1)


def test_t5_a_stale_output(t5: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["output.hidden"] = tensors["output.hidden"].flip(0)

    broken_gist(t5, monkeypatch, edit)
    found = first(t5)
    assert (found.place, found.segment) == ("decoder layer 0, cross-attention keys", "gist")


def test_t5_padding_between_gist_and_input(t5: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("Answer in one word.", "One"), ("Answer.", "This input is far longer.")]
    monkeypatch.setattr(encoder_decoder, "align_left", lambda ids, padding: (ids, padding))
    (together, alone) = checked(t5, pairs)
    assert together.first is not None and together.first.place.startswith("encoder layer 0")
    assert alone.first is None


def test_t5_a_leaked_column_of_the_mask(t5: GistModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_decoder, "relabelled", leaky(encoder_decoder.relabelled))
    found = first(t5)
    assert (found.place, found.segment) == ("encoder layer 1, hidden states", "input")


def test_the_command(as_json: AsJson, command: Command, tmp_path: Path) -> None:
    folder = tiny_gist_model("llama").save_pretrained(tmp_path / "model")
    found = as_json("check", folder, "-k", 2, "--precision", "bf16")
    assert found["passed"] is True
    assert (found["schema_version"], found["precision"]) == (1, "bfloat16")
    status, out, _ = command("check", folder)
    assert status == 0
    assert out.count("k = ") == 3 and "passed" in out


def test_the_command_fails(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_gist_model("llama").save_pretrained(tmp_path / "model")
    monkeypatch.setattr(decoder, "relabelled", leaky(decoder.relabelled))
    status, out, _ = command("check", folder, "-k", 1)
    assert status == 1
    assert "FAILED" in out and "decoder layer 1, hidden states: input token 0" in out


def test_a_prompt_too_long(command: Command, tmp_path: Path) -> None:
    folder = tiny_gist_model("llama").save_pretrained(tmp_path / "model")
    data = tmp_path / "a.jsonl"
    data.write_text('{"instruction": "Say it.", "input": "%s", "output": "y"}\n' % ("x" * 600))
    status, out, err = command("check", folder, "--data", data)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "prompt 0 and its answer are" in err
