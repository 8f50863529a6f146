"""What can be served is known, and what cannot is refused, before vLLM is imported."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
from families import FAMILIES, MISSING
from tiny import METHODS

import vitcop
from vitcop.models import Size, family_of
from vitcop.vllm import register
from vitcop.vllm.architectures import BACKEND, BACKEND_MROPE, CLASSES, NATIVE
from vitcop.vllm.served import Served, architecture_of, configured, engine_arguments

VISIONZIP = vitcop.VisionZip(retention=1 / 3)
SERVED = {
    "llava": NATIVE["llava"],
    "llava with mixtral": NATIVE["llava"],
    "llava with siglip": NATIVE["llava"],
    "llava with dinov2": BACKEND,
    "llava with registers": BACKEND,
    "llava_next": NATIVE["llava_next"],
    "llava_onevision": BACKEND,
    "internvl": BACKEND,
    "qwen2_vl": BACKEND_MROPE,
    "qwen2_5_vl": NATIVE["qwen2_5_vl"],
}
REFUSED = {
    "llava with pixtral": "text among the tokens of a picture",
    "mistral3": "text among the tokens of a picture",
    "idefics3": "text among the tokens of a picture",
    "smolvlm": "text among the tokens of a picture",
    "gemma3": "sliding windows",
    "gemma4": "sliding windows",
    "gemma4 with experts": "sliding windows",
    "qwen3_vl": "DeepStack",
    "qwen3_vl_moe": "DeepStack",
    "llava_next_video": "not been tested",
    "video_llava": "not been tested",
    "glm4v": "not been tested",
    "glm4v with videos": "not been tested",
    "glm46v": "not been tested",
    "glm4v_moe": "not been tested",
    "qwen3_5": "not been tested",
    "qwen3_5_moe": "not been tested",
    "lfm2_vl": "not been tested",
    "video_llama_3": "not been tested",
    "aya_vision": "sliding windows",
    "aya_vision with cohere": "not been tested",
    "cohere2_vision": "sliding windows",
    "llama4": "sliding windows",
    "paligemma": "not been tested",
    "paligemma with gemma2": "sliding windows",
    "minicpmv4_6": "text among the tokens of a picture",
    "minicpmv4_7": "text among the tokens of a picture",
    "qwen2_5_omni_thinker": "not been tested",
    "qwen3_omni_moe_thinker": "DeepStack",
    "molmo2": "text among the tokens of a picture",
    "molmo2 with videos": "text among the tokens of a picture",
}
REFUSED = {name: reason for name, reason in REFUSED.items() if name.split(" with ")[0] not in MISSING}


def config_of(name, method=VISIONZIP, **changes):
    """The config of a tiny model, as vLLM has it when it is served under a method."""
    config = copy.deepcopy(FAMILIES[name].model().config)
    settings = engine_arguments(config, VISIONZIP)["hf_overrides"] | {"vitcop": method.to_dict()} | changes
    for setting, value in settings.items():
        setattr(config, setting, value)
    return config


def test_every_family_is_served_or_refused():
    assert SERVED.keys() | REFUSED.keys() == FAMILIES.keys()
    assert set(NATIVE.values()) | {BACKEND, BACKEND_MROPE} == CLASSES.keys()


@pytest.mark.parametrize("name", SERVED)
def test_the_config_says_what_is_served(name):
    config = config_of(name)
    assert config.architectures == [SERVED[name]]
    served = configured(config)
    assert served.method == VISIONZIP and type(served.family) is type(family_of(FAMILIES[name].model()))
    assert configured(config) is served
    assert all(parameter.is_meta for parameter in served.family.model.parameters())
    switched = "video_pruning_rate" in engine_arguments(config, VISIONZIP)
    assert switched == served.family.keeps_positions


def test_onevision_that_shrinks_to_nine_tiles_is_native():
    config = copy.deepcopy(FAMILIES["llava_onevision"].model().config)
    config.vision_aspect_ratio = "anyres_max_9"
    assert engine_arguments(config, VISIONZIP)["hf_overrides"]["architectures"] == [NATIVE["llava_onevision"]]


@pytest.mark.parametrize("name", REFUSED)
def test_what_vllm_would_serve_otherwise_is_refused(name):
    with pytest.raises(vitcop.UnsupportedModelError, match=REFUSED[name]):
        engine_arguments(FAMILIES[name].model().config, VISIONZIP)


METHODS_REFUSED = {
    "fastv": "prunes before decoder layers",
    "vitcop": "prunes before decoder layers",
    "pipeline": "prunes before decoder layers",
    "cdpruner": "no text of the prompt",
    "mmtok": "no text of the prompt",
    "census": "set calibrate='none'",
    "visionzip_calibrated": "set calibrate='none'",
    "census_uncalibrated": "set positions='compact' for census",
}


@pytest.mark.parametrize("name", METHODS_REFUSED)
def test_methods_that_do_more_than_choose_at_the_entrance_are_refused(name):
    config, message = FAMILIES["llava"].model().config, METHODS_REFUSED[name]
    with pytest.raises(vitcop.UnsupportedModelError, match=message):
        engine_arguments(config, METHODS[name])
    with pytest.raises(vitcop.UnsupportedModelError, match=message):
        configured(config_of("llava", METHODS[name]))


def test_gaps_between_positions_are_served_where_tokens_always_keep_theirs():
    engine_arguments(FAMILIES["qwen2_5_vl"].model().config, vitcop.SCOPE(retention=1 / 3))


def test_processes_that_name_a_method_of_ones_own_each_in_its_way_are_told_to_prune_alike(tmp_path):
    file = tmp_path / "of_ones_own.py"
    file.write_text("from vitcop import VisionZip\n\n\nclass OfOnesOwnServed(VisionZip):\n    pass\n")
    method = vitcop.Pruner.from_dict({"method": f"{file}:OfOnesOwnServed", "retention": 1 / 3})
    config = config_of("llava", method)
    front_end = configured(config, {"vitcop": config.vitcop})
    type(method).__module__ = "__mp_main__"  # as a spawned process has the script that defines it
    worker = configured(config_of("llava", method, vitcop=dict(config.vitcop)), {"vitcop": config.vitcop})
    assert method.to_dict() != config.vitcop and front_end is not worker
    assert front_end.fingerprint == worker.fingerprint


def test_a_probe_is_needed_too_where_only_large_pictures_ask_for_it():
    method = vitcop.EarlyViTCoP(tokens=1024)
    engine_arguments(FAMILIES["llava"].model().config, method)
    with pytest.raises(vitcop.UnsupportedModelError, match="Transformers backend"):
        engine_arguments(FAMILIES["llava with dinov2"].model().config, method)


def test_a_probe_needs_layers_of_vllm_and_a_first_token():
    method = vitcop.EarlyViTCoP(retention=1 / 3)
    engine_arguments(FAMILIES["llava"].model().config, method)
    with pytest.raises(vitcop.UnsupportedModelError, match="Transformers backend"):
        engine_arguments(FAMILIES["llava with dinov2"].model().config, method)
    with pytest.raises(vitcop.UnsupportedModelError, match="Transformers backend"):
        configured(config_of("llava", method, architectures=[BACKEND]))
    config = copy.deepcopy(FAMILIES["llava"].model().config)
    config.text_config.bos_token_id = None
    with pytest.raises(vitcop.UnsupportedModelError, match="no bos_token_id"):
        engine_arguments(config, method)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vitcop": None}, "The config says no method"),
        ({"vitcop": {"method": "visionzap"}}, "Did you mean 'visionzip'"),
        ({"vitcop": {"method": "visionzip", "share": 0.1}}, "unknown setting"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, f"are served as {NATIVE['llava']}"),
        ({"architectures": [NATIVE["llava_next"]]}, f"are served as {NATIVE['llava']}"),
        ({"architectures": None}, f"are served as {NATIVE['llava']}"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(changes, message):
    with pytest.raises(vitcop.VitcopError, match=message):
        configured(config_of("llava", **changes))


@pytest.mark.parametrize("nested", [False, True])
def test_code_is_run_only_for_who_starts_the_server(nested, tmp_path):
    file, settings = tmp_path / f"downloaded_{nested}.py", VISIONZIP.to_dict()
    file.write_text(f"from vitcop import VisionZip\n\n\nclass Downloaded{nested}(VisionZip):\n    pass\n")
    method = settings | {"method": f"{file}:Downloaded{nested}"}
    if nested:
        stage = {"selector": method, "layer": 0, "share": 0.5}
        method = {
            "method": "pipeline",
            "stages": [stage],
            "retention": 0.5,
            "positions": "compact",
            "calibrate": "none",
        }
    config = config_of("llava")
    config.vitcop = method
    with pytest.raises(vitcop.VitcopError, match="files of the model name a method whose code would be run"):
        configured(config, {"architectures": config.architectures})
    assert configured(config, {"vitcop": method}).method.positions == "compact"


def test_siglip_with_its_pooling_head_is_refused_on_the_backend():
    config = config_of("llava with siglip", architectures=[BACKEND])
    configured(copy.deepcopy(config))
    config.vision_config.vision_use_head = True
    with pytest.raises(vitcop.UnsupportedModelError, match="pooling head"):
        configured(config)


@pytest.mark.parametrize("name", SERVED)
def test_no_picture_leaves_more_than_memory_is_profiled_for(name):
    """Also of the tall ones, which have fewer tokens and more rows, and so more newlines."""
    family, largest = family_of(FAMILIES[name].model()), None
    most = max(size.height for size in Served(VISIONZIP, family, {})._largest)
    for retention in (0.05, 0.5):
        served = Served(vitcop.VisionZip(retention), family, {})
        sizes = {Size(height, width) for height in (most, most // 2) for width in (most, most // 2, most // 4)}
        images = [family.geometry(size).image for size in sizes]
        if SERVED[name] in (BACKEND, BACKEND_MROPE):  # which is told of the largest
            largest = max(image.placeholders for image in images)
        left = [served.placeholders_left(image) for image in images]
        assert max(left) <= served.most_placeholders(largest) <= 1.5 * max(left) + 8


def test_registering_imports_nothing_heavy_and_can_be_repeated(monkeypatch):
    registered = {}
    registry = SimpleNamespace(register_model=registered.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    register()
    register()
    assert registered == CLASSES
    code = "import sys, vitcop.vllm; assert not {'torch', 'transformers', 'vllm'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_architecture_says_where_its_class_stands():
    from importlib.util import find_spec

    assert all(find_spec(place.partition(":")[0]) for place in CLASSES.values())
    assert architecture_of(family_of(FAMILIES["llava"].model())) in CLASSES
