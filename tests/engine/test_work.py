"""How much work pruning is, counted and not timed: operators, what waits for the device, and memory."""

import sys
from collections import Counter

import pytest
import tiny
import torch
from families import FAMILIES
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vitcop
from vitcop.bench.memory import peak_bytes
from vitcop.engine.stages import Stages
from vitcop.ops.cluster import density_peaks

VITCOP, LAST_QUERY = tiny.METHODS["vitcop"], tiny.METHODS["vitcop_last_query"]
OF_VITCOP = ("vitcop", "vitcop_last_query", "earlyvitcop")
# Experts wait for what each of them gets, in the layer of a probe as well.
UNAWAITED = [
    (name, method)
    for name, family in FAMILIES.items()
    for method in OF_VITCOP
    if (name, method) != ("llava with mixtral", "earlyvitcop") and method not in family.refuses
]
CPU = torch.device("cpu")

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.equal.default,
}
"""The host waits for what these find in a tensor."""


class Work(TorchDispatchMode):
    """Operators that run: a launch each, or a few, on a GPU. Views are none."""

    def __init__(self):
        super().__init__()
        self.counts, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view:
            self.counts[operator] += 1
        if self._waits(operator, args, kwargs or {}):
            self.waits[operator] += 1
        return operator(*args, **kwargs or {})

    def _waits(self, operator, args, kwargs):
        if operator == aten.lift_fresh.default:
            return not _is_called("upload")  # by which lists go to the device unawaited
        if operator == aten.index.Tensor:
            return any(index is not None and index.dtype == torch.bool for index in args[1])
        if operator == aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        return operator in READING


def _reading(name, method):
    """A method of tensors that tells the work going on that it was called."""

    def read(self, *args, **kwargs):
        for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
            if isinstance(mode, Work):
                mode.waits[name] += 1
        return method(self, *args, **kwargs)

    return read


def _is_called(name):
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


@pytest.fixture
def stages(monkeypatch):
    """The work of each stage: observing, selecting, merging and packing."""
    found, stage = [], Stages._stage
    for name in ("tolist", "numpy", "cpu"):  # which run no operator where a tensor is on the CPU already
        monkeypatch.setattr(torch.Tensor, name, _reading(name, getattr(torch.Tensor, name)))

    def worked(self, *args):
        with Work() as work:
            result = stage(self, *args)
        found.append(work)
        return result

    monkeypatch.setattr(Stages, "_stage", worked)
    return found


def prefill(model, inputs, method):
    with torch.no_grad(), vitcop.prune(model, method):
        model(**inputs)


@pytest.mark.parametrize(("name", "method"), UNAWAITED)
def test_no_stage_of_vitcop_waits_for_the_device(name, method, stages):
    family, pruner = FAMILIES[name], tiny.METHODS[method]
    prefill(family.model(), tiny.batch(tiny.ragged(family), family=family), pruner)
    assert len(stages) == len(pruner.budgets(100, 8))
    assert not sum((work.waits for work in stages), Counter())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "method"), UNAWAITED)
def test_no_stage_of_vitcop_synchronises_on_a_gpu(name, method, monkeypatch):
    family, stage = FAMILIES[name], Stages._stage

    def watched(self, *args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return stage(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Stages, "_stage", watched)
    inputs = tiny.batch(tiny.ragged(family), family=family)
    prefill(family.model().cuda(), {key: value.cuda() for key, value in inputs.items()}, tiny.METHODS[method])


def operators(stages, prompts, method=VITCOP):
    """How many run in each stage of ViTCoP."""
    stages.clear()
    prefill(tiny.LLAVA.model(), tiny.batch(prompts), method)
    return [work.counts.total() for work in stages]


def test_stages_of_vitcop_run_few_operators(stages):
    """Each is a launch, or several, which is what a prompt alone pays for. Lower the numbers where they have fallen."""
    alone = operators(stages, [tiny.ONE_IMAGE])
    assert all(count <= most for count, most in zip(alone, (74, 124, 23), strict=True)), alone
    *_, deep = operators(stages, [tiny.ONE_IMAGE], LAST_QUERY)
    assert deep <= 89, deep


@pytest.mark.parametrize("method", OF_VITCOP)
def test_no_operator_runs_once_per_image(method, stages):
    pruner = tiny.METHODS[method]
    several = operators(stages, tiny.RAGGED, pruner)
    assert operators(stages, tiny.RAGGED * 3, pruner) == several
    assert operators(stages, [tiny.ONE_IMAGE] * 9, pruner) == operators(stages, [tiny.ONE_IMAGE] * 2, pruner)


@pytest.mark.parametrize(("name", "window", "most"), [("llava", None, 2), ("gemma3", 1000, 2), ("gemma3", 12, 54)])
def test_decoding_needs_no_operator_of_ours_but_for_positions(name, window, most):
    """Without padding no mask is made, except where a window ends, once for each stretch of layers; positions that
    nobody has given are two operators. Lower the numbers where they have fallen."""
    model, inputs = FAMILIES[name].model(), tiny.batch([tiny.ONE_IMAGE], family=FAMILIES[name])
    if window is not None:
        model.config.text_config.sliding_window = window

    def decoding():
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(**inputs, past_key_values=cache)
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)
            with Work() as work:
                model(input_ids=torch.tensor([[5]]), past_key_values=cache)
        return work.counts

    dense = decoding()
    with vitcop.prune(model, VITCOP):
        pruned = decoding()
    assert (pruned - dense).total() <= most, pruned - dense


@pytest.mark.parametrize("cutoff", [8.0, None])
def test_clustering_a_large_picture_takes_less_than_100_mb(cutoff):
    generator = torch.Generator().manual_seed(0)
    keys, places = torch.randn(2880, 1024, generator=generator), torch.rand(2880, 2, generator=generator)
    taken = peak_bytes(CPU, lambda: density_peaks(keys, places, [2880], [345], cutoff=cutoff, radius=0.6))
    assert taken < 100e6


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("retention", [1 / 3, 1 / 9])
def test_peak_memory_falls_by_keys_values_and_activations(batch, retention):
    """Activations: those of an MLP, and two hidden states, of the tokens that no layer holds any more."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=8, num_attention_heads=4, vocab_size=100
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=99)).eval()
    ids = torch.tensor([[1] * 5 + [99] * 576 + [2] * 20] * batch)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(batch, 3, 336, 336)}

    def taken():
        with torch.no_grad():
            return peak_bytes(CPU, lambda: model(**inputs, logits_to_keep=1))

    dense = taken()
    with vitcop.prune(model, vitcop.ViTCoP(retention)) as pruning:
        pruned = taken()
    dense_cache, cache = pruning.report.kv_cache_bytes
    gone = batch * (ids.shape[1] - max(pruning.report.tokens()))
    activations = gone * (3 * text.intermediate_size + 2 * text.hidden_size) * torch.float32.itemsize
    assert dense - pruned >= dense_cache - cache + activations
