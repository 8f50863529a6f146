"""`vitcop bench`: what is timed is what is named, and what is shown follows from what is stored."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace

import pytest
import torch
from families import FAMILIES
from families.base import NUM_LAYERS
from families.llava import LLAVA
from rich.console import Console
from shown import assert_nothing_is_lost
from tiny import ThreeStages
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    Gemma4TextConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen2VLImageProcessorPil,
)
from typer.testing import CliRunner

import vitcop
from benchmarks import report
from docs.pages import README
from vitcop import cli
from vitcop.bench import SHAPES, Benchmark, Block, Course, Row, Spread, Subject, random_weights, run_benchmark
from vitcop.bench.ceilings import Ceilings
from vitcop.bench.memory import peak_bytes
from vitcop.bench.phases import time_phases
from vitcop.bench.plot import plot
from vitcop.bench.prompt import make_prompt, random_picture
from vitcop.bench.random_weights import RandomProcessor, random_model
from vitcop.bench.roofline import prefill_seconds
from vitcop.bench.shapes import Shape
from vitcop.bench.stopwatch import Stopwatch
from vitcop.bench.table import tables
from vitcop.costs import closed_forms
from vitcop.costs.closed_forms import layer_bytes
from vitcop.engine.decode import Decode
from vitcop.models import Size, family_of
from vitcop.models.llava import Llava

CPU = torch.device("cpu")
SIZE = {"shortest_edge": 64, "longest_edge": 96 * 96}
BILLIONS = {
    "llava-1.5-7b": 7.063,
    "llava-1.5-13b": 13.351,
    "llava-next-7b": 7.063,
    "llava-next-13b": 13.351,
    "llava-onevision-0.5b": 0.894,
    "qwen2.5-vl-7b": 8.292,
    "qwen3-vl-8b": 8.767,
    "qwen3.5-9b": 9.410,
    "glm-4.1v-9b": 10.293,
    "gemma-4-e4b": 7.941,
    "internvl3-8b": 7.944,
    "aya-vision-8b": 8.632,
}
"""Parameters of the checkpoints that the shapes are named after, without any that are not used."""


def bench(*arguments: object):
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, ["bench", *map(str, arguments)])


def tiny_qwen():
    """A model whose processor makes fewer tokens of smaller pictures."""
    model = FAMILIES["qwen2_vl"].model()
    return model, RandomProcessor(family_of(model), Qwen2VLImageProcessorPil(patch_size=4, size=SIZE))


class LlavaProcessor:
    """What a processor writes for the tiny LLaVA."""

    def __call__(self, text, images, return_tensors):
        visual = LLAVA.visual("image", size=0, seed=0)
        ids = torch.tensor([[1, *LLAVA.tokens(visual)]])
        return BatchFeature({"input_ids": ids} | LLAVA.inputs([[visual]]))


def prompted():
    """A tiny LLaVA, two prompts of two tokens to come for it, and the hooks that are on it."""
    model = LLAVA.model()
    prompt = make_prompt(model, LlavaProcessor(), random_picture(Size(84, 84)), text_tokens=3, steps=2, batch=2)
    with torch.no_grad():
        model(**prompt.inputs)  # transformers adds hooks of its own in the first forward
    return model, prompt, hooks(model)


class Clock(Stopwatch):
    """Time goes on where the test says so, and nowhere else."""

    is_free = True

    def __init__(self, is_free: bool = True) -> None:
        self.now, self.is_free = 0.0, is_free

    def mark(self):
        return self.now

    def settle(self) -> None:
        pass

    def seconds(self, start, end):
        return end - start

    def costs(self, seconds, function):
        def slow(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return slow


@dataclass(frozen=True)
class SlowStages(ThreeStages):
    """Three stages that take ten seconds each."""

    clock: Clock | None = None

    def select(self, tokens, budget):
        self.clock.now += 10
        return super().select(tokens, budget)


def hooks(model: nn.Module) -> list[tuple[int, int, bool]]:
    return [
        (len(m._forward_pre_hooks), len(m._forward_hooks), "get_image_features" in vars(m)) for m in model.modules()
    ]


@pytest.mark.parametrize("in_one_pass", [True, False])
def test_each_second_is_of_the_phase_that_it_was_spent_in(in_one_pass, monkeypatch):
    clock, (model, prompt, bare) = Clock(in_one_pass), prompted()
    base = model.base_model
    monkeypatch.setattr(base.multi_modal_projector, "forward", clock.costs(1000, base.multi_modal_projector.forward))
    for layer in base.language_model.layers:
        monkeypatch.setattr(layer.mlp, "forward", clock.costs(1, layer.mlp.forward))
    monkeypatch.setattr(Llava, "observe", clock.costs(100, Llava.observe))
    monkeypatch.setattr(Decode, "enter", clock.costs(5, Decode.enter))
    with torch.no_grad():
        pruned = time_phases(model, prompt, SlowStages(clock=clock), clock)
        dense = time_phases(model, prompt, None, clock)
    selection, layers = 100 + 3 * 10, NUM_LAYERS
    assert pruned == {
        "vision": 1000,
        "selection": selection,
        "prefill": selection + layers,
        "first_token": 1000 + selection + layers,
        "decode": layers + 5,
        "decode_hooks": 5,
    }
    assert dense == {
        "vision": 1000,
        "selection": 0,
        "prefill": layers,
        "first_token": 1000 + layers,
        "decode": layers,
        "decode_hooks": 0,
    }
    assert hooks(model) == bare


class Broken(ThreeStages):
    """Fails in the second of its stages."""

    def select(self, tokens, budget):
        if tokens.layer:
            raise RuntimeError("broken")
        return super().select(tokens, budget)


def test_a_method_that_fails_leaves_the_model_as_it_was():
    model, prompt, bare = prompted()
    with torch.no_grad():
        before = model(**prompt.inputs).logits
        with pytest.raises(RuntimeError, match="broken"):
            time_phases(model, prompt, Broken(), Stopwatch(CPU))
        assert hooks(model) == bare
        assert torch.equal(model(**prompt.inputs).logits, before)


def test_the_prompt_has_the_text_that_was_asked_for_and_no_placeholder_in_it():
    model, processor = tiny_qwen()
    prompt = make_prompt(model, processor, random_picture(family_of(model).default_size), 500, 500, 2)
    ids, config = prompt.inputs["input_ids"], model.config
    text = torch.cat([ids[:, -500:], prompt.continuation], 1)
    special = {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
    assert not special & set(text.flatten().tolist())
    assert (ids[:, :-500] == config.image_token_id).all() and len(set(text[0].tolist())) > 40
    assert prompt.inputs["mm_token_type_ids"].shape == ids.shape
    assert torch.equal(prompt.inputs["mm_token_type_ids"] == 1, ids == config.image_token_id)
    assert [len(value) for name, value in prompt.inputs.items() if name != "pixel_values"] == [2, 2, 2]


@pytest.fixture(scope="module")
def measured() -> Benchmark:
    course = Course(["knorm", "random", "downsample"], [0.4, 0.1], [1, 2], repeats=2, decode_tokens=1, text_tokens=4)
    told = []
    benchmark = run_benchmark(Subject("tiny", "random weights", *tiny_qwen()), course, lambda *what: told.append(what))
    totals = {total for _, total in told}
    assert len(totals) == 1 and len(told) <= totals.pop()
    return benchmark


def test_every_contestant_is_in_its_block(measured):
    assert [(block.batch, block.retention) for block in measured.blocks] == [(1, 0.4), (1, 0.1), (2, 0.4), (2, 0.1)]
    for block in measured.blocks:
        names = [row.method for row in block.rows]
        able = [] if block.retention == 0.1 else ["knorm"]
        assert names == ["dense", *able, "random", "downsample"]
        assert all(len(samples) == 2 for row in block.rows for samples in row.samples.values())


def test_what_does_not_depend_on_time(measured):
    """Bytes by hand: 144 placeholders and 4 text tokens in 8 layers, keys and values of 2 x 8 values of 4 bytes."""
    setting, block = measured.setting, measured.blocks[-1]
    assert (setting.placeholders, setting.prompt_tokens) == (144, 148)
    dense, random, smaller = block.rows
    assert dense.kv_bytes == 2 * 148 * NUM_LAYERS * 2 * 16 * 4
    for row in (random, smaller):
        assert row.average_retention == pytest.approx(0.1, abs=0.04)
        alive = round(row.average_retention * 144)
        assert row.kv_bytes == 2 * (alive + 4) * NUM_LAYERS * 2 * 16 * 4
        assert row.peak_bytes > row.kv_bytes
        assert row.predicted > 1
    assert dense.predicted == 1 and dense.peak_bytes > smaller.peak_bytes
    assert dense.peak_bytes == measured.blocks[-2].rows[0].peak_bytes
    assert block.refusals[0].method == "knorm" and "below" in block.refusals[0].reason


def text_of(benchmark: Benchmark) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(*tables(benchmark))
    return console.file.getvalue()


def test_tables_and_plot_are_made_of_the_json_alone(measured):
    again = Benchmark.from_dict(json.loads(json.dumps(measured.to_dict())))
    shown = text_of(measured)
    assert text_of(again) == shown
    assert all(len(line) <= 120 for line in shown.splitlines())
    share = measured.blocks[0].encoder_share
    words = " ".join(shown.split())  # lines break where the figures before them have it
    assert "random weights" in words
    assert f"encoder takes {share:.0%} of the dense model's time until the first token" in words
    assert_nothing_is_lost(tables(measured))
    figure = plot(again)
    assert "random weights" in figure.get_suptitle()
    assert [axes.get_title() for axes in figure.axes] == ["batch 1", "batch 2"]


def test_speed_ups_are_of_the_same_round():
    rows = tuple(Row("any", 1.0, {"prefill": samples}, 4.0, 0, 0) for samples in ((4.0, 9.0), (2.0, 3.0)))
    block = Block(batch=1, retention=0.5, roofline=(), rows=rows, refusals=())
    assert block.speedup(rows[1], "prefill") == Spread(median=2.5, lowest=2.0, highest=3.0)
    assert block.achieved(rows[1]) == 2.5 / 4


def test_the_encoder_is_the_wall():
    samples = {"vision": (1.0, 1.0, 8.0), "first_token": (4.0, 5.0, 9.0)}
    block = Block(batch=1, retention=0.5, roofline=(), rows=(Row("dense", 1.0, samples, 4.0, 0, 0),), refusals=())
    assert block.encoder_share == 1 / 5


@pytest.mark.parametrize(("slowest", "quiet"), [(1.2, True), (1.3, False)])
def test_a_device_that_is_busy_with_something_else_is_told_by_the_encoder(measured, slowest, quiet):
    def timed(row, *vision):
        return replace(row, samples={**row.samples, "vision": vision})

    dense, random, smaller = measured.blocks[1].rows
    rows = timed(dense, 1.0, 1.0), timed(random, 1.0, slowest), timed(smaller, 0.1, 0.1)
    shown = text_of(replace(measured, blocks=(replace(measured.blocks[1], rows=rows),)))
    assert ("was not quiet" in " ".join(shown.split())) != quiet


CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
WEIGHTS = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96


def least(tokens, batch, flops, bandwidth, causal=True):
    return prefill_seconds(CONFIG, tokens, batch, 2, Ceilings(float(flops), float(bandwidth)), causal=causal)


def test_the_roofline_by_hand():
    infinite = float("inf")
    operations = sum(2 * n * WEIGHTS + 2 * n * (n + 1) * 64 for n in (100, 30))
    assert least([100, 30], 3, 1e9, infinite) == pytest.approx(3 * operations / 1e9)
    moved = sum(2 * (WEIGHTS + 2 * 3 * n * 2 * 32) for n in (100, 30))  # weights once for all three prompts
    assert least([100, 30], 3, infinite, 1e6) == pytest.approx(moved / 1e6)
    # Each layer is bound by what takes longer there, not all by the same.
    balance = (2 * 30 * WEIGHTS + 2 * 30 * 31 * 64) / (2 * (WEIGHTS + 2 * 30 * 2 * 32))
    slow_layer, fast_layer = (least([n], 1, balance, 0.9) for n in (100, 10))
    assert slow_layer == least([100], 1, balance, infinite) and fast_layer == least([10], 1, infinite, 0.9)
    assert least([100, 10], 1, balance, 0.9) == slow_layer + fast_layer


def test_eager_attention_multiplies_the_masked_half_as_well():
    infinite = float("inf")
    eager = least([100, 100], 1, 1, infinite, causal=False)
    assert eager == closed_forms.prefill_flops(CONFIG, [100, 100])
    assert eager - least([100, 100], 1, 1, infinite) == 2 * 2 * 100 * 99 * 64


def test_few_tokens_read_few_experts():
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    few, all_of_them = (layer_bytes(config, 0, tokens, 1) - 2 * 2 * 32 * tokens for tokens in (3, 100))
    assert all_of_them - few == (8 - 3 * 2) * 3 * 64 * 96


def test_experts_stand_in_the_layers_that_have_them_beside_one_that_sees_all():
    config = Qwen2MoeConfig(
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        num_attention_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )
    dense, experts = 3 * 64 * 96, 3 * 64 * 2 * 16 + 64 * 8 + 3 * 64 * 32 + 64  # router, shared expert and its gate
    flops = [closed_forms.layer_flops(config, layer, 1) for layer in range(4)]
    assert [count - flops[0] for count in flops] == [0, 2 * (experts - dense), 0, 0]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "qwen3_5_moe", "lfm2_vl"])
def test_a_layer_reads_its_weights(name):
    decoder = FAMILIES[name].model().get_decoder()
    for number, layer in enumerate(decoder.layers):
        weights = sum(weight.numel() for weight in layer.parameters() if weight.ndim > 1)
        keys = 4 * 2 * 8 * 100 if hasattr(layer, "self_attn") else 0
        assert layer_bytes(decoder.config, number, 100, 1) == weights + keys


def test_heads_may_be_wider_than_the_hidden_state():
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    assert closed_forms.decoder_widths(config, 0) == (64, 4 * 32, 2 * 32)


def test_peak_memory_is_the_most_that_is_held_at_once():
    def work():
        first = torch.zeros(10_000, dtype=torch.uint8)
        del first
        second = torch.zeros(3_000, dtype=torch.uint8)
        third = torch.zeros(8_000, dtype=torch.uint8)
        del second, third

    assert peak_bytes(CPU, work) == 11_000
    assert peak_bytes(CPU, lambda: None) == 0


def tiny(config):
    """Of the same geometry, and next to no width."""
    few = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_heads": 2}
    few |= {"num_hidden_layers": 4, "depth": 4, "num_key_value_heads": 1, "head_dim": 16, "out_hidden_size": 32}
    few |= {"fullatt_block_indexes": [3], "deepstack_visual_indexes": [1]}
    parts = [config.vision_config, config.text_config]
    if config.model_type == "gemma4":  # whose heads differ from layer to layer, and whose last layers share
        own = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
        own |= {"global_head_dim": 32, "hidden_size_per_layer_input": 8}
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "head_dim")
        config.text_config = Gemma4TextConfig(**own, num_key_value_heads=1, **{name: few[name] for name in sizes})
        config.audio_config, parts = None, [config.vision_config]
    for part in parts:
        for name, value in few.items():
            if hasattr(part, name):
                setattr(part, name, value)
        if "mrope_section" in (getattr(part, "rope_parameters", None) or {}):
            part.rope_parameters |= {"mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:4]
    return config


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_size_of_its_checkpoint(name):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(SHAPES[name].config())
    assert round(model.num_parameters() / 1e9, 3) == BILLIONS[name]
    assert isinstance(family_of(model), vitcop.ModelFamily)


@pytest.mark.parametrize("name", [name for name in SHAPES if "13b" not in name])
def test_the_model_of_a_shape_takes_what_its_processor_makes(name, monkeypatch):
    """Which it would not if the placeholders were another number than the rows that the encoder makes."""
    shape = SHAPES[name]
    monkeypatch.setitem(SHAPES, name, Shape(lambda: tiny(shape.config()), shape.image_processor))
    model, processor = random_model(name, CPU, torch.float32)
    family = family_of(model)
    size = family.default_size
    prompt = make_prompt(model, processor, random_picture(size), 8, 2, 1)
    assert prompt.length == family.geometry(size).image.placeholders + 8
    assert all(weight.isfinite().all() and weight.abs().max() < 10 for weight in model.parameters())
    with torch.no_grad():
        time_phases(model, prompt, vitcop.Random(retention=0.1), Stopwatch(CPU))
        time_phases(model, prompt, None, Stopwatch(CPU))


def test_weights_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(random_weights, "_memory", lambda device: 10**9)
    result = bench("--model", "llava-1.5-7b", "--device", "cpu")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "take 28.3 GB in float32, and the cpu has 1.0 GB" in result.stderr


def test_a_bare_run_measures_the_model_in_the_box(tmp_path):
    files = tmp_path / "out.json", tmp_path / "out.png"
    options = ["--repeats", 1, "--decode-tokens", 1, "--retentions", "0.2,1/2", "--json", files[0], "--plot", files[1]]
    result = bench(*options, "--methods", "random,vitcop,downsample")
    assert result.exit_code == 0, result.output
    assert "downsample: Down-sampling saves nothing" in result.stdout and "random weights" not in result.stdout
    benchmark = Benchmark.from_dict(json.loads(files[0].read_text()))
    assert (benchmark.setting.weights, benchmark.setting.dtype) == ("loaded", "float32")
    assert [row.method for row in benchmark.blocks[1].rows] == ["dense", "random", "vitcop"]
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "llava-1.5-7"], "unknown shape 'llava-1.5-7'. Did you mean 'llava-1.5-7b'?"),
        (["--model", "./missing"], "no such folder"),
        (["--methods", "vitcop,downsampel"], "Did you mean 'downsample'?"),
        (["--methods", ","], "--methods is one or more"),
        (["--retentions", "1/9,x"], "'x'"),
        (["--retentions", "0.5,2"], "above 0 and at most 1"),
        (["--image-size", "1x60000"], "--image-size has 1 x 60000 pixels, which is too thin"),
        (["--batches", "1,0"], "--batches is a whole number from 1 on, or several with commas; got '0'"),
        (["--batches", ""], "--batches is one or more"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--dtype", "bfloat"], "Did you mean 'bfloat16'?"),
        (["--json", "missing/out.json"], "--json cannot be written: there is no folder missing"),
        (["--json", "."], "is a folder"),
        (["--plot", "out.txt"], "extensions .png, .svg, .pdf"),
        pytest.param(
            ["--device", "cuda"],
            "no GPU that torch can use",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bench(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(cli.outputs, "find_spec", lambda name: None)
    assert 'pip install "vitcop[plot]"' in bench("--plot", "out.png").stderr


def test_pages_say_what_the_stored_runs_say():
    assert report.short() in README.read_text(encoding="utf-8"), "run `make results`"
    assert report.section() in report.PAGE.read_text(encoding="utf-8"), "run `make results`"
