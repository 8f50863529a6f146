"""The parts of the testbed, beside what others read from the same files; and the whole, with a random adapter."""

import copy
import json
from functools import cache

import needs
import pytest
import torch
from transformers import AutoTokenizer, Dinov2Model, LlamaForCausalLM, LlavaForConditionalGeneration
from typer.testing import CliRunner

from vitcop import cli, testbed
from vitcop.quality import Suite
from vitcop.quality.reader import Reader
from vitcop.scenes import scene
from vitcop.testbed.architecture import SIDE, decoder_config, encoder_config
from vitcop.testbed.packages import DINOV2, SMOLLM2

pytestmark = needs.testbed_parts

TAPPED = (0, 5, 10, 11)  # layers


@cache
def unadapted():
    return testbed.unadapted()


def test_encoder_sees_what_the_onnx_file_sees():
    import onnx
    import onnxruntime

    graph = onnx.load(DINOV2.path())
    taps = [f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in TAPPED]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tap) for tap in taps)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    model, processor = unadapted()
    pictures = [scene(seed, "test").picture for seed in (0, 1)]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    wanted = session.run(taps, {"input_image": pixels.numpy()})
    encoder = model.model.vision_tower
    assert type(encoder) is Dinov2Model and pixels.shape == (2, 3, SIDE, SIDE)
    with torch.inference_mode():
        seen = encoder(pixels, output_hidden_states=True)
    for layer, want in zip(TAPPED, wanted, strict=True):
        torch.testing.assert_close(seen.hidden_states[layer + 1], torch.from_numpy(want), rtol=1e-4, atol=1e-4)
    assert encoder.config.image_size == SIDE and encoder_config().num_hidden_layers == TAPPED[-1] + 1


def test_decoder_is_what_transformers_reads_from_the_gguf_file():
    path = SMOLLM2.path()
    other = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model, _ = unadapted()
    own = model.model.language_model.state_dict()
    theirs = other.model.state_dict()
    assert own.keys() == theirs.keys() and all(weight.equal(theirs[name]) for name, weight in own.items())
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    settings = decoder_config().to_dict()
    read = other.config.to_dict()
    differing = {name for name, value in settings.items() if read.get(name) != value}
    assert differing <= {"_name_or_path", "architectures", "dtype", "rms_norm_eps"}
    assert read["rms_norm_eps"] == pytest.approx(settings["rms_norm_eps"])  # of which the file has 32 bits


def test_tokenizer_differs_from_smollm2s_in_one_name():
    path = SMOLLM2.path()
    other = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = unadapted()[1].tokenizer
    own, theirs = tokenizer.get_vocab(), other.get_vocab()
    assert theirs.keys() - own.keys() == {"<repo_name>"} and own["<image>"] == theirs["<repo_name>"] == 3
    assert len(tokenizer) == len(other) == 49152
    text = "<|im_start|>USER: How many of the 12 giraffes don't eat? ASSISTANT: two<|im_end|>"
    assert tokenizer(text)["input_ids"] == other(text)["input_ids"]
    assert tokenizer(f"{text}<image>")["input_ids"] == [*other(text)["input_ids"], 3]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    special = tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert special == (0, 1, 2, 2) and tokenizer.padding_side == "left"


def test_projector_is_drawn_always_alike():
    torch.manual_seed(3)
    again, _ = testbed.unadapted()
    state = again.state_dict()
    assert all(weight.equal(state[name]) for name, weight in unadapted()[0].state_dict().items())


def test_a_saved_testbed_answers_as_the_one_that_is_built(tmp_path, monkeypatch, adapt):
    model, _ = copy.deepcopy(unadapted())
    adapt(model, tmp_path / "adapter")
    monkeypatch.setattr("vitcop.testbed.model.ADAPTER", tmp_path / "adapter")
    testbed.save(tmp_path / "saved")
    assert "Apache-2.0" in (tmp_path / "saved" / "README.md").read_text()
    own = testbed.adapted(copy.deepcopy(unadapted()[0]), tmp_path / "adapter").state_dict()
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved").state_dict()
    assert own.keys() == loaded.keys() and all(weight.equal(loaded[name]) for name, weight in own.items())
    answers = []
    for name in ("testbed", str(tmp_path / "saved")):
        file = tmp_path / "run.json"
        asked = ["run", "What is it?", "--model", name, "--max-new-tokens", "4", "--json", str(file)]
        result = CliRunner().invoke(cli.app, asked)
        assert result.exit_code == 0, result.output
        answers.append(json.loads(file.read_text()) | {"model": None})
    assert answers[0] == answers[1] and answers[0]["report"]["images"][0]["tokens"] == 256


def test_the_trained_adapter_answers_questions_about_photographs():
    """Far more than the guesses, of the types that are counted."""
    suite = Suite.of("photos", 48, seed=1)
    model, processor = testbed.build()
    given = Reader(model, processor, suite.cases, 12).read(None).answers
    right, guessed = (
        sum(answer == case.answer for answer, case in zip(answers, suite.cases, strict=True))
        for answers in (given, suite.guesses())
    )
    assert right >= guessed + 8, (right, guessed)
