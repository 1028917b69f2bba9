"""The playground in a real browser: what a user does and sees."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, expect

from gistkit import Gist, GistModel
from gistkit.serving.keys import Keys, new_key
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.store import GistStore
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running
from tests.serving.page.page_steps import Visit, ask, compress, facts, kilobytes

pytestmark = [pytest.mark.slow, pytest.mark.browser]

INSTRUCTION = "Everything costs nine coins. You are Nora."


@pytest.fixture(scope="module")
def model() -> GistModel:
    return GistModel.from_pretrained("toy")


@pytest.fixture
def real(model: GistModel, tmp_path: Path) -> Iterator[Running]:
    with (
        GistStore(tmp_path / "store") as store,
        running(TransformersEngine(model, store, name="toy")) as found,
    ):
        yield found


def test_an_instruction_is_compressed_and_its_gist_is_told(
    real: Running, visit: Visit, model: GistModel
) -> None:
    page = visit(real)
    page.get_by_label("Inputs like those to come").fill("Tom wants a cake\nA boat for Ada please")
    compress(page, INSTRUCTION, k="2")
    tokens = model.compress(INSTRUCTION, num_gist_tokens=2).provenance[0].instruction_tokens
    told = page.locator("#gist").inner_text()
    found = re.fullmatch(rf"{tokens} tokens became 2: ([\d.]+ kB), in \d+(\.\d)? m?s\.", told)
    assert found is not None, told
    # 2 (keys, values) x 4 layers x 4 heads x 32 numbers x 4 bytes x 2 tokens, and what it says
    # of itself
    assert 8.2 < kilobytes(found[1]) < 12
    fidelity = page.locator("#fidelity")
    expect(fidelity).to_contain_text("of 1, on the inputs given")
    score = float(re.search(r"Fidelity ([\d.]+) of 1", fidelity.inner_text())[1])
    assert score > 0.9
    parts = fidelity.locator("dt").all_inner_texts()
    assert {"divergence", "top1", "prefix", "carried", "numbers", "names"} <= set(parts)
    row = page.locator("#gists tr")
    expect(row).to_have_count(1)
    cells = row.locator("td.number").all_inner_texts()
    assert cells[:2] + cells[3:] == [str(tokens), "2", f"{score:.2f}"]
    assert kilobytes(found[1]) < kilobytes(cells[2]) < 12  # the fidelity is in the file
    compress(page, INSTRUCTION, k="2")
    expect(page.locator("#gist")).to_contain_text("kept since earlier")


def test_both_sides_answer_beside_each_other(real: Running, visit: Visit, model: GistModel) -> None:
    page = visit(real)
    compress(page, INSTRUCTION)
    ask(page, "Tom wants a cake")
    right = model.generate("Tom wants a cake", model.compress(INSTRUCTION))[0]
    full = model.generate("Tom wants a cake", instructions=INSTRUCTION)[0]
    for side, answer in (("gist", right), ("full", full)):
        expect(page.locator(f"#talk-{side} .answered")).to_have_text(answer)
        expect(page.locator(f"#talk-{side} .asked")).to_have_text("Tom wants a cake")
    gist, full_facts = facts(page, "gist"), facts(page, "full")
    for found in (gist, full_facts):
        assert re.fullmatch(r"\d+ tokens/s", found["speed"])
        assert re.fullmatch(r"\d+(\.\d)? m?s", found["first token"])
    assert kilobytes(gist["KV"]) < kilobytes(full_facts["KV"])
    assert int(gist["prompt"].split()[0]) < int(full_facts["prompt"].split()[0])
    expect(page.get_by_label("Input", exact=True)).to_be_focused()


def test_one_side_can_answer_after_the_other(server: Running, visit: Visit) -> None:
    page = visit(server)
    compress(page, "Be kind.")
    page.get_by_label("one after the other").check()
    ask(page, "SLOW walk")
    expect(page.locator("#talk-gist .answered")).to_contain_text("gist:")
    expect(page.locator("#talk-full .answered")).to_have_count(0)
    expect(page.locator("#talk-full .answered")).to_have_text("full: Be kind. SLOW walk")
    expect(page.locator("#talk-gist .answered")).to_have_text("gist: SLOW walk")


def test_answers_are_shown_as_they_come(server: Running, visit: Visit) -> None:
    page = visit(server)
    compress(page, "Be kind.")
    page.evaluate(
        """() => {
            const talk = document.getElementById("talk-gist");
            window.seen = [];
            new MutationObserver(() => window.seen.push(
                [talk.querySelector(".answered")?.textContent, talk.getAttribute("aria-busy")]
            )).observe(talk, {childList: true, subtree: true});
        }"""
    )
    ask(page, "SLOW one two three")
    expect(page.locator("#talk-gist .answered")).to_have_text("gist: SLOW one two three")
    expect(page.locator("#talk-gist")).not_to_have_attribute("aria-busy", "true")
    seen = page.evaluate("window.seen")
    texts = [text for text, _ in seen if text]
    assert len(set(texts)) >= 3
    assert all(texts[-1].startswith(text) for text in texts)
    assert {busy for text, busy in seen if text} == {"true"}  # it is read out when it is whole


def test_a_conversation_goes_on_and_begins_anew(server: Running, visit: Visit) -> None:
    page = visit(server)
    compress(page, "Be kind.")
    ask(page, "Hello")
    expect(page.locator("#talk-full .answered")).to_have_text("full: Be kind. Hello")
    ask(page, "Again")
    expect(page.locator("#talk-gist .answered").nth(1)).to_have_text(
        "gist: Hello gist: Hello Again"
    )
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".talk p")).to_have_count(0)
    ask(page, "Again")
    expect(page.locator("#talk-gist .answered")).to_have_text("gist: Again")


def test_an_answer_can_be_stopped(server: Running, visit: Visit) -> None:
    page = visit(server)
    compress(page, "Be kind.")
    ask(page, "SLOW " + "word " * 50)
    expect(page.locator("#talk-gist .answered")).to_contain_text("SLOW word")
    page.get_by_role("button", name="Stop").click()
    for side in ("gist", "full"):
        expect(page.locator(f"#talk-{side} .answered")).to_contain_text("(stopped)")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    page.wait_for_timeout(500)
    assert server.engine.running == 0


def test_a_failure_is_told_where_it_happened(server: Running, visit: Visit) -> None:
    page = visit(server)
    ask(page, "Hello")
    expect(page.locator("#notice")).to_have_text("Compress an instruction first.")
    compress(page, "Be kind.")
    expect(page.locator("#notice")).to_have_text("")
    ask(page, "one BREAK")
    expect(page.locator("#talk-gist .failed")).to_have_text("the engine stopped in the middle")
    page.get_by_label("Instruction", exact=True).fill("BUSY")
    page.get_by_role("button", name="Compress").click()
    expect(page.locator("#notice")).to_have_text("too many instructions wait")


def test_a_server_that_is_gone_is_told(fake: FakeEngine, visit: Visit) -> None:
    with running(fake) as server:
        page = visit(server)
    page.get_by_label("Instruction", exact=True).fill("Be kind.")
    page.get_by_role("button", name="Compress").click()
    expect(page.locator("#notice")).to_have_text("the server does not answer")


def test_a_gist_that_is_not_safe_is_said_to_be_unused(server: Running, visit: Visit) -> None:
    server.engine.score = 0.2
    page = visit(server)
    page.get_by_label("Inputs like those to come").fill("Hello")
    compress(page, "Be kind.")
    expect(page.locator("#fidelity")).to_contain_text("Fidelity 0.20 of 1, on the inputs given")
    ask(page, "Hello")
    expect(page.locator("#talk-gist .answered")).to_have_text("full: Be kind. Hello")
    expect(page.locator("#talk-gist .failed")).to_contain_text(
        "Answered from the full prompt: its fidelity 0.200 is below 0.96"
    )
    expect(page.locator("#talk-full .failed")).to_have_count(0)


def test_fidelity_on_inputs_of_the_models_own_is_said_to_be_that(
    server: Running, visit: Visit
) -> None:
    page = visit(server)
    compress(page, "Be kind.")
    expect(page.locator("#fidelity")).to_have_text("")
    page.get_by_role("button", name="Measure fidelity").click()
    expect(page.locator("#fidelity")).to_contain_text("0.99 of 1, on inputs the model made up")


def test_gists_are_listed_pinned_taken_away_and_deleted(
    server: Running, visit: Visit, tmp_path: Path
) -> None:
    page = visit(server, accept_downloads=True)
    expect(page.get_by_text("None yet.")).to_be_visible()
    for text in ("Be kind.", "Be brief."):
        compress(page, text)
    expect(page.locator("#gists tr")).to_have_count(2)
    store = server.service.store
    (one,) = [entry for entry in store.entries() if entry.instruction_length][:1]
    short = one.id[:12]

    page.get_by_role("button", name=f"Pin {short}", exact=True).click()
    expect(page.get_by_role("button", name=f"Unpin {short}")).to_be_focused()
    expect(page.locator("#said")).to_have_text(f"{short} is pinned.")
    assert store.find(one.id).pinned
    page.get_by_role("button", name=f"Unpin {short}").click()
    expect(page.get_by_role("button", name=f"Pin {short}", exact=True)).to_be_focused()
    assert not store.find(one.id).pinned

    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download {short}").click()
    download.value.save_as(tmp_path / "it.safetensors")
    assert Gist.load(tmp_path / "it.safetensors").num_tokens == one.num_tokens

    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name=f"Delete {short}").click()
    assert store.find(one.id) is not None
    asked: list[str] = []

    def yes(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.once("dialog", yes)
    page.get_by_role("button", name=f"Delete {short}").click()
    expect(page.locator("#gists tr")).to_have_count(1)
    expect(page.get_by_role("heading", name="Gists on this server")).to_be_focused()
    assert short in asked[0]
    assert store.find(one.id) is None


def test_a_key_is_asked_for_and_kept_for_the_tab(
    fake: FakeEngine, visit: Visit, tmp_path: Path
) -> None:
    key = new_key(tmp_path / "keys.json", "me", ())
    with running(fake, keys=Keys.read(tmp_path / "keys.json")) as server:
        page = visit(server)
        expect(page.locator("#notice")).to_have_text("This server wants an API key.")
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("gist-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("no valid API key")
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Model: tiny")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_hidden()
        compress(page, "Be kind.")
        ask(page, "Hello")
        expect(page.locator("#talk-full .answered")).to_have_text("full: Be kind. Hello")
        page.reload()
        expect(page.get_by_text("Model: tiny")).to_be_visible()
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []


def test_texts_are_never_read_as_html(server: Running, visit: Visit) -> None:
    page = visit(server)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    compress(page, evil)
    ask(page, evil)
    expect(page.locator("#talk-gist .answered")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#using")).to_contain_text("<img")
    assert page.locator("img").count() == 0
    assert dialogs == []
