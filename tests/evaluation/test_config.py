"""`evaluation.path` of a training run, and the names its scores get."""

import json
from pathlib import Path

import pytest

from gistkit.errors import OptionError
from gistkit.train import run_config
from gistkit.training.arguments import parse_config


def evaluated(folder: Path, path: str) -> dict[str, float]:
    """The results of a run that only evaluates a random model."""
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tiny |= {"num_attention_heads": 2, "max_position_embeddings": 256}
    return run_config(
        {
            "model": {
                "model_name_or_path": "tiny",
                "pretrained": False,
                "tokenizer_name": "toy",
                "config": {"model_type": "llama", **tiny},
            },
            "data": {
                "dataset_name": "tasks",
                "tasks": {"stages": [["reply", 1, 8]], "validation_rows": 4},
            },
            "training": {
                "output_dir": str(folder),
                "do_train": False,
                "do_eval": True,
                "use_cpu": True,
                "disable_tqdm": True,
                "generation_max_length": 60,
            },
            "evaluation": {"path": path},
        }
    )


def test_both_ways_give_the_same_outputs(tmp_path: Path) -> None:
    cache, mask = (evaluated(tmp_path / path, path) for path in ("cache", "mask"))
    for split in ("seen", "unseen"):
        name = f"outputs-0-validation_{split}.csv"
        assert (tmp_path / "cache" / name).read_text() == (tmp_path / "mask" / name).read_text()
    same = [name for name in cache if not name.endswith("_runtime")]
    assert {name: cache[name] for name in same} == {name: mask[name] for name in same}
    kept = json.loads((tmp_path / "mask" / "eval_results.json").read_text())
    for score in ("rouge1", "rougeL_low", "exact_match_high", "perplexity", "gen_len", "loss"):
        assert kept[f"eval_unseen_{score}"] == mask[f"eval_unseen_{score}"]


def test_an_unknown_path_or_key() -> None:
    assert parse_config({}).evaluation.path == "cache"
    with pytest.raises(OptionError, match=r"evaluation\.paht; did you mean path"):
        parse_config({"evaluation": {"paht": "mask"}})


def test_the_path_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="choose one of cache, mask"):
        evaluated(tmp_path, "masks")
