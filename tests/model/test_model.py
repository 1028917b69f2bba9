"""GistModel as its users see it: compress, generate, and what is refused."""

from typing import Any

import pytest
import torch

from gistkit import Gist, GistModel, Prefix
from gistkit.errors import (
    GistMismatchError,
    OptionError,
    PromptError,
)
from gistkit.gist import instruction_hash
from gistkit.models.config import GistConfig
from gistkit.testing import tiny_gist_model
from tests.model.asked import INPUTS, INSTRUCTIONS, brief

# compress


def test_compress_one_or_many(model: GistModel) -> None:
    one, many = model.compress(INSTRUCTIONS[0]), model.compress(INSTRUCTIONS)
    assert len(one) == 1
    assert len(many) == 3
    assert one.num_tokens == many.num_tokens == 1  # the first k it was trained for
    for instruction, gist in zip(INSTRUCTIONS, many, strict=True):
        (known,) = gist.provenance
        assert known.instruction_sha256 == instruction_hash(instruction)
        assert known.instruction_tokens == len(model.encoder.instruction(instruction, 1)) - 1
        assert gist.model == model.fingerprint
        assert gist.template == model.config.template


@pytest.mark.parametrize("k", [1, 2, 4])
def test_k_is_the_length_of_the_gist(model: GistModel, k: int) -> None:
    gist = model.compress(INSTRUCTIONS, num_gist_tokens=k)
    assert gist.lengths == (k, k, k)
    assert all(t.shape[-2] == k for t in gist.tensors.values())


def test_an_untrained_k_must_be_allowed(model: GistModel) -> None:
    with pytest.raises(OptionError, match=r"trained for 1, 2, 4 gist tokens, not 3; choose one"):
        model.compress("Greet.", num_gist_tokens=3)
    assert model.compress("Greet.", num_gist_tokens=3, allow_untrained=True).num_tokens == 3
    for k in (0, -1):
        with pytest.raises(OptionError, match=f"at least 1, not {k}"):
            model.compress("Greet.", num_gist_tokens=k, allow_untrained=True)


def test_compress_nothing(model: GistModel) -> None:
    with pytest.raises(PromptError, match="no instruction given; give at least one"):
        model.compress([])
    with pytest.raises(PromptError, match="the instruction is empty"):
        model.compress(["Greet.", " "])


def test_an_instruction_that_is_too_long(llama: GistModel) -> None:
    with pytest.raises(PromptError, match=r"instruction 1 has 6\d\d tokens; .* more than the 512"):
        llama.compress(["Greet.", "a" * 600])
    with pytest.raises(PromptError, match="instruction 0 has"):
        llama.cache_prompt("a" * 600)
    assert len(tiny_gist_model("t5").compress("a" * 600)) == 1  # relative biases have no end


def test_compressing_leaves_no_gradients(model: GistModel) -> None:
    assert not any(t.requires_grad for t in model.compress("Greet.").tensors.values())


def test_a_gist_does_not_keep_its_instruction_alive(model: GistModel) -> None:
    for tensor in model.compress(INSTRUCTIONS).tensors.values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


# generate


def test_one_input_or_many(model: GistModel) -> None:
    gists = model.compress(INSTRUCTIONS)
    together = brief(model, INPUTS, gists)
    assert together == [brief(model, x, g)[0] for x, g in zip(INPUTS, gists, strict=True)]
    assert brief(model, INPUTS, gists[0]) == [brief(model, x, gists[0])[0] for x in INPUTS]
    assert len(set(together)) == 3


def test_gist_instructions_or_neither(model: GistModel) -> None:
    answers = [
        brief(model, INPUTS, model.compress(INSTRUCTIONS)),
        brief(model, INPUTS, instructions=INSTRUCTIONS),
        brief(model, INPUTS),
    ]
    assert len({tuple(a) for a in answers}) == 3
    with pytest.raises(OptionError, match="give `gist` or `instructions`, not both"):
        brief(model, "x", model.compress("Greet."), instructions="Greet.")


def test_one_instruction_for_all_inputs(model: GistModel) -> None:
    spread = brief(model, INPUTS, instructions=[INSTRUCTIONS[0]] * 3)
    assert brief(model, INPUTS, instructions=INSTRUCTIONS[0]) == spread
    with pytest.raises(OptionError, match="2 instructions for 3 inputs; give one, or one for each"):
        brief(model, INPUTS, instructions=INSTRUCTIONS[:2])


def test_a_cached_prompt_answers_as_the_full_prompt(llama: GistModel) -> None:
    cache = llama.cache_prompt(INSTRUCTIONS)
    assert type(cache) is Prefix
    assert brief(llama, INPUTS, cache) == brief(llama, INPUTS, instructions=INSTRUCTIONS)
    assert cache.num_bytes > 10 * llama.compress(INSTRUCTIONS).num_bytes


def test_an_encoder_cannot_cache_a_prompt() -> None:
    with pytest.raises(OptionError, match="encoder-decoder cannot cache a full prompt"):
        tiny_gist_model("t5").cache_prompt("Greet.")


def test_generating_does_not_change_the_gist(model: GistModel) -> None:
    gist = model.compress(INSTRUCTIONS)
    before = {name: tensor.clone() for name, tensor in gist.tensors.items()}
    first = brief(model, INPUTS, gist)
    assert brief(model, INPUTS, gist) == first
    assert all(torch.equal(t, before[name]) for name, t in gist.tensors.items())


def test_mixed_numbers_of_gist_tokens_in_a_batch(model: GistModel) -> None:
    gists = [model.compress("Greet.", num_gist_tokens=k) for k in (1, 4, 2)]
    together = brief(model, INPUTS, Gist.stack(gists))
    assert together == [brief(model, x, g)[0] for x, g in zip(INPUTS, gists, strict=True)]


def test_gists_and_inputs_must_be_as_many(model: GistModel) -> None:
    with pytest.raises(GistMismatchError, match="2 gists for 3 inputs"):
        brief(model, INPUTS, model.compress(INSTRUCTIONS[:2]))
    with pytest.raises(PromptError, match="no input given"):
        brief(model, [])


def test_another_models_gist_is_refused(model: GistModel) -> None:
    gist = model.compress("Greet.")
    other = tiny_gist_model(model.hf_model.config.model_type, seed=1)
    with pytest.raises(GistMismatchError, match="made by another model"):
        other.generate("x", gist)
    half = tiny_gist_model(model.hf_model.config.model_type)
    half.hf_model.to(torch.bfloat16)
    with pytest.raises(GistMismatchError, match="made by another model"):
        half.generate("x", gist)


def test_a_gist_is_stale_once_the_weights_have_changed() -> None:
    model = tiny_gist_model()
    gist = model.compress("Greet.")
    with torch.no_grad():
        next(model.hf_model.parameters()).add_(1)
    with pytest.raises(GistMismatchError, match="made by another model"):
        model.generate("x", gist)
    model.generate("x", model.compress("Greet."), max_new_tokens=1)


def test_another_templates_gist_is_refused(llama: GistModel) -> None:
    gist = llama.compress("Greet.")
    llama.tokenizer.chat_template = "{{ messages[0]['content'] }}{{ messages[1]['content'] }}!"
    chat = GistModel(llama.hf_model, llama.tokenizer, GistConfig(template="chat"))
    with pytest.raises(GistMismatchError, match="for template 'decoder', the model uses 'chat"):
        chat.generate("x", gist)
    brief(chat, "x", chat.compress("Greet."))


def test_too_many_tokens(llama: GistModel) -> None:
    gist = llama.compress("Greet.")
    with pytest.raises(PromptError, match=r"\d+ tokens .gist, input and new ones. are more than"):
        llama.generate("a" * 400, gist, max_new_tokens=200)
    with pytest.raises(PromptError, match="are more than the 512"):
        llama.generate("a" * 10, instructions="b" * 600)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"num_beams": 0},
        {"num_return_sequences": 0},
        {"num_return_sequences": 2},
        {"num_return_sequences": 3, "num_beams": 2},
        {"num_return_sequences": 3, "num_beams": 2, "do_sample": True},
        {"temperature": 0.0, "do_sample": True},
        {"temperature": float("nan"), "do_sample": True},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
    ids=str,
)
def test_numbers_out_of_range(model: GistModel, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        model.generate("x", **options)


def test_max_new_tokens(model: GistModel) -> None:
    gist = model.compress("Greet.")
    long = model.generate("x y", gist, max_new_tokens=20)[0]
    for n in (1, 5):
        assert long.startswith(model.generate("x y", gist, max_new_tokens=n)[0])


# sampling


def test_a_seed_repeats_a_sample(model: GistModel) -> None:
    gist = model.compress(INSTRUCTIONS)
    options = {"do_sample": True, "temperature": 5.0}
    first = brief(model, INPUTS, gist, seed=1, **options)
    assert brief(model, INPUTS, gist, seed=1, **options) == first
    assert brief(model, INPUTS, gist, seed=2, **options) != first
    assert first != brief(model, INPUTS, gist)


def test_a_seed_leaves_the_callers_random_state_alone(model: GistModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    brief(model, "x", do_sample=True, seed=1)
    list(model.stream("x", do_sample=True, seed=1, max_new_tokens=3))
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_samples_differ_and_follow_the_callers_state(model: GistModel) -> None:
    def sample() -> list[str]:
        return brief(model, INPUTS, do_sample=True, temperature=5.0)

    torch.manual_seed(3)
    first, second = sample(), sample()
    assert first != second
    torch.manual_seed(3)
    assert sample() == first


def test_sampling_options_narrow_the_choice(model: GistModel) -> None:
    greedy = brief(model, INPUTS)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert brief(model, INPUTS, do_sample=True, seed=0, **options) == greedy


def test_several_answers_stand_side_by_side(model: GistModel) -> None:
    gists = model.compress(INSTRUCTIONS)
    options: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "seed": 5}
    answers = brief(model, INPUTS, gists, num_return_sequences=3, **options)
    assert len(answers) == 9
    assert len(set(answers)) == 9
    narrow = brief(model, INPUTS, gists, num_return_sequences=2, do_sample=True, top_k=1)
    greedy = brief(model, INPUTS, gists)
    assert narrow == [answer for answer in greedy for _ in range(2)]


def test_beams_find_likelier_answers(model: GistModel) -> None:
    gists = model.compress(INSTRUCTIONS)
    beams = brief(model, INPUTS, gists, num_beams=3)
    assert len(beams) == 3
    assert beams != brief(model, INPUTS, gists)
    assert beams == [brief(model, x, g, num_beams=3)[0] for x, g in zip(INPUTS, gists, strict=True)]
    several = brief(model, INPUTS, gists, num_beams=3, num_return_sequences=2)
    assert several[::2] == beams


def test_beams_over_a_cached_prompt_are_those_over_the_prompt(llama: GistModel) -> None:
    cache = llama.cache_prompt(INSTRUCTIONS)
    full = brief(llama, INPUTS, instructions=INSTRUCTIONS, num_beams=3)
    assert brief(llama, INPUTS, cache, num_beams=3) == full
    assert brief(llama, INPUTS, cache[0], num_beams=3) == brief(
        llama, INPUTS, instructions=INSTRUCTIONS[0], num_beams=3
    )


def test_a_checkpoints_own_defaults_do_not_leak_in(model: GistModel) -> None:
    clean = brief(model, INPUTS)
    sampled = brief(model, INPUTS, do_sample=True, seed=1)
    family = model.hf_model.config.model_type
    tuned = tiny_gist_model(family)
    known = tuned.hf_model.generation_config
    for name, value in {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.1,
        "min_p": 0.9,
        "typical_p": 0.1,
        "epsilon_cutoff": 0.5,
        "eta_cutoff": 0.5,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 11,
        "num_beams": 3,
        "length_penalty": 9.0,
        "max_length": 3,
        "max_time": 1e-9,
        "suppress_tokens": list(range(3, 200)),
        "bad_words_ids": [[token] for token in range(3, 200)],
        "forced_eos_token_id": 77,
        "exponential_decay_length_penalty": [1, 50.0],
        "stop_strings": ["e"],
        "prompt_lookup_num_tokens": 3,
        "use_cache": False,  # what many a training run leaves behind
        "cache_implementation": "static",
        "return_dict_in_generate": True,
        "output_scores": True,
    }.items():
        setattr(known, name, value)
    assert brief(tuned, INPUTS) == clean
    assert brief(tuned, INPUTS, do_sample=True, seed=1) == sampled
    gists = model.compress(INSTRUCTIONS)
    assert brief(tuned, INPUTS, gists) == brief(model, INPUTS, gists)
    assert brief(tuned, INPUTS, gists, num_beams=2) == brief(model, INPUTS, gists, num_beams=2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_in_training_answers_as_one_that_is_not(
    model: GistModel, checkpointing: bool
) -> None:
    gists = model.compress(INSTRUCTIONS)
    busy = tiny_gist_model(model.hf_model.config.model_type)
    for module in busy.hf_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    if checkpointing:
        busy.hf_model.activation_checkpointing_enable()
    busy.hf_model.train()
    frozen = next(busy.hf_model.children()).eval()
    ours = busy.compress(INSTRUCTIONS)
    for name, tensor in gists.tensors.items():
        assert torch.equal(ours.tensors[name], tensor)
    assert brief(busy, INPUTS, ours) == brief(model, INPUTS, gists)
    assert brief(busy, INPUTS, instructions=INSTRUCTIONS) == brief(
        model, INPUTS, instructions=INSTRUCTIONS
    )
    assert busy.hf_model.training and not any(one.training for one in frozen.modules())


# where an answer ends


def test_eos_ends_an_answer(model: GistModel) -> None:
    (whole,) = brief(model, "x y")
    ending = tiny_gist_model(model.hf_model.config.model_type)
    letter = model.tokenizer(whole[5], add_special_tokens=False)["input_ids"]
    ending.hf_model.generation_config.eos_token_id = letter
    assert brief(ending, "x y") == [whole[: whole.index(whole[5]) + 1]]
    # rows that end early are padded with the pad token, and that is not shown
    both = brief(ending, ["x y", "hm"])
    assert both == [brief(ending, "x y")[0], brief(ending, "hm")[0]]


def test_stop_strings_are_cut_off(model: GistModel) -> None:
    (whole,) = brief(model, "x y")
    stop = whole[4:6]
    expected = whole[: whole.index(stop)].strip()
    assert brief(model, "x y", stop_strings=stop) == [expected]
    assert brief(model, "x y", stop_strings=["never", stop]) == [expected]
    assert brief(model, "x y", stop_strings=[]) == [whole]
