"""LLMLingua-2's way, on a classifier of our own: the released one cannot be fetched in tests."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from gistkit.compare import answer_all
from gistkit.compare.lingua import Lingua
from gistkit.compare.method import instruction_ids
from gistkit.errors import OptionError
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.testing import tiny_gist_model

TEXT = "please say howdy now and be so kind as to stop"
STAY = ("say", "howdy", "stop")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def model() -> GistModel:
    return tiny_gist_model("llama")  # a token a byte


def make_classifier(folder: Path, labels: int = 2) -> Path:
    """One that wants the words of STAY to stay, those before others."""
    words = [*SPECIAL, *dict.fromkeys(TEXT.split())]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, num_labels=labels,
    )  # fmt: skip
    bert = BertForTokenClassification(config)
    state = {name: torch.zeros_like(tensor) for name, tensor in bert.state_dict().items()}
    state |= {n: torch.ones_like(t) for n, t in state.items() if n.endswith("LayerNorm.weight")}
    rows = state["bert.embeddings.word_embeddings.weight"]
    for number, word in enumerate(words):
        rows[number, 0] = 1.0 if word in STAY else -1.0
        rows[number, 1] = 0.5
    if labels == 2:
        state["classifier.weight"][1, 0] = 1.0
    bert.load_state_dict(state)
    bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("lingua"))


def test_words_stay_by_their_chance_and_in_their_order(model: GistModel, classifier: Path) -> None:
    method = Lingua(str(classifier))
    chances = dict(zip(TEXT.split(), method.chances(TEXT.split()), strict=True))
    assert all((chance > 0.5) == (word in STAY) for word, chance in chances.items())
    assert method.shorten(model, TEXT, 14) == "say howdy stop"
    assert method.shorten(model, TEXT, 9) == "say howdy"  # equal ones: the first comes first
    assert method.shorten(model, TEXT, 3) == "say"
    assert method.shorten(model, TEXT, len(TEXT)) == TEXT
    for budget in (1, 5, 20, 30):
        assert len(instruction_ids(model, method.shorten(model, TEXT, budget))) <= budget


def test_long_instructions_are_seen_in_pieces(model: GistModel, classifier: Path) -> None:
    method = Lingua(str(classifier))
    many = ["please"] * 250 + ["howdy"]
    chances = method.chances(many)
    assert len(chances) == 251
    assert chances[-1] > 0.5 > max(chances[:-1])
    assert method.shorten(model, " ".join(many), 5) == "howdy"


def test_a_classifier_out_of_reach_is_told_once(model: GistModel) -> None:
    method = Lingua()
    found = answer_all(model, [Example(TEXT, "", "x")], method, 4)
    assert found.missing.startswith("microsoft/llmlingua-2-bert-base-multilingual-cased-meeting")
    assert "is not reachable" in found.missing and "\n" not in found.missing
    assert not found.answers


def test_what_is_no_classifier(model: GistModel, classifier: Path, tmp_path: Path) -> None:
    three = make_classifier(tmp_path / "three", labels=3)
    with pytest.raises(OptionError, match="three is no classifier of tokens to keep"):
        Lingua(str(three)).prepare(model, TEXT, 4)
    with pytest.raises(OptionError, match="is not reachable"):
        Lingua(str(tmp_path)).prepare(model, TEXT, 4)
    # without a word on it transformers would guess the weights that are missing
    bare = make_classifier(tmp_path / "bare")
    from safetensors.torch import load_file, save_file

    weights = {n: t for n, t in load_file(bare / "model.safetensors").items() if "bert" in n}
    save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OptionError, match="bare is no classifier of tokens to keep"):
        Lingua(str(bare)).prepare(model, TEXT, 4)
