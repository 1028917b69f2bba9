"""Where the base model comes from: a revision of the hub, a config of another place."""

from pathlib import Path

import pytest

from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.models import loading
from gistkit.testing import byte_tokenizer, tiny_model
from gistkit.training.arguments import parse_config
from gistkit.training.start import base_path, start_model


def test_a_revision_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def download(hub_id: str, **options: object) -> str:
        asked.update(options, hub_id=hub_id)
        return str(tmp_path)

    monkeypatch.setattr(loading, "snapshot_download", download)
    model = {"model_name_or_path": "someone/model", "model_revision": "v2", "cache_dir": "here"}
    assert base_path(parse_config({"model": model}).model) == str(tmp_path)
    assert (asked["hub_id"], asked["revision"]) == ("someone/model", "v2")
    assert asked["cache_dir"] == "here"


def test_main_is_left_alone_and_folders_have_no_revisions(tmp_path: Path) -> None:
    for path in ("someone/model", str(tmp_path)):
        raw = {"model": {"model_name_or_path": path, "model_revision": "main"}}
        assert base_path(parse_config(raw).model) == path
    raw = {"model": {"model_name_or_path": str(tmp_path), "model_revision": "v2"}}
    with pytest.raises(OptionError, match="model_revision is for hub ids"):
        base_path(parse_config(raw).model)


def test_a_revision_out_of_reach(tmp_path: Path) -> None:
    model = {"model_name_or_path": "someone/model", "model_revision": "v2"}
    config = parse_config({"model": {**model, "cache_dir": str(tmp_path)}})
    with pytest.raises(ModelNotFoundError, match="someone/model@v2"):
        base_path(config.model)


def test_the_config_of_another_place(tmp_path: Path) -> None:
    """Random weights of that config, with the tokenizer of the model."""
    tiny_model("llama", num_hidden_layers=1).config.save_pretrained(tmp_path / "one")
    tiny_model("llama").config.save_pretrained(tmp_path / "two")
    byte_tokenizer().save_pretrained(tmp_path / "two")
    model = {"model_name_or_path": str(tmp_path / "two"), "pretrained": False}
    config = parse_config({"model": {**model, "config_name": str(tmp_path / "one")}})
    assert start_model(config, 0).hf_model.config.num_hidden_layers == 1
