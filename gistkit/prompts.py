"""From an instruction and an input to token ids with a gist span.

    Example ── Template ──> "Instruction: ... <GIST><GIST> Input: ..." ── PromptEncoder ──> ids

A template is text; the encoder turns it into ids and guarantees that an instruction and an input
encoded apart give the ids of the two encoded together. That guarantee is what lets a gist be made
before its input is known. Knows nothing about masks or models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gistkit.errors import OptionError, PromptError

if TYPE_CHECKING:  # transformers takes seconds to import; data needs only Example
    from transformers import PreTrainedTokenizerBase

GIST_TOKEN = "<GIST>"


@dataclass(frozen=True, slots=True)
class Example:
    """One row of instruction data. `input` is "" where there is none."""

    instruction: str
    input: str = ""
    output: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a conversation. `role` is "user" or "assistant"."""

    role: str
    text: str


Input = str | Sequence[Turn]
"""What follows the instruction: one text, or turns that begin and end with the user's."""


class Template(Protocol):
    """How a prompt reads."""

    @property
    def separator(self) -> str:
        """Text between the prompt and the output."""

    @property
    def add_special_tokens(self) -> bool:
        """Whether the tokenizer adds its own first and last tokens."""

    def render(self, instruction: str, input: Input, gist: str) -> str:
        """The prompt's text, with `gist` where the gist tokens go."""


@dataclass(frozen=True, slots=True)
class InstructionTemplate:
    """The published templates: behaviour of LLaMA with `closing`, of T5 without.

    >>> InstructionTemplate("\\nOutput:").render("Greet.", "Ann", "<GIST>")
    'Instruction: Greet.\\n<GIST>\\nInput: Ann\\nOutput:'

    It was published for one input and one output; earlier turns of a conversation stand before the
    input in the same form, as examples would.
    """

    closing: str
    separator: str = " "
    add_special_tokens: bool = True

    def render(self, instruction: str, input: Input, gist: str) -> str:
        """The prompt's text; the line of an empty input is left out."""
        turns = [Turn("user", input)] if isinstance(input, str) else input
        middle = "".join(
            f"\n{'Input' if turn.role == 'user' else 'Output'}: {turn.text}"
            for turn in turns
            if turn.text
        )
        return f"Instruction: {instruction}\n{gist}{middle}{self.closing}"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The tokenizer's own chat template: the system prompt is what a gist replaces."""

    tokenizer: "PreTrainedTokenizerBase"
    separator: str = ""
    add_special_tokens: bool = False

    def render(self, instruction: str, input: Input, gist: str) -> str:
        """The conversation's text up to where the assistant speaks (raises PromptError)."""
        turns = [Turn("user", input)] if isinstance(input, str) else input
        messages = [
            {"role": "system", "content": instruction + gist},
            *({"role": turn.role, "content": turn.text} for turn in turns),
        ]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja raises what the template's author chose
            what = "a system prompt" if len(turns) == 1 else "this conversation"
            raise PromptError(
                f"the chat template refuses {what} ({error}); use template='decoder'"
            ) from error
        if str(text).count(gist) != 1:
            raise PromptError(
                "the chat template leaves out the system prompt, or repeats it; "
                "use template='decoder'"
            )
        return str(text)


TEMPLATES: Mapping[str, InstructionTemplate] = {
    "decoder": InstructionTemplate(closing="\nOutput:"),
    "encoder-decoder": InstructionTemplate(closing=""),
}
TEMPLATE_NAMES = (*TEMPLATES, "chat")


def make_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """One of "decoder", "encoder-decoder" (both published) and "chat" (raises OptionError)."""
    if name == "chat":
        if not tokenizer.chat_template:
            raise OptionError("this tokenizer has no chat template; use template='decoder'")
        return ChatTemplate(tokenizer)
    if name not in TEMPLATES:
        known = ", ".join(TEMPLATE_NAMES)
        raise OptionError(f"unknown template {name!r}; choose one of {known}")
    return TEMPLATES[name]


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Ids of one training row; the gist span of any k goes between `instruction` and `input`.

    `completion` ends with eos. For an encoder-decoder it is the decoder's target, and `input` ends
    the source.
    """

    instruction: list[int]
    input: list[int]
    completion: list[int]

    def prompt(self, gist_id: int, num_gist_tokens: int) -> list[int]:
        """Ids of the prompt, length P + K + L."""
        return [*self.instruction, *[gist_id] * num_gist_tokens, *self.input]


class PromptEncoder:
    """Turns text into ids around a span of gist tokens.

    Text of a user that contains `<GIST>` is refused, so a gist id always comes from the template.

    Example (a toy tokenizer with one id a word, k = 2)::

        encoder.instruction("Greet.", 2)    # <s> Instruction : Greet . G G
        encoder.input("Ann")                #                               Input : Ann Output :
        encoder.prompt("Greet.", "Ann", 2)  # both, checked to be the ids of the whole text
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", template: Template, gist_id: int
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.gist_id = gist_id

    def instruction(self, instruction: str, num_gist_tokens: int) -> list[int]:
        """Ids up to and including the gist span: what `compress` reads. Length P + K.

        Raises:
            PromptError: the instruction is empty or holds `<GIST>`, or the span came out broken.
            OptionError: `num_gist_tokens` is below one.
        """
        if num_gist_tokens < 1:
            raise OptionError(f"`num_gist_tokens` must be at least 1, not {num_gist_tokens}")
        check_instruction(instruction)
        gist = GIST_TOKEN * num_gist_tokens
        text = self.template.render(instruction, "", gist)
        start = text.rindex(gist)
        ids = self._encode(text[: start + len(gist)])
        return ids[: self._end_of_span(ids, num_gist_tokens)]

    def input(self, input: Input) -> list[int]:
        """Ids that follow the gist span: what is read on top of a gist. Length L.

        A gist token stands in front while encoding, and is cut off again, so that the first word
        is encoded as it is after a gist.

        Raises:
            PromptError: the input holds `<GIST>`, or a part of it would stand before the gist.
        """
        for text in [input] if isinstance(input, str) else [turn.text for turn in input]:
            check_text("input", text)
        text = self.template.render("-", input, GIST_TOKEN)
        start = text.index(GIST_TOKEN)
        if text[:start] != self.template.render("-", "", GIST_TOKEN)[:start]:
            raise PromptError(
                "the chat template puts part of this conversation before the system prompt, where "
                "a gist cannot have seen it; use template='decoder'"
            )
        ids = self._encode(text[start:])
        return ids[self._end_of_span(ids, 1) :]

    def prompt(self, instruction: str, input: Input, num_gist_tokens: int) -> list[int]:
        """Ids of the whole prompt. Length P + K + L.

        Raises:
            PromptError: as above, or the tokenizer joins the instruction and the input, so that a
                gist made alone would not be the gist of this prompt.
        """
        ids = self._encode(self.template.render(instruction, input, GIST_TOKEN * num_gist_tokens))
        if ids != self.instruction(instruction, num_gist_tokens) + self.input(input):
            raise PromptError(self._joined(instruction))
        return ids

    def examples(
        self, examples: Sequence[Example], *, first: int = 0
    ) -> list[EncodedExample | None]:
        """Ids of training rows; None where an output's first id merges with its prompt.

        None is what the published collator drops as well (an empty output, for instance).

        Args:
            first: the number of the first row, for messages.

        Raises:
            PromptError: as `prompt`, or an output holds `<GIST>`; the message names the row.
        """
        for number, row in enumerate(examples, first):
            check_example(row, number)
        render = self.template.render
        texts = [render(row.instruction, row.input, GIST_TOKEN) for row in examples]
        alone = [render(row.instruction, "", GIST_TOKEN) for row in examples]
        firsts = self._encode_all([t[: t.rindex(GIST_TOKEN) + len(GIST_TOKEN)] for t in alone])
        seconds = self._encode_all([t[t.index(GIST_TOKEN) :] for t in texts])
        wholes = self._encode_all(texts)
        eos = self.tokenizer.eos_token_id
        closed = bool(wholes) and wholes[0][-1] == eos  # encoder-decoder: outputs stand alone
        between = self.template.separator
        outputs = self._encode_all(
            [
                row.output if closed else t + between + row.output
                for t, row in zip(texts, examples, strict=False)
            ]
        )
        encoded: list[EncodedExample | None] = []
        for row, before, second, whole, output in zip(
            examples, firsts, seconds, wholes, outputs, strict=True
        ):
            instruction = before[: self._end_of_span(before, 1) - 1]
            after = second[self._end_of_span(second, 1) :]
            if whole != [*instruction, self.gist_id, *after]:
                number = first + len(encoded)
                raise PromptError(f"row {number}: {self._joined(row.instruction)}")
            start = 0 if closed else len(whole)
            if output[:start] != whole[:start] or len(output) == start:
                encoded.append(None)
                continue
            ended = output[start:] if output[-1] == eos else [*output[start:], eos]
            encoded.append(EncodedExample(instruction, after, ended))
        return encoded

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []  # tokenizers refuse an empty batch
        special = self.template.add_special_tokens
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=special)["input_ids"]
        return ids

    def _joined(self, instruction: str) -> str:
        return (
            "this tokenizer gives other ids for instruction and input apart than for both "
            f"together (instruction {instruction[:40]!r}); use another template"
        )

    def _end_of_span(self, ids: list[int], num_gist_tokens: int) -> int:
        found = [i for i, token in enumerate(ids) if token == self.gist_id]
        if len(found) != num_gist_tokens or found[-1] - found[0] != num_gist_tokens - 1:
            raise PromptError(
                f"this tokenizer puts other tokens between gist tokens (found them at {found}); "
                "add <GIST> to it with GistModel.from_base"
            )
        return found[-1] + 1


def check_example(example: Example, number: int) -> None:
    """Raise PromptError, naming the row, for an example that cannot be a training row."""
    try:
        check_instruction(example.instruction)
        check_text("input", example.input)
        check_text("output", example.output)
    except PromptError as error:
        raise PromptError(f"row {number}: {error}") from None


def check_instruction(instruction: str) -> None:
    """Raise PromptError for an instruction that is empty or holds `<GIST>`."""
    if not instruction.strip():
        raise PromptError("the instruction is empty; give the text to compress")
    check_text("instruction", instruction)


def check_text(what: str, text: str) -> None:
    """Raise PromptError where a user's text holds `<GIST>` (never taken for a gist) or no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the {what} is not valid text (at character {error.start}); give it as UTF-8"
        ) from error
    index = text.find(GIST_TOKEN)
    if index >= 0:
        raise PromptError(
            f"the {what} contains {GIST_TOKEN} (at character {index}); remove it: gist tokens are "
            "placed by the template"
        )
