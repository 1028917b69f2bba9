"""Conversations of several turns as prompts: each template's own way."""

import pytest

from gistkit.errors import PromptError
from gistkit.prompts import GIST_TOKEN, TEMPLATES, ChatTemplate, Turn
from gistkit.testing import byte_tokenizer, tiny_gist_model

TURNS = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_earlier_turns_stand_before_the_input_as_examples_would() -> None:
    text = TEMPLATES["decoder"].render("Greet.", TURNS, GIST_TOKEN)
    assert text == "Instruction: Greet.\n<GIST>\nInput: a\nOutput: b\nInput: c\nOutput:"
    text = TEMPLATES["encoder-decoder"].render("Greet.", TURNS, GIST_TOKEN)
    assert text == "Instruction: Greet.\n<GIST>\nInput: a\nOutput: b\nInput: c"


def test_a_chat_template_gets_every_turn() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    text = ChatTemplate(tokenizer).render("Greet.", TURNS, GIST_TOKEN)
    assert text == "[system]Greet.<GIST>[user]a[assistant]b[user]c[assistant]"


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_turn_is_a_text(template: str) -> None:
    render = TEMPLATES[template].render
    assert render("Greet.", (Turn("user", "a"),), "") == render("Greet.", "a", "")


def test_instruction_and_conversation_apart_are_the_ids_of_both_together() -> None:
    encoder = tiny_gist_model().encoder
    ids = encoder.prompt("Greet.", TURNS, 2)
    assert ids == encoder.instruction("Greet.", 2) + encoder.input(TURNS)


def test_a_gist_token_in_any_turn_is_refused() -> None:
    with pytest.raises(PromptError, match=GIST_TOKEN):
        tiny_gist_model().encoder.input((Turn("user", "a"), Turn("assistant", GIST_TOKEN)))
