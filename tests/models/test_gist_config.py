"""`gist_config.json` survives a round trip, and a damaged one is one line."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from gistkit.errors import NotAGistModelError
from gistkit.models.config import FILE_NAME, GistConfig

FULL = GistConfig(
    num_gist_tokens=(2, 1),
    conditions=("gist", "pos_control"),
    template="chat",
    base_model="somebody/base",
    training={"steps": 3, "scores": {"seen": 0.5}},
)


@pytest.mark.parametrize("config", [FULL, GistConfig()])
def test_round_trip(config: GistConfig, tmp_path: Path) -> None:
    config.save(tmp_path)
    assert GistConfig.load(tmp_path / FILE_NAME) == config


def test_the_first_k_is_the_default() -> None:
    assert FULL.default_k == 2
    assert GistConfig().default_k == 1


@pytest.mark.parametrize(
    "change",
    [
        {"num_gist_tokens": 1},
        {"num_gist_tokens": ["one"]},
        {"num_gist_tokens": [0]},
        {"num_gist_tokens": None},
        {"conditions": 3},
        {"training": 3},
        {"format_version": 2},
    ],
    ids=str,
)
def test_fields_that_make_no_sense(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps({**asdict(FULL), **change}))
    with pytest.raises(NotAGistModelError) as error:
        GistConfig.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", "\xff"])
def test_files_that_are_no_config(text: str, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(NotAGistModelError, match="cannot be read"):
        GistConfig.load(path)


def test_fields_of_a_later_version_are_named(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps({"format_version": 2}))
    said = r"json has format version 2, this gistkit reads 1; install a gistkit that reads it$"
    with pytest.raises(NotAGistModelError, match=said):
        GistConfig.load(path)


def test_the_card_says_what_is_known() -> None:
    card = FULL.model_card("llama")
    assert "| gist tokens (k) | 2, 1 |" in card
    assert "| trained under | gist, pos_control |" in card
    assert "base_model: somebody/base" in card
    assert '"seen": 0.5' in card
    bare = GistConfig().model_card("t5")
    assert "base_model:" not in bare
    assert "| base model | random weights |" in bare
