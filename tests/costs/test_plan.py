"""Plans from a config alone: the paper's table, what solves for a retention, and what is refused."""

import json
import re

import pytest
import torch
from families import FAMILIES
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedModel
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from typer.testing import CliRunner

import vitcop
from vitcop import builtin
from vitcop.cli import app
from vitcop.costs.plan import Planner
from vitcop.models import grids

RUNNER = CliRunner()


def llava_7b() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(vocab_size=32064), image_seq_length=576)


@pytest.fixture(scope="module")
def planner():
    return Planner.of(llava_7b())


@pytest.fixture
def config_file(tmp_path):
    llava_7b().save_pretrained(tmp_path)
    return tmp_path / "config.json"


def invoke(*arguments):
    return RUNNER.invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.mark.parametrize(
    ("retention", "tokens", "counts", "average"),
    [
        ("1/3", 192, (288, 253, 51), "192.1"),
        ("2/9", 128, (230, 165, 33), "127.8"),
        ("1/9", 64, (172, 77, 15), "63.6"),
    ],
)
def test_the_papers_table_from_the_config_of_llava_7b(config_file, retention, tokens, counts, average):
    shown = [invoke("--model", config_file, *asked) for asked in (("--retention", retention), ("--tokens", tokens))]
    assert [result.exit_code for result in shown] == [0, 0]
    assert shown[0].stdout == shown[1].stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown[0].stdout.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in rows}
    for layers, count in zip(("0-1", "2-21", "22-31"), counts, strict=True):
        assert table[f"visual tokens, layers {layers}"][:2] == ["576", str(count)]
    assert table["visual tokens, average"][1] == average
    # 32 layers of 4 square projections and a gated MLP, and 640 tokens that attend to each other.
    decoder = 32 * (2 * 640 * (4 * 4096**2 + 3 * 4096 * 11008) + 4 * 640**2 * 4096)
    assert table["decoder prefill"][0] == f"{decoder / 1e9:,.4g} GFLOP"


def test_a_shape_of_bench_is_planned_by_its_name_and_the_model_in_the_box_without_one(config_file, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)  # no weights
    named, given = invoke("--model", "llava-1.5-7b"), invoke("--model", config_file)
    assert named.exit_code == 0 and named.stdout == given.stdout
    own = invoke()
    assert own.exit_code == 0 and own.stdout == invoke("--model", builtin.MODEL_PATH).stdout != named.stdout


def test_json_holds_the_plan_that_is_shown(config_file, planner, tmp_path):
    assert invoke("--model", config_file, "--tokens", 64, "--json", tmp_path / "plan.json").exit_code == 0
    assert json.loads((tmp_path / "plan.json").read_text()) == planner.for_tokens(vitcop.ViTCoP(), 64.0).to_dict()


@pytest.mark.parametrize("method", [vitcop.ViTCoP(), vitcop.KNorm(), vitcop.Random()])
@pytest.mark.parametrize(
    ("solve", "most", "measure"),
    [("for_flops", 0.3, lambda plan: plan.flops_share), ("for_kv_mb", 100.0, lambda plan: plan.kv_bytes / 1e6)],
)
def test_solved_retention_is_the_highest_that_fits(planner, method, solve, most, measure):
    plan = getattr(planner, solve)(method, most)
    assert measure(plan) <= most
    token = 1 / planner.geometry.image.num_tokens
    more = planner.plan(type(method)(retention=plan.method.retention + token))
    assert measure(more) > most


def test_what_cannot_be_reached_names_what_can(planner):
    with pytest.raises(vitcop.BudgetError, match=r"possible") as caught:
        planner.for_flops(vitcop.KNorm(), 0.1)
    lowest, highest = (float(number) for number in re.findall(r"[\d.]+(?= to| is)", str(caught.value)))
    assert highest == 1
    assert planner.for_flops(vitcop.KNorm(), lowest * 1.01).flops_share == pytest.approx(lowest, rel=0.01)
    for solve, value in (("for_tokens", 577.0), ("for_tokens", 0.0), ("for_flops", 1.5), ("for_kv_mb", 1.0)):
        with pytest.raises(vitcop.BudgetError):
            getattr(planner, solve)(vitcop.ViTCoP(), value)


def test_nothing_dropped_costs_what_the_dense_prompt_costs(planner):
    plan = planner.plan(vitcop.ViTCoP(retention=1.0))
    assert plan.flops == plan.dense_flops and plan.kv_share == 1
    for solve, most in (("for_flops", 1.0), ("for_tokens", 576.0), ("for_kv_mb", plan.dense_kv_bytes / 1e6)):
        assert getattr(planner, solve)(vitcop.ViTCoP(), most).method.retention == 1


def test_a_number_of_tokens_makes_way_for_what_is_solved_for(planner):
    capped = vitcop.VisionZip(tokens=10)
    assert planner.for_tokens(capped, 64) == planner.for_tokens(vitcop.VisionZip(), 64)
    assert planner.for_kv_mb(capped, 100.0) == planner.for_kv_mb(vitcop.VisionZip(), 100.0)
    assert sum(planner.plan(capped).visual_tokens) == 32 * 10


def test_the_encoder_is_the_wall(planner):
    plan = planner.plan(vitcop.ViTCoP())
    flops = plan.dense_flops
    encoder = flops.vision + flops.projector
    text = 32 * (2 * 64 * (4 * 4096**2 + 3 * 4096 * 11008) + 4 * 64**2 * 4096)
    assert plan.encoder_share == encoder / flops.total
    assert plan.most_speedup == flops.total / (encoder + text) > flops.total / plan.flops.total


def test_the_dense_cache_by_hand(planner):
    plan = planner.plan(vitcop.ViTCoP())
    assert plan.dense_kv_bytes == 32 * (576 + 64) * 2 * 4096 * 2  # layers, tokens, keys and values, width, bytes
    assert plan.kv_share == plan.kv_bytes / plan.dense_kv_bytes < 0.3


def test_separators_are_no_text(monkeypatch):
    """Though they are in the prompt, and stay."""
    seen = []
    monkeypatch.setattr(vitcop.FastV, "selection_flops", lambda method, stage: seen.append(stage) or 0)
    planner = Planner.of(FAMILIES["llava_next"].model().config, text_tokens=10)
    planner.plan(vitcop.FastV(retention=0.5))
    image = planner.geometry.image
    assert image.placeholders > image.num_tokens
    assert [(stage.text, stage.prompt) for stage in seen] == [(10, image.placeholders + 10)]


def test_half_precision_halves_the_cache(planner):
    config = llava_7b()
    config.dtype = torch.float32
    wide, narrow = Planner.of(config).plan(vitcop.ViTCoP()), planner.plan(vitcop.ViTCoP())
    assert wide.kv_bytes == 2 * narrow.kv_bytes


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_usual_size(name):
    """Which its own rule leaves plannable, and whose plan is plain values."""
    plan = Planner.of(FAMILIES[name].model().config).plan(vitcop.ViTCoP(retention=0.5))
    assert json.loads(json.dumps(plan.to_dict()))["average_retention"] == pytest.approx(0.5, abs=0.05)


QWEN, GLM = Qwen2VLImageProcessorPil(patch_size=4), Glm4vImageProcessorPil(patch_size=4)
PIXTRAL = PixtralImageProcessorPil
TILED = Idefics3ImageProcessorPil(size={"longest_edge": 4 * 48}, max_image_size={"longest_edge": 48})
CROPPED, CUT = (
    GotOcr2ImageProcessorPil(size={"height": side, "width": side}, crop_to_patches=True) for side in (84, 48)
)
UNPADDED = LlavaOnevisionImageProcessorPil(
    size={"height": 56, "width": 56},
    image_grid_pinpoints=FAMILIES["llava_onevision"].settings["image_grid_pinpoints"],
)
# What a processor makes of pictures, without the rest of it that needs torchvision: patches that the encoder gets.
PATCHES = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), (QWEN, lambda made: len(made["pixel_values"]))),
    "glm4v": (GLM, lambda made: len(made["pixel_values"])),
    "llava with pixtral": (
        PIXTRAL(size={"longest_edge": 32}, patch_size=4),
        lambda made: int((made["image_sizes"][0] // 4).prod()),
    ),
    "mistral3": (
        PIXTRAL(size={"longest_edge": 32}, patch_size=8),
        lambda made: int((made["image_sizes"][0] // 4).prod()),
    ),
    **dict.fromkeys(("idefics3", "smolvlm"), (TILED, lambda made: made["pixel_values"].shape[1] * 36)),
    "internvl": (CROPPED, lambda made: len(made["pixel_values"]) * 36),
    "aya_vision": (CUT, lambda made: len(made["pixel_values"]) * 36),
    "llava_onevision": (UNPADDED, lambda made: made["pixel_values"].shape[1] * 16),
}


@pytest.mark.parametrize("size", [(112, 40), (80, 112), (300, 200), (31, 77), (640, 480), (500, 90)])
@pytest.mark.parametrize("name", PATCHES)
def test_pictures_are_resized_as_processors_resize_them(name, size):
    processor, patches = PATCHES[name]
    made = processor(Image.new("RGB", size), return_tensors="pt")
    width, height = size
    planner = Planner.of(FAMILIES[name].model().config, height=height, width=width)
    assert planner.geometry.patches == patches(made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", 64, "--flops", 0.2), "--tokens and --flops exclude each other"),
        (("--retention", "1/9", "--kv-mb", 10), "--retention and --kv-mb exclude each other"),
        (("--image-size", "672"), "width and a height"),
        (("--image-size", "0x5"), "from 1 to 100000"),
        (("--image-size", "5x1000000"), "from 1 to 100000"),
        (("--retention", ""), "is a fraction"),
        (("--method", "pipeline"), "pipeline needs 'stages'"),
        (("--frames", 8), "take no videos"),
        (("--method", "vitcp"), "Did you mean 'vitcop'"),
        (("--text-tokens", -1), "from 0 to"),
    ],
)
def test_refusals_are_one_line(config_file, arguments, message):
    result = invoke("--model", config_file, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    result = invoke("--model", tmp_path)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    misspelt = invoke("--model", "llava-1.5-7")
    assert misspelt.exit_code == 2 and "Did you mean 'llava-1.5-7b'?" in misspelt.stderr


def test_a_model_that_reads_text_only_is_told_so(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    result = invoke("--model", tmp_path)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "Models of type 'llama' take no pictures" in result.stderr and "Did you mean" not in result.stderr


@pytest.mark.parametrize(
    ("part", "setting", "value", "complaint"),
    [
        ("text_config", "num_hidden_layers", 0, "decoder has no `layers`"),
        ("text_config", "num_hidden_layers", 20_000, "20,000 layers, and plans are made for up to 1,000"),
        ("vision_config", "num_hidden_layers", 20_000, "20,000 layers, and plans are made for up to 1,000"),
        ("vision_config", "patch_size", 0, "describes no model that can be built: ZeroDivisionError"),
        ("vision_config", "patch_size", -1, "describes no model that can be built"),
        ("vision_config", "image_size", 10**6, "15,625,000,000 patches"),
        ("vision_config", "image_size", -1, "describes no model that can be built"),
        ("vision_config", "hidden_size", 0, "describes no model that can be built"),
        ("text_config", "num_attention_heads", 0, "Cannot load the model"),
        ("text_config", "num_key_value_heads", 0, "describes no model that can be built"),
        ("text_config", "vocab_size", 0, "describes no model that can be built"),
        ("text_config", "hidden_act", "own", "describes no model that can be built: KeyError: 'own'"),
    ],
)
def test_a_config_of_no_model_is_one_line_at_once(part, setting, value, complaint, tmp_path):
    config = json.loads((builtin.MODEL_PATH / "config.json").read_text())
    config[part][setting] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = invoke("--model", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision"])
def test_too_many_tokens_are_refused_before_memory_is_taken_for_them(name, monkeypatch):
    taken = []
    grids.Grids.full.cache_clear()
    monkeypatch.setattr(torch, "cartesian_prod", lambda *axes: taken.append(axes))
    monkeypatch.setattr(grids, "MOST_CELLS", 8)
    with pytest.raises(vitcop.UnsupportedModelError, match="patches or tokens is more than the 8"):
        Planner.of(FAMILIES[name].model().config)
    assert not taken
