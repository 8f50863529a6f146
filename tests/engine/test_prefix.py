"""Images that are read once and asked about many times, against each question as a whole prompt."""

import copy

import pytest
import torch
from families.base import BREAK, IMAGE, PAD, VIDEO
from families.idefics3 import AROUND
from families.molmo2 import FRAME_END
from tiny import FAMILIES, GREEDY, LLAVA, METHODS, ONE_IMAGE, READING_TEXT, Prompt, assert_same_logits, batch
from transformers import GenerationConfig

import vitcop
from vitcop.models import family_of

ENDS = 58, AROUND, BREAK, FRAME_END  # what marks the end of an image, or of its last row
SHORT, LONG = [11, 12, 13], [21, 22, 23, 24, 25, 26]
LOGITS = GREEDY | {"return_dict_in_generate": True, "output_logits": True}


def prompts(inputs, *questions, family=LLAVA, side="left"):
    """Whole prompts: what `inputs` have up to their last image, and a question behind it."""
    ids = inputs["input_ids"][0].tolist()
    end = max(column for column, token in enumerate(ids) if token in (IMAGE, VIDEO)) + 1
    while ids[end] in ENDS:
        end += 1
    rows = [ids[:end] + question for question in questions]
    width = max(map(len, rows))

    def padded(row, value):
        missing = [value] * (width - len(row))
        return missing + row if side == "left" else row + missing

    ids = torch.tensor([padded(row, PAD) for row in rows])
    mask = torch.tensor([padded([1] * len(row), 0) for row in rows])
    return inputs | {"input_ids": ids} | family.token_kinds(ids) | {"attention_mask": mask}


def assert_same_answer(answer, expected):
    assert torch.equal(answer.sequences[:, -5:], expected.sequences[:, -5:])
    for logits, others in zip(answer.logits, expected.logits, strict=True):
        assert_same_logits(logits, others)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_to_whole_prompts(name):
    """Also where the model remembers the positions of its last prompt, and where the question was not known yet."""
    family = FAMILIES[name]
    both = len(family.kinds) > 1 and not name.startswith("glm")
    model, inputs = family.model(), batch([Prompt(1, seed=5, videos=1) if both else Prompt(2, seed=2)], family=family)
    known = family_of(model)
    ragged = not (known.has_states or known.has_windows)
    text = dict.fromkeys(("input_ids", "token_type_ids", "mm_token_type_ids"), torch.zeros(1, 2, dtype=torch.long))
    if any((blocks >= 0).any() for blocks in known.attention_blocks(text).values()):
        with vitcop.prune(model, METHODS["vitcop"]), pytest.raises(vitcop.UnsupportedModelError, match="see the text"):
            vitcop.ImagePrefix(model, **inputs)
        return
    if name == "minicpmv4_7":
        with vitcop.prune(model, METHODS["vitcop"]), pytest.raises(vitcop.UnsupportedModelError, match="line breaks"):
            vitcop.ImagePrefix(model, **inputs)
        return
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]) as pruning:
        expected = [model.generate(**prompts(inputs, asked, family=family), **LOGITS) for asked in (SHORT, LONG)]
        kept = [stage.kept() for stage in pruning.report.stages]
        prefix = vitcop.ImagePrefix(model, **inputs)
        assert [stage.kept() for stage in prefix.report.stages] == kept
        model.generate(**batch([Prompt(1, seed=22)], family=family), **GREEDY)
        for asked, alone in zip((SHORT, LONG), expected, strict=True):
            assert_same_answer(prefix.generate(**prompts(inputs, asked, family=family), **LOGITS), alone)
        together = prompts(inputs, SHORT, LONG, family=family)
        if not ragged:
            with pytest.raises(vitcop.UnsupportedModelError, match="one by one"):
                prefix.generate(**together, **GREEDY)
            together, expected = prompts(inputs, SHORT, SHORT, family=family), expected[:1] * 2
        answers = prefix.generate(**together, **LOGITS)
    for row, alone in enumerate(expected):
        assert torch.equal(answers.sequences[row, -5:], alone.sequences[0, -5:])
        for logits, others in zip(answers.logits, alone.logits, strict=True):
            assert_same_logits(logits[row], others[0])


@pytest.fixture(scope="module")
def model():
    return LLAVA.model()


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_look_behind_images_raise_and_no_others(model, name):
    inputs = batch([Prompt(2, seed=2)])
    with torch.no_grad(), vitcop.prune(model, METHODS[name]):
        whole = prompts(inputs, LONG)
        expected = model.generate(**whole, **LOGITS)
        if name in READING_TEXT:
            with pytest.raises(vitcop.UnsupportedModelError, match="use a method that looks at images alone"):
                vitcop.ImagePrefix(model, **inputs)
            assert_same_answer(model.generate(**whole, **LOGITS), expected)  # whole prompts may be looked at again
        else:
            assert_same_answer(vitcop.ImagePrefix(model, **inputs).generate(**whole, **LOGITS), expected)


def test_asking_leaves_the_prefix_as_it_was(model):
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        prefix = vitcop.ImagePrefix(model, **inputs)
        held = copy.deepcopy(prefix.cache)
        first = prefix.generate(**prompts(inputs, LONG), **GREEDY)
        prefix.generate(**prompts(inputs, SHORT, LONG), **GREEDY)
        assert torch.equal(prefix.generate(**prompts(inputs, LONG), **GREEDY), first)
    for layer, before in zip(prefix.cache.layers, held.layers, strict=True):
        assert torch.equal(layer.keys, before.keys) and torch.equal(layer.values, before.values)
    assert prefix.cache.request.prompt_length == prefix.input_ids.shape[1] == held.get_seq_length()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_prefix_of_which_all_is_kept(name):
    """As an image that is small enough; its positions are not to be those of the last prompt that was read."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(tokens=999)):
        expected = model.generate(**prompts(inputs, LONG, family=family), **LOGITS)
        prefix = vitcop.ImagePrefix(model, **inputs)
        model.generate(**batch([Prompt(2, seed=22)], family=family), **GREEDY)
        assert_same_answer(prefix.generate(**prompts(inputs, LONG, family=family), **LOGITS), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_what_is_known_of_the_images_may_be_left_out(model, side):
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        expected = model.generate(**prompts(inputs, SHORT), **LOGITS)
        padded = prompts(inputs, SHORT, LONG, side=side)
        of_short = {name: values[:1] for name, values in padded.items()}
        prefix = vitcop.ImagePrefix(model, **of_short)
        assert_same_answer(prefix.generate(**of_short, **LOGITS), expected)
        ids = torch.cat([prefix.input_ids, torch.tensor([SHORT])], 1)
        assert_same_answer(prefix.generate(input_ids=ids, **LOGITS), expected)
        twice = {name: values.repeat(2, *[1] * (values.ndim - 1)) for name, values in of_short.items()}
        assert torch.equal(prefix.generate(**twice, **GREEDY)[:, -5:], expected.sequences[:, -5:].expand(2, 5))


def changed(inputs, name):
    """What is not to be asked of a prefix of `inputs`, by name."""
    whole = prompts(inputs, LONG)
    ids = whole["input_ids"].clone()
    if name == "text before the image":
        ids[0, 1] += 1
    elif name == "another image":
        return whole | {"pixel_values": whole["pixel_values"].flip(-1)}
    elif name == "an image in the question":
        ids[0, -1] = IMAGE
    elif name == "shorter than the prefix":
        return {"input_ids": ids[:, :5]}
    elif name == "no question":
        return {"input_ids": ids[:, : -len(LONG)]}
    elif name == "positions":
        return whole | {"position_ids": torch.arange(ids.shape[1])[None]}
    return whole | {"input_ids": ids}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text before the image", "does not begin with the prefix"),
        ("shorter than the prefix", "does not begin with the prefix"),
        ("another image", "pixel_values differs"),
        ("an image in the question", "cache all images"),
        ("no question", "nothing behind its images"),
        ("positions", "neither inputs_embeds, position_ids"),
    ],
)
def test_prompts_that_go_on_otherwise_raise(model, name, said):
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        prefix = vitcop.ImagePrefix(model, **inputs)
        with pytest.raises(vitcop.VitcopError, match=said):
            prefix.generate(**changed(inputs, name), **GREEDY)
        prefix.generate(**prompts(inputs, LONG), **GREEDY)


def test_a_prefix_belongs_to_one_pruning(model):
    """The cache would go on under another method, as any does, and answer by what this one has kept."""
    inputs = batch([ONE_IMAGE])
    with pytest.raises(vitcop.VitcopError, match=r"call vitcop.prune\(model"):
        vitcop.ImagePrefix(model, **inputs)
    with vitcop.prune(model, METHODS["vitcop"]):
        prefix = vitcop.ImagePrefix(model, **inputs)
    with pytest.raises(vitcop.VitcopError, match="no longer on the model"):
        prefix.generate(**prompts(inputs, LONG), **GREEDY)
    with vitcop.prune(model, METHODS["vitcop"]), pytest.raises(vitcop.VitcopError, match="no longer on the model"):
        prefix.generate(**prompts(inputs, LONG), **GREEDY)


@pytest.mark.parametrize(
    ("asked", "said"), [([ONE_IMAGE, ONE_IMAGE], "of one prompt"), ([Prompt(0, seed=3)], "no image")]
)
def test_what_is_no_prefix_raises(model, asked, said):
    with vitcop.prune(model, METHODS["vitcop"]), pytest.raises(vitcop.VitcopError, match=said):
        vitcop.ImagePrefix(model, **batch(asked))


def test_settings_of_generate_are_not_taken_for_images(model):
    """They would be left out of every question, as images are that were cached."""
    with vitcop.prune(model, METHODS["vitcop"]), pytest.raises(vitcop.VitcopError, match="max_new_tokens, suppress"):
        vitcop.ImagePrefix(model, **batch([ONE_IMAGE]), **GREEDY)


def test_images_that_see_the_question_raise(monkeypatch):
    """A family says which tokens see each other both ways: it is asked of a prompt that goes on."""
    family = FAMILIES["gemma3"]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    monkeypatch.setattr(
        vitcop.FAMILIES["gemma3"], "attention_blocks", lambda self, call: {"x": torch.zeros_like(call["input_ids"])}
    )
    with vitcop.prune(model, METHODS["vitcop"]), pytest.raises(vitcop.UnsupportedModelError, match="see the text"):
        vitcop.ImagePrefix(model, **inputs)


@pytest.mark.parametrize("seed", [24, 13])
@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_tiles_of_the_last_picture_are_one_picture_to_a_prefix_as_well(name, seed):
    """What joins them is the token that closes it, which stands behind its placeholders."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch([Prompt(2, seed=seed)], family=family)
    whole = prompts(inputs, SHORT, family=family)
    with torch.no_grad(), vitcop.prune(model, METHODS["uniformgrid"]) as pruning:
        expected, kept = model.generate(**whole, **LOGITS), [stage.kept() for stage in pruning.report.stages]
        prefix = vitcop.ImagePrefix(model, **inputs)
        assert len(prefix.report.images) == 2 and [stage.kept() for stage in prefix.report.stages] == kept
        assert_same_answer(prefix.generate(**whole, **LOGITS), expected)


REPEATED = {"num_beams": 3, "num_return_sequences": 2}


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "qwen3_5"])
def test_beams_go_on_with_the_prefix(name):
    """Questions behind it are repeated, and the cache is not, unless we do; beams then change places in it."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch([Prompt(1, seed=2)], family=family)
    if name.startswith("qwen") and not hasattr(model, "_expand_multimodal_outputs"):
        pytest.skip("this transformers finds the images that it repeats by marks that the tiny prompts lack")
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        expected = [
            model.generate(**prompts(inputs, q, family=family), **GREEDY, **REPEATED) for q in (SHORT, SHORT[::-1])
        ]
        prefix = vitcop.ImagePrefix(model, **inputs)
        answers = prefix.generate(**prompts(inputs, SHORT, SHORT[::-1], family=family), **GREEDY, **REPEATED)
    assert torch.equal(answers[:, -5:], torch.cat(expected)[:, -5:])


@pytest.mark.parametrize("said_by", ["argument", "config", "default"])
def test_beams_are_counted_as_generate_counts_them(said_by):
    """An argument goes before a config, and that before the model's own."""
    model, inputs = LLAVA.model(), batch([ONE_IMAGE])
    model.generation_config.num_beams = 3 if said_by == "default" else 4
    options = GREEDY | (REPEATED if said_by == "argument" else {})
    if said_by == "config":
        options = {"generation_config": GenerationConfig(**GREEDY, **REPEATED)}
    asked = prompts(inputs, LONG) | options
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        expected = model.generate(**asked)
        assert torch.equal(vitcop.ImagePrefix(model, **inputs).generate(**asked), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache_implementation": "static"}, "leave cache_implementation out"),
        ({"cache_implementation": "quantized"}, "leave cache_implementation out"),
        ({"use_cache": False}, "use_cache on"),  # which would have questions read anew at every token, wrongly
        ({"prompt_lookup_num_tokens": 2}, "ask whole prompts, without the cache"),
    ],
)
def test_questions_go_on_with_the_cache_of_the_prefix_or_raise(model, options, said):
    inputs = batch([ONE_IMAGE])
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        prefix = vitcop.ImagePrefix(model, **inputs)
        with pytest.raises(vitcop.VitcopError, match=said):
            prefix.generate(**prompts(inputs, LONG), **GREEDY, **options)


def test_none_is_not_given(model):
    """As wrappers hand on all that they could be given."""
    inputs = batch([ONE_IMAGE])
    absent = dict.fromkeys(("inputs_embeds", "position_ids", "past_key_values", "cache", "token_type_ids"))
    whole = prompts(inputs, LONG)
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        prefix = vitcop.ImagePrefix(model, **inputs | absent)
        expected = prefix.generate(**whole, **GREEDY)
        assert torch.equal(prefix.generate(**whole | absent | {"pixel_values": None}, **GREEDY), expected)


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "pixel_values"])
def test_lists_in_the_place_of_tensors_raise(model, name):
    inputs = batch([ONE_IMAGE])
    whole = prompts(inputs, LONG)
    listed = whole | {name: whole[name].tolist()}
    said = pytest.raises(vitcop.VitcopError, match=f'{name} must be a tensor.*return_tensors="pt"; got a list')
    with torch.no_grad(), vitcop.prune(model, METHODS["vitcop"]):
        prefix = vitcop.ImagePrefix(model, **inputs)
        with said:
            prefix.generate(**listed, **GREEDY)


def test_a_video_that_lasts_beyond_the_text_behind_it_is_refused():
    """Qwen2.5-VL counts text on from the rows and columns of a video; what is decoded later, from its last moment."""
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = family.model(), batch([Prompt(0, seed=18, videos=1)], family=family)
    with vitcop.prune(model, METHODS["vitcop"]), pytest.raises(vitcop.UnsupportedModelError, match="shorter video"):
        vitcop.ImagePrefix(model, **inputs)
