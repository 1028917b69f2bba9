import pytest

from gistkit.errors import OptionError
from gistkit.training.arguments import parse_config, parse_gist


def test_published_defaults() -> None:
    config = parse_config({})
    assert config.gist.condition == {"gist": 1.0}
    assert config.gist.num_gist_tokens == (1,)
    assert config.model.model_name_or_path == "google/flan-t5-base"
    assert config.data.dataset_name == "alpaca-plus"


def test_several_k_and_conditions() -> None:
    gist = parse_gist({"num_gist_tokens": [4, 1], "condition": {"gist": 3, "neg_control": 1}})
    assert gist.num_gist_tokens == (4, 1)
    assert gist.condition == {"gist": 3.0, "neg_control": 1.0}


def test_any_argument_of_hugging_face_is_passed_through() -> None:
    config = parse_config({"training": {"adam_beta2": 0.5, "warmup_ratio": 0.1, "no_cuda": True}})
    assert config.hf == {"adam_beta2": 0.5, "warmup_steps": 0.1, "use_cpu": True}


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        ({"training": {"learning_rat": 1}}, "did you mean learning_rate"),
        ({"training": {"max_steps": "abc"}}, "must be a number, not 'abc'"),
        ({"training": {"seed": -1}}, "at least 0, not -1"),
        ({"training": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor is not supported"),
        ({"training": None}, "wrong kind"),
        ({"training": {"gist": {"condition": {"gist": "x"}}}}, "above 0, not x"),
        ({"training": {"gist": {"condition": {}}}}, "names no condition"),
        ({"training": {"gist": {"num_gist_tokens": True}}}, "a list of them, not True"),
        ({"data": {"tasks": {"stages": []}}}, "must be a list of"),
        ({"data": {"tasks": {"stages": [["reply", 1]]}}}, "must be a list of"),
        ({"data": {"tasks": {"stages": [["reply", 1, -5]]}}}, "must be a list of"),
        ({"data": {"tasks": {"validation_rows": 0}}}, "validation_rows"),
        ({"training": {"max_steps": 0}}, "at least 1, or -1"),
        ({"training": {"per_device_train_batch_size": -3}}, "above 0, not -3"),
        ({"training": {"learning_rate": 0}}, "above 0, not 0"),
        ({"model": {"pretraine": False}}, "did you mean pretrained"),
        ({"data": {"tasks": {"famly": "reply"}}}, "data.tasks.famly"),
        ({"data": {"max_train_samples": 0}}, "at least 1, not 0"),
        ({"training": {"gist": {"condition": "gits"}}}, "choose one of gist, pos_control"),
        ({"training": {"gist": {"condition": {"gist": 0}}}}, "above 0"),
        ({"training": {"gist": {"num_gist_tokens": 0}}}, "at least 1, not 0"),
        ({"training": {"gist": {"num_gist_tokens": []}}}, "a list of them"),
        ({"training": {"gist": {"tokens": 1}}}, "training.gist.tokens"),
        ({"training": {"gist": {"add_gist_token": False}}}, "not supported"),
    ],
)
def test_a_mistake_is_named(raw: dict[str, object], part: str) -> None:
    with pytest.raises(OptionError, match=part):
        parse_config(raw)
