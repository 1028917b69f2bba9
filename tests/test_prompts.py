"""Text to ids: both published templates, chat templates, and what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gistkit.errors import OptionError, PromptError
from gistkit.models.loading import add_gist_to_tokenizer, gist_id_of, load_tokenizer
from gistkit.prompts import (
    GIST_TOKEN,
    TEMPLATE_NAMES,
    TEMPLATES,
    Example,
    PromptEncoder,
    Template,
    Turn,
    make_template,
)
from gistkit.testing import BOS, EOS, FIRST_BYTE, byte_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXTS = [
    ("Greet.", "Ann"),
    ("Greet.", ""),
    ("Two\nlines: and a colon.", "x\n\ny"),
    ("  spaces around  ", "  spaces around  "),
    ("Ünïcödé 🙂", "日本語"),
    ("Instruction: again", "Input: again\nOutput: no"),
    ("a", " "),
]


def spelled(ids: Sequence[int], gist_id: int) -> str:
    """Ids of the byte tokenizer as text, `G` for a gist token."""
    names = {BOS: b"[", EOS: b"]", gist_id: b"G"}
    return b"".join(names.get(i, bytes([(i - FIRST_BYTE) % 256])) for i in ids).decode()


def encoder(template: str = "decoder", chat: str | None = None) -> PromptEncoder:
    tokenizer = byte_tokenizer(closing=template == "encoder-decoder")
    tokenizer.chat_template = chat
    gist_id = add_gist_to_tokenizer(tokenizer)
    return PromptEncoder(tokenizer, make_template(template, tokenizer), gist_id)


@pytest.mark.parametrize(
    ("template", "input", "expected"),
    [
        ("decoder", "Ann", "[Instruction: Greet.\nGG\nInput: Ann\nOutput:"),
        ("decoder", "", "[Instruction: Greet.\nGG\nOutput:"),
        ("encoder-decoder", "Ann", "Instruction: Greet.\nGG\nInput: Ann]"),
        ("encoder-decoder", "", "Instruction: Greet.\nGG]"),
    ],
)
def test_the_published_templates(template: str, input: str, expected: str) -> None:
    one = encoder(template)
    assert spelled(one.prompt("Greet.", input, 2), one.gist_id) == expected


def test_a_chat_template_takes_the_instruction_as_its_system_prompt() -> None:
    one = encoder("chat", CHAT)
    text = spelled(one.prompt("Greet.", "Ann", 2), one.gist_id)
    assert text == "<system>Greet.GG\n<user>Ann\n<assistant>"
    assert spelled(one.instruction("Greet.", 2), one.gist_id) == "<system>Greet.GG"
    assert spelled(one.input(""), one.gist_id) == "\n<user>\n<assistant>"


@pytest.mark.parametrize("template", TEMPLATE_NAMES)
@pytest.mark.parametrize("k", [1, 2, 10])
def test_apart_is_together(template: str, k: int) -> None:
    one = encoder(template, CHAT)
    for instruction, input in TEXTS:
        whole = one.prompt(instruction, input, k)
        assert one.instruction(instruction, k) + one.input(input) == whole
        assert whole.count(one.gist_id) == k


@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_rows_for_training_are_prompts_of_any_k(template: str) -> None:
    one = encoder(template, CHAT)
    rows = one.examples([Example(i, x, "An answer.") for i, x in TEXTS])
    for (instruction, input), row in zip(TEXTS, rows, strict=True):
        assert row is not None
        for k in (1, 2, 5):
            assert row.prompt(one.gist_id, k) == one.prompt(instruction, input, k)
        space = " " if template == "decoder" else ""
        assert spelled(row.completion, one.gist_id) == f"{space}An answer.]"


def test_no_rows_are_no_rows() -> None:
    assert encoder().examples([]) == []


@pytest.mark.parametrize("text", [f"Say {GIST_TOKEN}.", GIST_TOKEN, f"{GIST_TOKEN}{GIST_TOKEN}"])
def test_a_gist_token_in_a_users_text_is_refused(text: str) -> None:
    one = encoder()
    place = text.index(GIST_TOKEN)
    with pytest.raises(
        PromptError, match=rf"the instruction contains <GIST> \(at character {place}"
    ):
        one.instruction(text, 1)
    with pytest.raises(PromptError, match=rf"the input contains <GIST> \(at character {place}"):
        one.input(text)
    with pytest.raises(PromptError, match="the input contains <GIST>"):
        one.prompt("Greet.", text, 1)
    good = Example("Greet.", "Ann", "Hi")
    for bad in (Example(text), Example("Greet.", text), Example("Greet.", "", text)):
        with pytest.raises(PromptError, match=r"row 1: the .* contains <GIST>"):
            one.examples([good, bad])


def test_text_that_only_looks_like_a_gist_token_is_text() -> None:
    one = encoder()
    for text in ("<gist>", "< GIST>", "<GIST", "GIST>", "＜GIST＞"):  # noqa: RUF001
        assert one.instruction(text, 1).count(one.gist_id) == 1
        assert one.gist_id not in one.input(text)


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_instruction_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="the instruction is empty; give the text"):
        encoder().instruction(text, 1)
    with pytest.raises(PromptError, match="row 0: the instruction is empty"):
        encoder().examples([Example(text, "x", "y")])


def test_text_that_is_no_unicode_is_refused() -> None:
    """Bytes of a command line that are not UTF-8 arrive as lone surrogates."""
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(PromptError, match=r"the instruction is not valid text .at character 3"):
        encoder().instruction(broken, 1)
    with pytest.raises(PromptError, match="the input is not valid text"):
        encoder().input(broken)


@pytest.mark.parametrize("k", [0, -1])
def test_a_span_needs_a_token(k: int) -> None:
    with pytest.raises(OptionError, match=f"`num_gist_tokens` must be at least 1, not {k}"):
        encoder().instruction("Greet.", k)


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown template 'alpaca'; choose one of decoder, enc"):
        make_template("alpaca", byte_tokenizer())


def test_chat_needs_a_chat_template() -> None:
    with pytest.raises(OptionError, match="no chat template; use template='decoder'"):
        make_template("chat", byte_tokenizer())


def test_a_chat_template_without_system_prompts_is_refused() -> None:
    refusing = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(PromptError, match=r"refuses a system prompt .System role not supported"):
        encoder("chat", refusing).instruction("Greet.", 1)


def test_a_chat_template_that_drops_the_system_prompt_is_refused() -> None:
    dropping = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(PromptError, match="leaves out the system prompt"):
        encoder("chat", dropping).instruction("Greet.", 1)
    with pytest.raises(PromptError, match="leaves out the system prompt"):
        encoder("chat", dropping).input("Ann")
    with pytest.raises(PromptError, match="leaves out the system prompt"):
        encoder("chat", dropping).examples([Example("Greet.", "Ann", "Hi")])


@pytest.mark.parametrize(
    "mixing",
    [
        "{{ messages[1]['content'] }}|{{ messages[0]['content'] }}",  # the user speaks first
        "{{ messages[1]['content'] | length }}{{ messages[0]['content'] }}\n",
    ],
)
def test_a_template_that_lets_the_input_reach_the_instruction_is_refused(mixing: str) -> None:
    one = encoder("chat", mixing)
    for read in (one.input, lambda text: one.prompt("Greet.", text, 1)):
        with pytest.raises(PromptError, match="part of this conversation before the system prompt"):
            read("Annabel")
    with pytest.raises(PromptError, match="row 0: this tokenizer gives other ids"):
        one.examples([Example("Greet.", "Annabel", "Hi")])


def test_earlier_turns_are_never_left_out() -> None:
    """Some templates put the system prompt beside the last turn, behind all the others."""
    late = (
        "{% for m in messages[1:-1] %}{{ m['content'] }}\n{% endfor %}"
        "{{ messages[0]['content'] }}|{{ messages[-1]['content'] }}"
    )
    one = encoder("chat", late)
    assert spelled(one.input("Ann"), one.gist_id) == "|Ann"
    turns = (Turn("user", "Ann"), Turn("assistant", "Hi"), Turn("user", "Bob"))
    with pytest.raises(PromptError, match="part of this conversation before the system prompt"):
        one.input(turns)
    whole = encoder("chat", CHAT).input(turns)
    assert all(word in spelled(whole, one.gist_id) for word in ("Ann", "Hi", "Bob"))


class Bare:
    """A template of nothing but its parts."""

    separator = ""
    add_special_tokens = False

    def render(self, instruction: str, input: str, gist: str) -> str:
        return instruction + gist + input


def test_a_tokenizer_that_breaks_the_span_is_refused() -> None:
    """`<GIST>` as an ordinary word: two of them in a row are one unknown word."""
    words = {"<GIST>": 0, "Greet.": 1, " ": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "Greet."))
    )
    template: Template = Bare()
    with pytest.raises(
        PromptError, match=r"puts other tokens between gist tokens .found them at \[\]"
    ):
        PromptEncoder(tokenizer, template, 0).instruction("Greet.", 2)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Joins `:` and a following space, as byte-pair encodings may."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {":Ġ": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(":", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_row_whose_output_merges_with_its_prompt_is_left_out() -> None:
    tokenizer = merging_tokenizer()
    one = PromptEncoder(tokenizer, TEMPLATES["decoder"], add_gist_to_tokenizer(tokenizer))
    assert one.examples([Example("Greet.", "Ann", "Hi")]) == [None]


def test_an_empty_output() -> None:
    row = Example("Greet.", "Ann", "")
    (closed,) = encoder("encoder-decoder").examples([row])
    assert closed is not None
    assert closed.completion == [EOS]
    assert encoder("chat", CHAT).examples([row]) == [None]  # nothing to learn


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, PromptEncoder]:
    """Encoders of the published layouts: early LLaMA (sentencepiece) and T5."""
    made = {}
    for template, name in (("decoder", "llama_toy_gist"), ("encoder-decoder", "t5_toy_gist")):
        tokenizer = load_tokenizer(str(shared / "golden/tokenizers" / name))
        made[template] = PromptEncoder(tokenizer, TEMPLATES[template], gist_id_of(tokenizer))
    return made


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_published_tokenizers_apart_and_together(
    published: dict[str, PromptEncoder], template: str, k: int
) -> None:
    one = published[template]
    rows = one.examples([Example(i, x, "An answer.") for i, x in TEXTS])
    for (instruction, input), row in zip(TEXTS, rows, strict=True):
        whole = one.prompt(instruction, input, k)
        assert one.instruction(instruction, k) + one.input(input) == whole
        assert row is not None
        assert row.prompt(one.gist_id, k) == whole


def test_early_llama_tokenizers_swallow_white_space_around_the_gist(
    published: dict[str, PromptEncoder],
) -> None:
    """As the slow tokenizer did with a special token given as a plain string."""
    one = published["decoder"]
    tokens: list[Any] = one.tokenizer.convert_ids_to_tokens(one.prompt("Hi", "x", 2))
    assert tokens[:6] == ["<s>", "▁Instruction", ":", "▁Hi", GIST_TOKEN, GIST_TOKEN]
    assert tokens[6] == "▁Input"  # no newline, and a word mark as at the start of a text
    assert "<0x0A>" in tokens[7:]  # the newline before Output: is text


def test_t5_tokenizers_keep_one_mark_for_the_newline(published: dict[str, PromptEncoder]) -> None:
    one = published["encoder-decoder"]
    tokens: list[Any] = one.tokenizer.convert_ids_to_tokens(one.prompt("Hi", "x", 2))
    assert tokens[2:7] == ["▁Hi", "▁", GIST_TOKEN, GIST_TOKEN, "▁Input"]
    assert tokens[-1] == "</s>"


@pytest.mark.parametrize("template", TEMPLATES)
def test_wide_letters_are_not_a_gist_token(
    published: dict[str, PromptEncoder], template: str
) -> None:
    """Sentencepiece normalises full-width letters; they must not become `<GIST>`."""
    one = published[template]
    assert one.gist_id not in one.input("＜GIST＞")  # noqa: RUF001
