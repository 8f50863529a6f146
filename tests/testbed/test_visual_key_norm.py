"""What small key norms of visual tokens are worth is measured right, and the page says what was measured."""

import pytest
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from benchmarks import visual_key_norm
from benchmarks.ranks import HEAD_MEAN, LAST_TOKEN, MEAN_NORM, auc, held, small_norms, spearman
from benchmarks.visual_key_norm import asked_about, load, masks, measure, read, read_decoder, see
from docs import visual_key_norm_page as page
from vitcop import builtin, photos, testbed
from vitcop.inputs.prompts import prompt_about
from vitcop.quality import Case, Suite
from vitcop.scenes.item import Item
from vitcop.testbed.processor import make_processor

LAYERS = 30


def tiny():
    """The testbed's architecture, of three layers in the decoder, and a processor for its pictures and some words."""
    processor = make_processor(AutoTokenizer.from_pretrained(builtin.MODEL_PATH))
    config = testbed.config()
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 2, 3
    config.text_config.vocab_size, config.image_token_id = len(processor.tokenizer), processor.image_token_id
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    return model, processor


def test_a_signal_is_compared_by_its_order():
    signal, received = (
        torch.tensor([[4.0, 1, 3, 2, 0], [0, 1, 2, 3, 4]]),
        torch.tensor([[5.0, 1, 2, 1.5, 0.5]]).repeat(2, 1),
    )
    wanted = torch.tensor([True, False, True, False, False])
    pairs = [[float(row[i] > row[j]) for i in (0, 2) for j in (1, 3, 4)] for row in signal]
    torch.testing.assert_close(auc(signal, wanted), torch.tensor(pairs).mean(1).double())
    assert auc(signal, torch.zeros(5, dtype=torch.bool)).isnan().all()
    torch.testing.assert_close(held(signal, received, 2), torch.tensor([0.7, 0.2]))
    torch.testing.assert_close(spearman(signal, received), torch.tensor([1, 1 - 6 * 34 / 120]).double())


ITEMS = (
    Item("sign", (0.1, 0.4, 0.4, 0.6), text="taxi"),
    Item("dot", (0.0, 0.0, 0.06, 0.06), color="red"),
    Item("mouse", (0.05, 0.05, 0.3, 0.3)),
    Item("car", (0.7, 0.7, 0.95, 0.95)),
    Item("mouse", (0.6, 0.1, 0.9, 0.3)),
)


@pytest.mark.parametrize(
    ("kind", "question", "answer", "numbers"),
    [
        ("presence", "is there a car in the picture?", "yes", [4]),
        ("presence", "is there a carrot?", "no", []),
        ("count", "how many mice are there?", "2", [3, 5]),
        ("which", "which vehicle is there?", "car", [4]),
        ("naming", "what do you see at the top left?", "mouse", [3]),
        ("category", "what kind of thing is at the bottom right?", "vehicle", [4]),
        ("place", "is the car at the top or at the bottom?", "bottom", [4]),
        ("relation", "is the car above or below the sign?", "below", [1, 4]),
        ("reading", "what does the sign say?", "taxi", [1]),
        ("small", "what color is the dot?", "red", [2]),
        ("background", "what is behind the things?", "car", []),
    ],
)
def test_what_is_asked_about_is_found_by_name_or_corner(kind, question, answer, numbers):
    assert asked_about(Case(0, kind, question, answer, "photos"), ITEMS) == numbers


def test_every_question_about_what_is_there_finds_it():
    for case in Suite.of("photos", 60, 3).cases:
        found = asked_about(case, photos.scene(case.scene).items)
        assert bool(found) == (case.type != "background" and case.answer != "no"), case


def test_looks_are_those_of_whole_prompts():
    """Questions one behind the other on the cache of one picture, beside each prompt by itself."""
    model, processor = tiny()
    cases = [case for case in Suite.of("photos", 20, 3).cases if case.scene == 3_000_000][:3]
    scene = photos.scene(3_000_000)
    keys, looks = see(model, processor, scene, cases)
    assert keys.shape == (3, 3, 256, 64) and len({case.question for case in cases}) == 3
    for case, look in zip(cases, looks, strict=True):
        prompt = prompt_about(case.question, processor, "image")
        inputs = processor(text=f"{prompt} {case.answer}", images=scene.picture, return_tensors="pt")
        asked = processor(text=prompt, images=scene.picture)["input_ids"][0]
        visual = inputs["input_ids"][0] == processor.image_token_id
        behind, end = int(visual.nonzero().max()) + 1, len(asked)
        with torch.inference_mode():
            made = model(**inputs, output_attentions=True, use_cache=True)
        paid = torch.stack(made.attentions)[:, 0].mean(1)[..., visual]
        for own, tokens in (
            (look.last, slice(end - 1, end)),
            (look.question, slice(behind, end)),
            (look.answer, slice(end, None)),
        ):
            torch.testing.assert_close(own, paid[:, tokens].mean(1), rtol=1e-3, atol=1e-6)
        whole = torch.stack([layer.keys[0, :, visual] for layer in made.past_key_values.layers])
        torch.testing.assert_close(keys, whole, rtol=1e-3, atol=1e-4)
        assert not look.right


@pytest.mark.parametrize("right", [True, False])
def test_an_answer_is_right_if_the_model_would_give_it_and_end(right, monkeypatch):
    model, processor = tiny()
    case = Case(3_000_000, "naming", "what is at the top left?", "mouse", "photos")
    answer = processor.tokenizer(" mouse", add_special_tokens=False).input_ids
    said = torch.tensor([*answer, processor.tokenizer.eos_token_id if right else answer[0]])
    monkeypatch.setattr(
        model.lm_head, "forward", lambda hidden: torch.eye(hidden.shape[-1])[said[-hidden.shape[1] :]][None]
    )
    _, (look,) = see(model, processor, photos.scene(case.scene), [case])
    assert look.right == right


def test_signals_are_held_against_the_next_layer():
    """Norms that foretell it, of a picture whose things have the smallest."""
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(4, 256, generator=generator)
    sizes = torch.cat([1 / attention[1:], torch.rand(1, 256, generator=generator)])
    keys = torch.zeros(4, 3, 256, 64)
    keys[..., 0] = sizes[:, None]
    look = visual_key_norm.Look(attention, attention, attention, True)
    most = attention[1] >= attention[1].topk(20).values.min()
    found = read(keys, look, {"things": most, "asked": ~most})
    for name in (HEAD_MEAN, MEAN_NORM):
        assert found[name]["things"].shape == (4,) and found[name]["last"].tolist() == pytest.approx([1] * 3)
        assert (found[name]["things"][0], found[name]["asked"][0]) == (1, 0)
        for share in page.SHARES:
            torch.testing.assert_close(
                found[name][page.mass("answer", share)], found[page.BEST][page.mass("answer", share)]
            )
    assert found[LAST_TOKEN]["question"].abs().max() < 0.3
    torch.testing.assert_close(small_norms(keys)[HEAD_MEAN], -sizes)


def test_a_checkpoint_and_the_folder_exported_from_it_are_the_same_model(tmp_path, adapt, monkeypatch):
    wrapped = adapt(tiny()[0], tmp_path / "folder")
    weights = {name: weight.detach() for name, weight in wrapped.named_parameters() if weight.requires_grad}
    torch.save({"weights": weights, "step": 3}, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(testbed, "unadapted", tiny)
    folder, file = (load(tmp_path / name)[0] for name in ("folder", "checkpoint.pt"))
    own, other, plain = folder.state_dict(), file.state_dict(), load(None)[0].state_dict()
    assert own.keys() == other.keys() and all(weight.equal(other[name]) for name, weight in own.items())
    assert sum(not weight.equal(plain[name]) for name, weight in own.items()) == 3 * 4 + 4


def made_up(things: float, generator: torch.Generator, rows: int = 4) -> page.Readings:
    """A model whose small norms lie on things with this AUC, and that else is like any other."""
    found: page.Readings = {page.ANSWERS: {"right": torch.tensor([[1.0], [0], [1], [1]]).repeat(rows, 1)[:rows]}}
    for signal in (HEAD_MEAN, MEAN_NORM, LAST_TOKEN, page.BEST):
        found[signal] = {
            kind: 0.5 + 0.01 * torch.rand(rows, LAYERS, generator=generator) for kind in ("things", "asked")
        }
        for asker in page.ASKERS:
            for kind in (asker, *(page.mass(asker, share) for share in page.SHARES)):
                found[signal][kind] = 0.2 + 0.01 * torch.rand(rows, LAYERS - 1, generator=generator)
    found[HEAD_MEAN]["things"] += things - 0.5
    return found


@pytest.fixture
def stored(tmp_path):
    """A store of four pictures, about one of which nothing is asked that is there."""
    generator = torch.Generator().manual_seed(0)
    store = page.Store(tmp_path)
    store.setting = {"suite": "photos", "seed": 7, "questions": 9, "versions": {}}
    kinds = {kind: torch.rand(4, 12, generator=generator) for kind in ("things", "asked")}
    store.encoder = {signal: dict(kinds) for signal in (page.CLS, page.RECEIVED)}
    store.models = {
        page.UNTRAINED: made_up(0.6, generator, rows=3),
        page.TESTBED: made_up(0.8, generator),
        "named": made_up(0.9, generator),
    }
    for signal in (HEAD_MEAN, MEAN_NORM, LAST_TOKEN):
        for name in (page.TESTBED, "named"):
            store.models[name][signal]["asked"][2] = torch.nan
    store.write()
    return store


def lines_of(text: str, *beginnings: str) -> list[str]:
    """Lines of tables whose first cells are these."""
    return [line for line in text.splitlines() if line.startswith(f"| {' | '.join(beginnings)} |")]


def test_the_page_says_what_is_stored_beside_its_controls(stored, tmp_path):
    page.write(tmp_path)
    text = (tmp_path / "results" / "visual_key_norm.md").read_text()
    assert (tmp_path / "images" / "visual-key-norm.png").read_bytes()[:4] == b"\x89PNG"
    assert "4 pictures of the suite `photos`, seed 7, 9 questions" in text and "3 random projectors the" in text
    (things,) = lines_of(text, "AUC, things", HEAD_MEAN)
    assert things.count("> random, < named |") == 5 and things.count("| 0.8") == 5
    (by_mean_norm,) = lines_of(text, "AUC, things", MEAN_NORM)
    assert by_mean_norm.count("= random, = named |") >= 3 and "> random" not in by_mean_norm and "nan" not in text
    difference = lines_of(text, "trained - named")[0].split(" | ")[1:]
    assert all(cell.startswith("-0.10 (-0.1") for cell in difference)
    assert lines_of(text, "trained, more than by the head mean")[0].count("| -0.3") == 5
    (unnamed,) = lines_of(text, "`unnamed`")
    assert unnamed.endswith("| not measured |") and lines_of(text, "`named`")[0].endswith("75% (25% to 100%) |")
    values = stored.models[page.TESTBED][HEAD_MEAN]["answer"][:, 19]
    last = lines_of(text, "**19**")[1].split(" | ")
    assert last[7].startswith(f"{values.mean():+.2f} (") and lines_of(text, "29")[1].endswith("| - | - | - | - | - |")


def test_without_the_testbed_there_is_no_claim(stored, tmp_path):
    del stored.models[page.TESTBED]
    stored.write()
    page.write(tmp_path)
    text = (tmp_path / "results" / "visual_key_norm.md").read_text()
    assert "The testbed is not measured." in text and "trained -" not in text and "> random" not in text


def test_what_is_stored_of_a_picture_is_the_mean_over_questions_about_what_is_there(tmp_path):
    model, processor = tiny()
    suite = Suite.of("photos", 6, 3, types=("presence", "place", "background"))
    store = page.Store(tmp_path)
    store.models["trained"] = measure(read_decoder, model, processor, suite)
    store.write()
    kept = page.Store(tmp_path).models["trained"][HEAD_MEAN]["asked"]
    scenes = dict.fromkeys(case.scene for case in suite.cases)
    assert kept.shape == (len(scenes), 3)
    for number, row in zip(scenes, kept, strict=True):
        scene, cases = photos.scene(number), [case for case in suite.cases if case.scene == number]
        keys, _ = see(model, processor, scene, cases)
        wanted = [masks(case, scene, 16)["asked"] for case in cases]
        each = [auc(small_norms(keys)[HEAD_MEAN], of) for of in wanted if of.any()]
        mean = torch.stack(each).mean(0).float() if each else torch.full((3,), torch.nan)
        torch.testing.assert_close(row, mean, rtol=0, atol=6e-4, equal_nan=True)


def test_the_page_in_the_repository_says_what_is_stored():
    store = page.Store(page.DOCS)
    if store.setting is None:
        pytest.skip("not measured yet: python -m benchmarks.visual_key_norm --measure")
    shown = (page.DOCS / "results" / "visual_key_norm.md").read_text(encoding="utf-8")
    assert shown == page.page(store), "run `python -m benchmarks.visual_key_norm`"
