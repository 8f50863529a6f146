"""The page in a browser: what a person does on it, and what comes out. Pictures of it are left in build/app."""

import threading
from pathlib import Path
from shutil import which

import pytest
from clips import greys, write_clip
from families import FAMILIES
from PIL import Image
from stand_in import StandIn
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("gradio", reason="needs Gradio and Playwright; `make test-app` installs them in an environment")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright; `make test-app` installs it")
CHROMIUM = which("chromium")
if CHROMIUM is None:
    pytest.skip("needs chromium, as Debian's package has it", allow_module_level=True)

import vitcop
from vitcop.app.asking import Model
from vitcop.app.page import make_page, serve_page
from vitcop.builtin import EXAMPLE_PICTURE, MODEL_PATH
from vitcop.inputs.pictures import MOST_PIXELS

SHOTS = Path(__file__).parents[2] / "build" / "app"
WAIT = 60_000  # milliseconds, on a machine that has other work


@pytest.fixture(scope="module")
def model():
    loaded = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32").eval()
    return Model("box", loaded, AutoProcessor.from_pretrained(MODEL_PATH))


@pytest.fixture(scope="module")
def address(model):
    page = make_page({"box": model}, list(vitcop.METHODS))
    yield serve_page(page, "127.0.0.1", None, wait=False)
    page.close()


@pytest.fixture(scope="module")
def address_of_clips():
    """A page whose model takes videos; the one in the box takes none."""
    family = FAMILIES["qwen2_vl"]
    model = Model("tiny", family.model(), StandIn(family, family.visual("video", size=0, seed=0)))
    page = make_page({"tiny": model}, list(vitcop.METHODS))
    yield serve_page(page, "127.0.0.1", None, wait=False)
    page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1500, "height": 1300})
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.get_by_text("visual tokens on average").wait_for()
    yield page
    page.close()


def ask(page, question=None):
    if question is not None:
        page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()


def choose(page, side, method):
    box = page.get_by_label("Method").nth(side)
    box.click()
    page.get_by_role("option", name=method, exact=True).click()


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_two_methods_answer_side_by_side_and_show_what_they_kept(page, model):
    choose(page, 1, "census")
    ask(page)
    page.locator(".vitcop-stages").nth(1).wait_for()
    picture = (Image.open(EXAMPLE_PICTURE).convert("RGB"),)
    question = page.get_by_label("Question").input_value()
    methods = vitcop.ViTCoP(retention=0.11), vitcop.Census(retention=0.11)
    said = [model.answer(picture, question, method, 64) for method in methods]
    assert page.locator("h3").all_inner_texts() == [one.text for one in said]
    drawn = page.locator(".vitcop-stages")
    for side, one in enumerate(said):
        stages = drawn.nth(side).locator("svg")
        assert stages.count() == len(one.report.stages)
        for number, stage in enumerate(one.report.stages):
            assert stages.nth(number).locator("rect.kept").count() == stage.after[0]
    shot(page, "two-methods")


def test_the_slider_tells_at_once_what_is_left(page):
    before = page.get_by_text("visual tokens on average").first.inner_text()
    amount = page.get_by_role("spinbutton").first
    amount.fill("0.5")
    amount.press("Enter")
    page.get_by_text("162").first.wait_for()  # of 324
    assert page.get_by_text("visual tokens on average").first.inner_text() != before
    shot(page, "slider")


def test_a_request_that_fails_says_why_in_one_line_and_the_other_side_answers(page):
    choose(page, 0, "knorm")
    amount = page.get_by_role("spinbutton").first
    amount.fill("0.05")
    amount.press("Enter")
    ask(page)
    page.locator("h3").wait_for()
    alerts = page.get_by_role("alert").all_inner_texts()
    assert alerts and all("the smallest that knorm" in text and "\n" not in text for text in alerts)
    assert page.locator("h3").count() == 1
    shot(page, "refused")
    ask(page, " ")
    page.get_by_text("There is no question; type one.").first.wait_for()
    ask(page, "word " * 500)
    page.get_by_text("A question has at most 2,000 characters").first.wait_for()


def test_a_fault_takes_the_place_of_the_last_answer_and_tells_no_secret(page, model, monkeypatch):
    ask(page)
    page.locator("h3").nth(1).wait_for()

    def broken(*asked):
        raise RuntimeError("/secret/folder")

    monkeypatch.setattr(Model, "answer", broken)
    ask(page)
    page.get_by_text("This failed with RuntimeError").nth(1).wait_for()
    assert page.locator("h3").count() == 0 and "secret" not in page.content()


def test_what_is_no_picture_or_too_large_is_refused(page, tmp_path):
    side = int(MOST_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "large.png")
    refused = page.get_by_text("which are too many").first
    refused.wait_for()
    assert refused.inner_text().startswith(f"large.png has {side} x {side} pixels")
    shot(page, "too-large")


def test_a_clip_takes_the_place_of_the_picture_and_every_frame_that_became_a_grid_is_shown(
    browser, address_of_clips, tmp_path
):
    page = browser.new_page(viewport={"width": 1500, "height": 1300})
    page.set_default_timeout(WAIT)
    page.goto(address_of_clips)
    page.get_by_text("A short clip in place of the picture").click()
    clip = write_clip(tmp_path / "clip.mp4", greys(20))
    page.locator("input[type=file]").last.set_input_files(clip)
    page.get_by_text("clip.mp4").first.wait_for()
    ask(page, "what happens?")
    page.locator("h3").nth(1).wait_for()
    stages = page.locator(".vitcop-stages").first
    grids = len(FAMILIES["qwen2_vl"].visual("video", size=0, seed=0).pixels) // FAMILIES["qwen2_vl"].frames_per_grid
    assert stages.locator("svg").count() == 3 * grids  # of ViTCoP
    shot(page, "clip")
    page.close()


def test_a_phone_has_all_of_it_below_each_other(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.get_by_text("visual tokens on average").wait_for()
    ask(page)
    page.locator("h3").nth(1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "phone")
    page.close()


def test_people_at_once_get_their_own_answers(browser, address, model):
    questions = ("what color is the circle?", "how many stars are there?", "what number is on the sign?")
    pages = [browser.new_page() for _ in questions]
    for each, question in zip(pages, questions, strict=True):
        each.set_default_timeout(WAIT)
        each.goto(address)
        each.get_by_text("visual tokens on average").wait_for()
        ask(each, question)
    picture = (Image.open(EXAMPLE_PICTURE).convert("RGB"),)
    for each, question in zip(pages, questions, strict=True):
        each.locator("h3").nth(1).wait_for()
        expected = [model.answer(picture, question, method, 64).text for method in (vitcop.ViTCoP(0.11), None)]
        assert each.locator("h3").all_inner_texts() == expected
        each.close()


def test_nothing_listens_for_others(address):
    assert address.startswith("http://127.0.0.1:")
    assert threading.active_count() < 100
