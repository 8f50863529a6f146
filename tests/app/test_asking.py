"""Several people at once ask one model, and get what each would have got alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.app.asking import Model
from vitcop.builtin import MODEL_PATH
from vitcop.scenes import scene

METHODS = (None, vitcop.ViTCoP(retention=1 / 9), vitcop.VisionZip(retention=1 / 9), vitcop.Census(retention=1 / 3))


@pytest.fixture(scope="module")
def model():
    loaded = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32").eval()
    return Model("box", loaded, AutoProcessor.from_pretrained(MODEL_PATH))


def hooks(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.model.modules())


def test_answers_of_many_at_once_do_not_mix(model):
    drawn = [scene(seed, "test") for seed in range(2)]
    asked = [
        ((one.picture,), question.text, method, 8)
        for one in drawn
        for question in one.questions[::3]
        for method in METHODS
    ]
    model.answer(*asked[0])  # transformers hooks its own modules when they first run
    before = hooks(model)
    alone = [model.answer(*each) for each in asked]
    assert len({answer.text for answer in alone}) > 2
    with ThreadPoolExecutor(8) as people:
        together = list(people.map(lambda each: model.answer(*each), asked))
    assert [(one.text, one.stages) for one in together] == [(one.text, one.stages) for one in alone]
    assert hooks(model) == before
    assert [one.report and one.report.method for one in alone[:4]] == [None, "vitcop", "visionzip", "census"]


def test_a_refusal_leaves_the_model_to_the_next(model):
    (picture, question) = scene(0, "test").picture, scene(0, "test").questions[0].text
    before = model.answer((picture,), question, METHODS[1], 8)
    with pytest.raises(vitcop.BudgetError, match="the smallest that fastv"):
        model.answer((picture,), question, vitcop.FastV(retention=0.01), 8)
    assert model.answer((picture,), question, METHODS[1], 8).text == before.text


def test_what_is_foretold_is_what_comes_out(model):
    picture, question = scene(0, "test").picture, scene(0, "test").questions[0].text
    plan = model.plan((picture,), METHODS[1])
    report = model.answer((picture,), question, METHODS[1], 1).report
    assert list(plan.visual_tokens) == report.visual_tokens()
