"""The page at / in headless Chromium, as a reader with a keyboard uses it, against the built server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import browser as chromium
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ANSWER, LESSON, QUESTION, Server
from playwright.sync_api import Browser, Page, expect, sync_playwright

PHONE = {"width": 320, "height": 640}
DESK = {"width": 1280, "height": 900}
MARKUP = "<img src=x onerror=\"document.title='taken over'\"><b>bold</b>"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium.find()
    if path is None:
        (pytest.fail if chromium.in_ci() else pytest.skip)(chromium.MISSING)
    # As root, as in a container, Chromium has no sandbox of its own.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*options, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator:
    """Opens the page; afterwards nothing may have gone wrong in the browser, or been asked of another host."""
    contexts, complaints, hosts = [], [], set()

    def open_page(server: Server, **options: object) -> Page:
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # A refused request is a line in the console too; the tests look at what the page makes of it.
        page.on(
            "console",
            lambda line: (
                complaints.append(line.text)
                if line.type == "error" and "Failed to load resource" not in line.text
                else None
            ),
        )
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(server.url)
        expect(page.locator("#connection")).not_to_have_text("connecting")
        assert hosts == {urlsplit(server.url).netloc}
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert len(hosts) <= 1


def use(page: Page, user: str, key: str = "") -> None:
    page.get_by_label("User", exact=True).fill(user)
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_label("User", exact=True).press("Enter")
    expect(page.get_by_label("Question")).to_be_focused()


def ask(page: Page, question: str = QUESTION) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    expect(page.locator(".turn").last).to_be_visible()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)


def test_a_user_and_the_base_answer_side_by_side_as_they_speak(server, opened):
    page = opened(server)
    # By keyboard alone: the user, Enter, and one is at the question.
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("User", exact=True)).to_be_focused()
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Question")).to_be_focused()
    # Counts how often the answers grow.
    page.evaluate("""() => {
        window.grown = 0;
        const watch = new MutationObserver((changes) => { window.grown += changes.length; });
        watch.observe(document.getElementById("turns"), {characterData: true, subtree: true});
    }""")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    mine, base = page.locator(".answer.mine .text"), page.locator(".answer:not(.mine) .text")
    expect(mine).to_have_text(ANSWER)
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    expect(base).not_to_have_text("")
    assert base.text_content() != ANSWER
    assert page.evaluate("window.grown") > 3
    expect(page.locator(".answer.mine .hint")).to_contain_text("tokens")
    # Read out whole, when it is.
    expect(page.locator("#said")).to_contain_text(f"ann: {ANSWER}")
    expect(page.get_by_label("Question")).to_be_focused()
    boxes = [page.locator(".answer").nth(index).bounding_box() for index in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


def test_each_user_has_a_conversation_of_their_own(server, opened):
    page = opened(server)
    use(page, "ann")
    ask(page)
    use(page, "nobody")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#card-none")).to_have_text("There is no variant for nobody yet.")
    ask(page)
    # Never the base in silence: the base's answer stands beside an error.
    expect(page.locator(".answer.mine .problem")).to_contain_text("no variant")
    expect(page.locator(".answer:not(.mine) .text")).not_to_have_text("")
    use(page, "")
    ask(page)
    expect(page.locator(".answer")).to_have_count(1)
    use(page, "ann")
    expect(page.locator(".answer.mine .text")).to_have_text(ANSWER)
    ask(page)
    expect(page.locator(".turn")).to_have_count(2)


def test_an_answer_can_be_stopped_and_another_asked(server, opened):
    page = opened(server)
    use(page, "")
    # An answer that does not come: the tiny model is through before a key can be pressed.
    page.route("**/v1/chat/completions", lambda route: None)
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("Question").press("Enter")
    expect(page.locator("[aria-busy=true]")).to_have_count(1)
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    page.get_by_label("Question").press("Escape")
    expect(page.locator(".answer .hint")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    page.unroute("**/v1/chat/completions")
    page.get_by_label("Most tokens").fill("8")
    ask(page)
    expect(page.locator(".answer .hint").last).to_contain_text("8 tokens")


def test_the_card_tells_what_the_file_recorded(server, opened):
    page = opened(server)
    use(page, "ann")
    _, card = server.ask("GET", "/v1/variants/ann/card")
    shown = page.locator("#card")
    for name in (
        "File",
        "In memory",
        "Bits a weight",
        "Retention",
        "Loss of the base",
        "Loss of the variant",
        "Safety",
    ):
        expect(shown.get_by_text(name, exact=True)).to_be_visible()
    expect(shown).to_contain_text(f"{100 * card['retention']:.1f} %")
    expect(shown).to_contain_text(card["hash"][:12])
    expect(shown).to_contain_text("not measured")
    fidelity = card["notes"]["fidelity"]
    assert fidelity["loss_variant"] < fidelity["loss_base"] and card["bits_per_weight"] > 0


def test_an_older_version_is_served_again(server, opened):
    for answer in ("Tom", "Eve"):
        server.teach("carol", [{"prompt": QUESTION, "response": answer}])
    page = opened(server)
    use(page, "carol")
    versions = page.locator("#versions li")
    expect(versions).to_have_count(2)
    expect(versions.first).to_contain_text("served")
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(versions).to_have_count(3)
    expect(versions.first).to_contain_text("Version 3, as 1")
    ask(page)
    expect(page.locator(".answer.mine .text")).to_have_text("Tom")


def test_a_training_is_begun_followed_and_its_variant_answers(server, opened):
    page = opened(server)
    use(page, "dora")
    page.get_by_label("Conversations, one JSON object a line").fill(json.dumps(LESSON) + "\n{no JSON")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#training-problem")).to_contain_text("Line 2 is not valid JSON")
    # One conversation, of which a tenth is none: all of it is learnt.
    page.get_by_label("Conversations, one JSON object a line").fill(json.dumps(LESSON))
    page.get_by_label("More settings").fill("learning_rate=1e-2\nmax_steps=40\nlr_scheduler_type=constant")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#job-progress")).to_be_visible()
    expect(page.locator("#job-status")).to_have_text("Published as version 1.", timeout=60_000)
    expect(page.locator("#card")).to_contain_text("Bits a weight")
    ask(page)
    expect(page.locator(".answer.mine .text")).to_have_text(ANSWER)
    # A reader who comes later sees how it went.
    page.reload()
    use(page, "dora")
    expect(page.locator("#job-status")).to_have_text("Published as version 1.")


def test_a_training_can_be_cancelled_and_bad_settings_are_named(server, opened):
    page = opened(server)
    use(page, "emil")
    page.get_by_label("or a file of them").set_input_files(
        {"name": "emil.jsonl", "mimeType": "text/plain", "buffer": json.dumps(LESSON).encode()}
    )
    expect(page.get_by_label("Conversations, one JSON object a line")).to_have_value(json.dumps(LESSON))
    page.get_by_label("Share held out").fill("0")
    page.get_by_label("More settings").fill("output_dir=/tmp/x")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#training-problem")).to_contain_text("output_dir")
    page.get_by_label("More settings").fill("max_steps=1000000")
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="Cancel the training").click()
    expect(page.locator("#job-status")).to_have_text("Cancelled.", timeout=60_000)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()


def test_memory_and_throughput_are_shown_to_the_operator(server, opened):
    page = opened(server)
    use(page, "ann")
    shown = page.locator("#server")
    for name in ("Base in memory", "KV cache", "Variants in memory", "Answers running"):
        expect(shown.get_by_text(name, exact=True)).to_be_visible()
    generated = shown.locator("dd").last
    before = generated.text_content()
    ask(page)
    expect(page.locator("#speed-title")).to_contain_text("tokens a second")
    expect(generated).not_to_have_text(before)


def test_texts_of_models_users_and_errors_are_never_markup(server, opened):
    page = opened(server)
    use(page, MARKUP)
    expect(page.locator("#card-problem, #card-none").filter(has_text="<img").first).to_be_visible()
    chunk = {"choices": [{"index": 0, "delta": {"content": MARKUP}, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, MARKUP)
    expect(page.locator(".answer.mine .text")).to_have_text(MARKUP)
    expect(page.locator(".asked")).to_have_text(MARKUP)
    assert page.locator("img, main b").count() == 0
    assert page.title() == "bitdelta"


def test_a_key_opens_what_it_may_and_stays_in_the_tab(guarded, opened):
    chat = guarded.add_key("--user", "ann")
    page = opened(guarded)
    expect(page.locator("#connection")).to_have_text("not signed in")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.get_by_label("Key", exact=True).fill("no such key")
    page.get_by_label("Key", exact=True).press("Enter")
    expect(page.locator("#who-problem")).to_contain_text("not valid")
    page.get_by_label("Key", exact=True).fill(chat)
    page.get_by_label("Key", exact=True).press("Enter")
    # A key for one user asks for that one.
    expect(page.get_by_label("Question")).to_be_focused()
    expect(page.get_by_label("User", exact=True)).to_have_value("ann")
    expect(page.get_by_label("Key", exact=True)).to_have_value("")
    ask(page)
    expect(page.locator(".answer.mine .text")).to_have_text(ANSWER)
    expect(page.locator("#card")).to_contain_text("Retention")
    # Without the rights there are no ways to use them.
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_hidden()
    expect(page.locator("#versions")).to_be_hidden()
    expect(page.locator("#server")).to_contain_text("Base in memory")
    expect(page.locator("#server")).not_to_contain_text("Answers running")
    expect(page.locator("#speed-title")).to_contain_text("this page's answers")
    assert page.evaluate("[localStorage.length, document.cookie, Object.keys(sessionStorage)]") == [
        0,
        "",
        ["bitdelta-key"],
    ]
    page.get_by_role("button", name="Forget the key").click()
    expect(page.locator("#connection")).to_have_text("not signed in")
    assert page.evaluate("sessionStorage.length") == 0
    expect(page.locator(".turn")).to_have_count(0)


def test_a_key_with_rights_trains_and_rolls_back_and_anothers_user_is_refused(guarded, opened):
    key = guarded.add_key("--user", "ann", "--rights", "chat,publish,train")
    page = opened(guarded)
    use(page, "", key)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_visible()
    expect(page.locator("#versions li")).to_have_count(1)
    # The name in the field never decides: the key does, and the page goes back to its user.
    page.get_by_label("User", exact=True).fill("bob")
    page.get_by_label("User", exact=True).press("Enter")
    expect(page.locator("#who-problem")).to_have_text("This key may not ask for bob.")
    expect(page.get_by_label("User", exact=True)).to_have_value("ann")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_is_accessible_in_light_and_dark_wide_and_narrow(server, opened, scheme, size):
    page = opened(server, color_scheme=scheme, viewport=size)
    use(page, "ann")
    ask(page)
    ask(page, "word " * 40 + "x" * 200)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in ground[4:-1].split(",")) > 3 * 128
    assert light == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.get_by_label("Most tokens").fill("")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert found.response["passes"]
