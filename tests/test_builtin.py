"""The model in the box is a stock one, small, and answers through everything that is built on `generate`."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import vitcop
from vitcop import builtin


@pytest.fixture(scope="module")
def parts():
    model = AutoModelForImageTextToText.from_pretrained(builtin.MODEL_PATH, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(builtin.MODEL_PATH)


def test_it_fits_the_package():
    assert sum(file.stat().st_size for file in builtin.MODEL_PATH.iterdir()) < 20_000_000
    assert AutoModelForImageTextToText.from_pretrained(builtin.MODEL_PATH).dtype == torch.bfloat16


def test_pipelines_and_chat_templates_work(parts):
    model, processor = parts
    picture, question = Image.open(builtin.EXAMPLE_PICTURE), builtin.example_question()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, content[1]]}], add_generation_prompt=True
    )
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(retention=1 / 9)) as pruning:
        expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        kept = pruning.report.stages[-1].kept()
        answer = ask(text=messages, max_new_tokens=5, do_sample=False, return_full_text=False)
    assert pruning.report.stages[-1].kept() == kept
    assert answer[0]["generated_text"].strip() == processor.decode(expected, skip_special_tokens=True).strip()
