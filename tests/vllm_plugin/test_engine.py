"""A run is never dense in silence: what cannot be right raises, at the start wherever that is possible."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it in an environment of its own")

from engines import ASKS_FOR_POSITIONS, SMALL, ask, engine, tokens
from families import FAMILIES
from setting import checkpoint, questions
from transformers import AutoConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError

import vitcop
from vitcop.models import Grids, family_of
from vitcop.vllm import engine as checks
from vitcop.vllm.processing import TOLD
from vitcop.vllm.served import Served, engine_arguments

METHOD = vitcop.VisionZip(retention=1 / 3)


@pytest.fixture(scope="module")
def llm():
    with engine("llava", METHOD) as llm:
        yield llm


def config_of(name, **settings):
    """What vLLM makes of its arguments, before anything starts."""
    pruned = engine_arguments(AutoConfig.from_pretrained(checkpoint(name)), METHOD)
    return EngineArgs(model=checkpoint(name), **SMALL | pruned | settings).create_engine_config()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llava", {"compilation_config": {"cudagraph_mm_encoder": True}}, "leave out cudagraph_mm_encoder"),
        ("llava", {"compilation_config": {"compile_mm_encoder": True}}, "leave out compile_mm_encoder"),
        ("qwen2_5_vl", {"mm_encoder_tp_mode": "data"}, "leave out --mm-encoder-tp-mode data"),
        ("llava", {"enable_mm_embeds": True}, "leave out --enable-mm-embeds"),
        ("llava", {"enable_prompt_embeds": True}, "leave out --enable-prompt-embeds"),
        ("llava", {"enable_lora": True, "enable_tower_connector_lora": True}, "--enable-tower-connector-lora"),
        ("qwen2_5_vl", {"video_pruning_rate": None}, "add --video-pruning-rate 0.5"),
        ("internvl", {"tensor_parallel_size": 2}, "leave out --tensor-parallel-size"),
    ],
)
def test_engines_whose_encoder_cannot_be_watched_are_refused(name, settings, message):
    family = family_of(FAMILIES[name].model())
    checks.check_engine(config_of(name), family)
    with pytest.raises(vitcop.UnsupportedModelError, match=message):
        checks.check_engine(config_of(name, **settings), family)


def test_a_runner_that_does_not_ask_for_positions_anew_is_refused(monkeypatch):
    monkeypatch.setattr(checks, "asks_for_positions", ASKS_FOR_POSITIONS)
    checks.check_engine(config_of("llava"), family_of(FAMILIES["llava"].model()))
    with pytest.raises(vitcop.UnsupportedModelError, match="runner for CPUs"):
        checks.check_engine(config_of("qwen2_5_vl"), family_of(FAMILIES["qwen2_5_vl"].model()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vitcop": vitcop.CDPruner(retention=1 / 3).to_dict()}, "no text of the prompt"),
        ({"vitcop": vitcop.ViTCoP(retention=1 / 3).to_dict()}, "prunes before decoder layers"),
    ],
)
def test_methods_are_refused_before_weights_are_loaded(settings, message):
    overrides = engine_arguments(AutoConfig.from_pretrained(checkpoint("llava")), METHOD)["hf_overrides"]
    with pytest.raises(ValueError, match=message), engine("llava", None, hf_overrides=overrides | settings):
        pass


def test_the_model_refuses_its_engine():
    refused = pytest.raises(vitcop.UnsupportedModelError, match="enable-mm-embeds")
    with refused, engine("llava", METHOD, enable_mm_embeds=True):
        pass


def model_of(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


@pytest.fixture
def call(llm, monkeypatch):
    """The arguments of a call of the encoder."""
    calls, model = [], model_of(llm)
    original = model._encoded
    monkeypatch.setattr(model, "_encoded", lambda call: calls.append(dict(call)) or original(call))
    llm.llm_engine.reset_encoder_cache()
    llm.reset_prefix_cache()
    ask(llm, questions("llava")[:1])
    return calls[0]


def told(placeholders, method=METHOD):
    """What a front end tells of a picture."""
    fingerprint = Served(method, family_of(FAMILIES["llava"].model()), method.to_dict()).fingerprint
    return {TOLD: torch.tensor([[placeholders, fingerprint]])}


def test_a_count_that_differs_from_the_prompt_raises(llm, call):
    with torch.inference_mode():
        (left,) = model_of(llm).embed_multimodal(**call, **told(12))
        assert len(left) == 12
        with pytest.raises(vitcop.VitcopError, match="whose prompts hold"):
            model_of(llm).embed_multimodal(**call, **told(13))
        with pytest.raises(vitcop.VitcopError, match="a front end that does not prune"):
            model_of(llm).embed_multimodal(**call)
        with pytest.raises(vitcop.VitcopError, match="different methods or versions"):
            model_of(llm).embed_multimodal(**call, **told(12, vitcop.DivPrune(retention=1 / 3)))


def test_an_encoder_that_is_not_seen_raises(llm, call, monkeypatch):
    features = model_of(llm)._features(call)
    monkeypatch.setattr(model_of(llm), "_features", lambda call: features)  # as CUDA graphs would have it
    with pytest.raises(vitcop.UnsupportedModelError, match="ran unseen"):
        model_of(llm).embed_multimodal(**call, **told(12))


def test_a_front_end_that_counts_otherwise_refuses_the_prompt_alone(llm, monkeypatch):
    asked = questions("llava")[:1]
    before = tokens(ask(llm, asked))
    llm.reset_mm_cache()
    with monkeypatch.context() as patch:
        patch.setattr(Served, "image", lambda self, call: Grids.full((5, 5)))
        with pytest.raises(ValueError, match="36 placeholders for a picture of which vitcop counts 25"):
            ask(llm, asked)
    assert tokens(ask(llm, asked)) == before


def test_hashes_of_pictures_tell_methods_apart(llm):
    served = llm.llm_engine.renderer.mm_processor.info
    assert json.dumps(METHOD.to_dict(), sort_keys=True) in served.model_id and vitcop.__version__ in served.model_id


def test_the_log_says_what_is_left_of_the_first_picture(llm, call, caplog):
    logger = logging.getLogger("vllm.vitcop")
    logger.addHandler(caplog.handler)
    model = model_of(llm)
    served = model.served
    model.served = replace(served, method=vitcop.Random(1 / 3, positions="compact"))
    model._told = False
    with caplog.at_level(logging.INFO, logger.name), torch.inference_mode():
        model.embed_multimodal(**call, **told(12))
    model.served = served
    logger.removeHandler(caplog.handler)
    assert "leaves 12 of the 36 placeholders of the first picture" in caplog.text
    assert '"retention": 0.33' in caplog.text


def test_videos_and_pictures_that_touch_or_end_the_prompt_are_refused():
    with engine("qwen2_5_vl", METHOD) as llm:
        video = np.zeros((4, 64, 64, 3), dtype=np.uint8), {"fps": 1, "frames_indices": [*range(4)]}
        prompt = {"prompt": "look at <|video_pad|>", "multi_modal_data": {"video": video}}
        with pytest.raises(VLLMValidationError, match="At most 0 video"):
            llm.generate(prompt)
        touching = {"prompt": "look at <|image_pad|><|image_pad|>"}
        pictures = {"image": [*questions("qwen2_5_vl")[3].pictures]}
        with pytest.raises(ValueError, match="without anything between it and the next one"):
            llm.generate(touching | {"multi_modal_data": pictures})
        with pytest.raises(ValueError, match="or the end: write the markers"):
            llm.generate({"prompt": "look at <|image_pad|>", "multi_modal_data": {"image": pictures["image"][:1]}})
