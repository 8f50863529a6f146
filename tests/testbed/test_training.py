"""How the testbed is trained: what it is asked behind one picture is what it is asked alone."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from training.testbed import measure
from training.testbed.cutouts import ENTRIES
from training.testbed.packing import Packer, embed, in_turn
from vitcop import builtin, testbed
from vitcop.photos import scene
from vitcop.photos.catalogue import NOUNS
from vitcop.photos.shelf import shipped
from vitcop.quality import Case
from vitcop.quality.reader import Reader
from vitcop.testbed.processor import make_processor

VISUAL = 256


@pytest.fixture(scope="module")
def processor():
    tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL_PATH)
    # SmolLM2's puts no token in front of a text, which its template does.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    return make_processor(tokenizer)


@pytest.fixture(scope="module")
def model(processor):
    config = testbed.config()
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 2
    config.text_config.vocab_size = len(processor.tokenizer)
    config.image_token_id = processor.image_token_id
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


def test_packed_questions_are_answered_as_each_alone(model, processor):
    scenes = [scene(seed) for seed in (1, 2)]
    asked = [in_turn(drawn.questions, most) for drawn, most in zip(scenes, (5, 3), strict=True)]
    packer, decoder = Packer(processor), model.model.language_model
    rows = [packer.row(questions, VISUAL) for questions in asked]
    with torch.no_grad():
        pixels = processor.image_processor([drawn.picture for drawn in scenes], return_tensors="pt").pixel_values
        visual = torch.stack(list(model.get_image_features(pixels).pooler_output))
        embedded, positions, seen = embed(rows, visual, decoder.embed_tokens)
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        hidden = decoder(inputs_embeds=embedded, position_ids=positions, attention_mask=bias).last_hidden_state
        for number, (questions, row) in enumerate(zip(asked, rows, strict=True)):
            places = [len(row.before) + VISUAL + place for place in row.asked]
            packed = cross_entropy(model.lm_head(hidden[number, places]), torch.tensor(row.labels), reduction="none")
            alone = []
            for question in questions:
                case = Case(number + 1, question.type, question.text, question.answer, "photos")
                inputs = Reader(model, processor, [case], 1)._prompts([case], [scenes[number].picture])
                answer = packer.tokens(f" {question.answer}")
                whole = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
                logits = model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[0, -len(answer) - 1 :]
                alone.append(cross_entropy(logits, torch.tensor([*answer, packer.end]), reduction="none"))
            torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_questions_of_all_types_come_in_turn():
    questions = scene(4).questions
    chosen = in_turn(questions, 8)
    assert len(chosen) == 8 and set(chosen) <= set(questions)
    types = [question.type for question in chosen]
    asked = min(8, len({question.type for question in questions}))
    assert len(set(types[:asked])) == asked
    assert max(np.unique(types, return_counts=True)[1]) - 1 <= -(-8 // asked)


def test_scenes_of_other_shelves_are_measured_as_those_of_the_suite_are():
    measured = measure.world(shipped(), 1).draw(3, 112)
    assert (measured.items, measured.questions) == (scene(3).items, scene(3).questions)


def test_what_is_held_out_is_never_shown():
    assert list(ENTRIES) == list(NOUNS)
    for entry in ENTRIES.values():
        assert not set(entry.stamps) & set(entry.held_out)
        assert entry.stamps or entry.emoji
