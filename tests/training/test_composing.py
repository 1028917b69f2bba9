"""What a command line may be wrong about, said in one line before anything runs."""

import re

import pytest
from transformers import TrainingArguments

from gistkit.cli import main
from gistkit.data.sets import TaskConfig
from gistkit.errors import MissingExtraError
from gistkit.training import composing
from gistkit.training.settings import (
    HUGGING_FACE,
    MAIN,
    GistArguments,
    Setting,
    groups,
    help_text,
    page,
    settings,
)


def complaint(capfd: pytest.CaptureFixture[str], command: str) -> str:
    """The one line that `gistkit train command` ends with; asserts that nothing else was said."""
    assert main(["train", *command.split(" ")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("gistkit: error: ")
    return line


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("training.learning_rat=1", "unknown key training.learning_rat; did you mean training.lea"),
        ("trainin.learning_rate=1", "did you mean training.learning_rate?"),
        ("wandb.tagg=x", "did you mean wandb.tag?"),
        ("+training.lr=1", "unknown key training.lr"),
        ("training.gist=2", "training.gist"),
        ("training.learning_rate=[1", "viable alternative"),
        ("training.gist.num_gist_tokens=0", "at least 1, not 0"),
        ("training.gist.num_gist_tokens 2", "write training.gist.num_gist_tokens=2"),
        ("wandb.tag", "write wandb.tag=VALUE"),
        ("model=llama-7b", r"write \+model=NAME, one of .*llama-7b"),
        ("+model=llama7b", r"no \+model=llama7b; did you mean llama-7b"),
        ("+experiment=debg", "did you mean debug"),
        ("training.lora.r=8", r"write \+training.lora.r="),
        ("training.objective.temprature=2", "temprature"),
        ("model.llama_debug=true", "give model.pretrained=false"),
        ("-m training.gist.condition=gist,gits", "unknown condition 'gits'"),
        ("-m training.seed=1,2 training.sed=3", "did you mean training.seed?"),
        ("-m training.seed=1,-2", "at least 0, not -2"),
        ("+launcher=local", "add -m"),
        ("+model=flan-t5-xxl +model=llama-7b", r"run each: -m \+model=A,B"),
        ("training.gist.condition=gist,pos_control", r"add -m to run each, or write \[gist,"),
        ("=3", "must be a string"),
        ("--cfg job -p trainin", "no such section"),
        ("--cfg jub", "invalid choice: 'jub'"),
        ("--cfg job training.sed=3", "did you mean training.seed?"),
        ("--resolve", "goes with --cfg"),
        ("--multi training.seed=1,2", "unrecognized arguments: --multi"),
        ("-m --cfg job", "exclude each other"),
        ("--local_rank=x", "invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_one_line(
    command: str, part: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert re.search(part, complaint(capfd, command))


def test_a_launcher_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing.importlib.util, "find_spec", lambda name: None)
    error = composing.explain(ValueError("Could not find 'hydra/launcher/submitit_slurm'"))
    assert isinstance(error, MissingExtraError)
    assert str(error).endswith("pip install 'gistkit[slurm]'")


def test_the_composed_configuration_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    number = "training.gist.num_gist_tokens=[4,1]"
    assert main(["train", "--cfg", "job", "-p", "training.gist", number]) == 0
    assert "num_gist_tokens:\n- 4\n- 1\n" in capfd.readouterr().out


def test_open_sections_take_any_key(capfd: pytest.CaptureFixture[str]) -> None:
    given = ["model.config.hidden_size=8", "training.objective={name:mix,weight:0.3}"]
    assert main(["train", "--cfg", "job", *given]) == 0
    out = capfd.readouterr().out
    assert "hidden_size: 8" in out and "weight: 0.3" in out


def test_the_help_is_ours(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capfd.readouterr().out
    assert out == help_text()
    assert "docs/configuration.md" in out
    assert "Hydra" in out and "Powered" not in out
    for name in (*MAIN, *(name for names in groups().values() for name in names)):
        assert name in out
    assert max(map(len, out.splitlines())) <= 92


def test_every_job_of_a_sweep_is_checked_once_for_each_value() -> None:
    jobs = list(composing._jobs(["a=1,2", "b=3", "c=x,y"], sweep=True))
    assert jobs == [["a=1", "b=3", "c=x"], ["a=2", "b=3", "c=x"], ["a=1", "b=3", "c=y"]]
    assert list(composing._jobs(["a=1,2"], sweep=False)) == [["a=1,2"]]


def test_options_reach_hydra_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "7")
    request = composing.parse_request(["a=1", "--cfg", "job", "b=2", "--local_rank=3", "-p", "x"])
    assert request.settings == ["a=1", "b=2"]
    assert composing.flags(request) == ["--cfg", "job", "--package", "x"]


def test_help_comes_from_the_fields() -> None:
    """Ours, those of generated tasks, Hugging Face's, and published keys; defaults of the YAML."""
    found = {one.key: one for one in settings()}
    for kind, section in ((GistArguments, "training.gist"), (TaskConfig, "data.tasks")):
        for name, field in kind.__dataclass_fields__.items():
            one = found[f"{section}.{name}"]
            assert (one.meaning, one.published) == (
                field.metadata["help"],
                field.metadata["published"],
            )
    theirs = TrainingArguments.__dataclass_fields__["fp16"].metadata["help"]
    assert found["training.fp16"].meaning == " ".join(theirs.split()).removesuffix(".")
    assert found["training.optim"] == Setting(
        "training.optim", "adamw_torch_fused", *HUGGING_FACE["optim"]
    )
    assert found["wandb.entity"] == Setting(
        "wandb.entity", "null", "user or team; null is the account's own", "jayelm"
    )
    assert found["data.tasks.stages"].default == '[["mixed", 0, 20000]]'
    assert found["model.use_auth_token"].meaning.startswith("no effect: ")
    shown = page({"adam_beta1": "`0.9`", "run_name": "`None`"})
    assert "| `wandb.entity` | `null` | user or team; null is the account's own | jayelm |" in shown
    assert "| `training.adam_beta1` | `0.9` |  |" in shown
    assert "| `training.run_name` | `None` | no effect: wandb.name" in shown
    assert "| `training.no_cuda` | `training.use_cpu` |" in shown
