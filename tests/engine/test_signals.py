"""What methods may read of the model is what the model computes, whatever the attention backend."""

import inspect
from dataclasses import dataclass, field

import pytest
import torch
from families.base import DECODER, IMAGE, NUM_LAYERS, VIDEO
from families.llava import Llava
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, LLAVA, ONE_IMAGE, ThreeStages, batch, merged, ragged
from transformers import DynamicCache, OlmoeConfig, Phi3Config

import vitcop
from vitcop.ops.saliency import attention_received, attention_rows
from vitcop.ops.segments import smallest_per_segment


@dataclass(frozen=True)
class Reading(ThreeStages):
    """Drops as its base does, before some of its layers, and keeps what it read at every stage."""

    until: int = NUM_LAYERS
    since: int = 0
    read: list = field(default_factory=list)

    def budgets(self, num_tokens, num_layers, first_layer=1):
        schedule = super().budgets(num_tokens, num_layers, first_layer)
        chosen = {layer: count for layer, count in schedule.items() if self.since <= layer < self.until}
        return chosen or {num_layers - 2: num_tokens - 1}

    def select(self, tokens, budget):
        seen = {"tokens": tokens, "text": tokens.text}
        if tokens.layer:
            weights = torch.linspace(-1, 1, len(tokens.text.slots))
            seen["weights"] = weights.split(tokens.text.lengths)
            for ahead in (False, True):
                seen[ahead] = tokens.attention(ahead=ahead), tokens.attention(weights, ahead=ahead)
        self.read.append(seen)
        selection = super().select(tokens, budget)
        if self.calibrate != "none" and tokens.layer == 0:
            return merged(selection.keep, tokens.lengths, budget)
        return selection


def run(family, attention, method, inputs):
    """What the method read, the attention weights of each layer and the report."""
    model = family.model(attention)
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        output = model(**inputs, output_attentions=attention == "eager")
    return method.read, output.attentions, pruning.report


def text_behind(inputs, tokens, row, image):
    """Prompt columns of the text behind an image, from its first table."""
    ids = inputs["input_ids"]
    mask, column = inputs.get("attention_mask", torch.ones_like(ids)), torch.arange(ids.shape[1])
    text = mask[row].bool() & (ids[row] != IMAGE) & (ids[row] != VIDEO)
    for other in range(len(tokens.lengths)):
        slots = tokens.slots[tokens.images == other]
        if slots[0] // ids.shape[1] == row:  # breaks between its rows and tiles are no text
            text &= (column < slots.min() % ids.shape[1]) | (column > slots.max() % ids.shape[1])
    last = (tokens.slots[tokens.images == image] % ids.shape[1]).max()
    return (text & (column > last)).nonzero()[:, 0]


class WithOlmoe(Llava):
    """Queries and keys normalised over all heads at once."""

    text = OlmoeConfig(**DECODER, num_experts=4, num_experts_per_tok=2)


HOWS = (("keep", 0, "none"), ("compact", 0, "none"), ("keep", 1, "none"), ("keep", 0, "size"))
ROWS = [(name, *how) for name in FAMILIES for how in HOWS] + [
    (name, "keep", 0, "distance") for name in ("llava", "gemma3", "internvl")
]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(("name", "positions", "since", "calibrate"), [*ROWS, ("llava with olmoe", "keep", 0, "none")])
def test_rows_are_the_attention_that_the_decoder_pays(name, positions, since, calibrate, padding):
    family = FAMILIES[name] if name in FAMILIES else WithOlmoe()
    inputs = batch(ragged(family), padding, family)
    read, weights, report = run(family, "eager", Reading(positions=positions, since=since, calibrate=calibrate), inputs)
    other, _, _ = run(family, "sdpa", Reading(positions=positions, since=since, calibrate=calibrate), inputs)
    entered, _, _ = run(family, "sdpa", Reading(positions=positions, until=1), inputs)
    for seen, under_sdpa in zip(read, other, strict=True):
        if seen["tokens"].layer == 0:
            continue
        tokens, text = seen["tokens"], seen["text"]
        # A layer about to run has paid none yet: it does in a model that goes on without this stage.
        before = Reading(positions=positions, until=tokens.layer, since=since, calibrate=calibrate)
        _, undropped, _ = run(family, "eager", before, inputs)
        columns = report.positions_at(tokens.layer - 1)
        slots = tokens.slots % columns.shape[1]
        paid = {False: weights[tokens.layer - 1].mean(1), True: undropped[tokens.layer].mean(1)}
        behind = text.slots.split(text.lengths)
        for image, row in enumerate(report.rows):
            own, asking = tokens.images == image, behind[image] % columns.shape[1]
            assert torch.equal(columns[row, asking], text_behind(inputs, entered[0]["tokens"], row, image))
            for ahead, attention in paid.items():
                last, weighted = (rows[own] for rows in seen[ahead])
                end = columns[row].argmax()
                torch.testing.assert_close(last, attention[row, end, slots[own]], rtol=1e-4, atol=1e-6)
                expected = seen["weights"][image] @ attention[row][asking][:, slots[own]]
                torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-6)
                for rows, same in zip(seen[ahead], under_sdpa[ahead], strict=True):
                    torch.testing.assert_close(rows, same, rtol=1e-4, atol=1e-5)


def test_rows_under_dropout_are_those_that_the_layers_have_drawn():
    """An adapter in training makes other queries and keys each time: what an encoder or decoder layer made is kept."""
    model, inputs, method = LLAVA.model("eager"), batch(ragged(LLAVA)), Reading()
    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "k_proj"], lora_dropout=0.5)).train()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    encoder, seen_by_cls = model.model.vision_tower.encoder.layers[-2].self_attn, []
    encoder.register_forward_hook(lambda module, args, output: seen_by_cls.append(output[1][:, :, 0, 1:]))
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        weights = wrapped(**inputs, output_attentions=True).attentions
    for seen in method.read[1:]:
        tokens = seen["tokens"]
        columns = pruning.report.positions_at(tokens.layer - 1)
        slots = tokens.slots % columns.shape[1]
        for image, row in enumerate(pruning.report.rows):
            own, paid = tokens.images == image, weights[tokens.layer - 1][row].mean(0)
            last, weighted = (rows[own] for rows in seen[False])
            torch.testing.assert_close(last, paid[-1, slots[own]], rtol=1e-4, atol=1e-6)
            asking = tokens.text.slots.split(tokens.text.lengths)[image] % columns.shape[1]
            expected = seen["weights"][image] @ paid[asking][:, slots[own]]
            torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-6)
    assert not any(layer.self_attn.k_proj._forward_hooks for layer in model.get_decoder().layers)
    expected = torch.cat([weight.sum(0) for weight in seen_by_cls[0]])
    torch.testing.assert_close(method.read[0]["tokens"].saliency, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_states_of_text_and_pictures_are_those_of_the_decoder(name, padding):
    family = FAMILIES[name]
    model, inputs, method = family.model(), batch(ragged(family), padding, family), Reading()
    entered = {}

    def spy(layer, args, kwargs):
        entered[layer.self_attn.layer_idx] = args[0]

    decoder = model.get_decoder()
    with torch.no_grad(), vitcop.prune(model, method):
        hooks = [
            decoder.register_forward_pre_hook(
                lambda d, a, k: entered.update(dense=k["inputs_embeds"]), prepend=True, with_kwargs=True
            )
        ]
        hooks += [layer.register_forward_pre_hook(spy, prepend=True, with_kwargs=True) for layer in decoder.layers]
        cache = model(**inputs).past_key_values
        for hook in hooks:
            hook.remove()
        for seen in method.read:
            tokens, text = seen["tokens"], seen["text"]
            states = entered[tokens.layer] if tokens.layer else entered["dense"]
            first = method.read[0]
            for table, places in ((tokens, first["tokens"].slots[tokens.rows]), (text, first["text"].slots)):
                assert torch.equal(table.hidden_states, states.flatten(0, 1)[table.slots])
                assert torch.equal(table.embeddings, entered["dense"].flatten(0, 1)[places])
                if tokens.layer:
                    keys = cache.layers[tokens.layer - 1].keys
                    if keys.shape[2] == states.shape[1]:  # a cache with a window has forgotten some
                        at = table.slots // states.shape[1], table.slots % states.shape[1]
                        assert torch.equal(table.keys, keys[at[0], :, at[1]])
    assert method.read[0]["text"].keys is None


@dataclass(frozen=True)
class Ahead(vitcop.Pruner):
    """Reads what three layers would project, and drops nothing before the last but one."""

    read: list = field(default_factory=list)

    def budgets(self, num_tokens, num_layers, first_layer=1):
        return {0: num_tokens, max(1, first_layer): num_tokens, 5: num_tokens, num_layers - 2: num_tokens - 1}

    def select(self, tokens, budget):
        text = tokens.text
        projected = [(tokens.queries_ahead(table.slots), tokens.keys_ahead(table.slots)) for table in (tokens, text)]
        self.read.append((tokens, text, projected))
        return vitcop.Selection(smallest_per_segment(tokens.index, tokens.lengths, budget))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", [*FAMILIES, "llava with olmoe"])
def test_what_a_layer_would_project_is_what_it_turns_by_its_rotary_embedding(name, padding, monkeypatch):
    family = FAMILIES[name] if name in FAMILIES else WithOlmoe()
    model, inputs, method = family.model(), batch(ragged(family), padding, family), Ahead()
    with torch.no_grad(), vitcop.prune(model, method):
        model(**inputs)

    made, module = [], inspect.getmodule(type(model.get_decoder().layers[0].self_attn))
    rotate = module.apply_rotary_pos_emb

    def spy(queries, keys, *args, **kwargs):
        made.append((queries.transpose(1, 2).flatten(0, 1), keys.transpose(1, 2).flatten(0, 1)))
        return rotate(queries, keys, *args, **kwargs)

    def spy_on_one(x, *args, **kwargs):
        turned.append(x.flatten(0, 1))
        return rotate(x, *args, **kwargs)

    turned, both = [], "k" in inspect.signature(rotate).parameters
    monkeypatch.setattr(module, "apply_rotary_pos_emb", spy if both else spy_on_one)
    model.get_decoder().register_forward_pre_hook(lambda *args: turned.clear())  # Gemma 4's encoder turns by it, too
    with torch.no_grad():
        model(**inputs)
    made += zip(turned[::2], turned[1::2], strict=False)
    assert len(made) >= NUM_LAYERS and method.read[0][0].layer == 0
    first_tokens, first_text, _ = method.read[0]
    for tokens, _, projected in method.read[:-1]:
        for places, found in zip((first_tokens.slots[tokens.rows], first_text.slots), projected, strict=True):
            for ours, dense in zip(found, made[tokens.layer], strict=True):
                torch.testing.assert_close(ours, dense[places], rtol=1e-4, atol=1e-5)


class WithPhi3(Llava):
    """Queries, keys and values in one projection."""

    text = Phi3Config(**DECODER, num_key_value_groups=2)


def doubled(kwargs):
    return kwargs | {"hidden_states": 2 * kwargs["hidden_states"]}


@pytest.mark.parametrize("change", ["fused", "scaled", "clipped", "soft caps", "other keys"])
def test_attention_that_cannot_be_worked_out_raises(change):
    family = WithPhi3() if change == "fused" else LLAVA
    model = family.model()
    if change == "scaled":
        model.get_decoder().config.rope_parameters["llama_4_scaling_beta"] = 0.1
    if change == "clipped":
        model.get_decoder().config.clip_qkv = 8.0
    if change == "soft caps":
        for layer in model.get_decoder().layers:
            layer.self_attn.attn_logit_softcapping = 30.0
    if change == "other keys":  # as of a norm that nobody told us of
        for layer in model.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(
                lambda module, args, kwargs: (args, doubled(kwargs)), with_kwargs=True
            )
    for method in (vitcop.FastV(0.5), vitcop.ViTCoP(0.5, deep_signal="last_query")):
        cache = DynamicCache()
        with torch.no_grad(), vitcop.prune(model, method) as pruning:
            with pytest.raises(vitcop.UnsupportedModelError, match="rows cannot be worked out"):
                model(**batch([ONE_IMAGE]), past_key_values=cache)
            assert pruning.report is None
            with pytest.raises(vitcop.UnsupportedModelError, match="no longer holds"):  # found out when it was full
                model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    with torch.no_grad(), vitcop.prune(model, vitcop.ViTCoP(0.5)):
        model(**batch([ONE_IMAGE]))
    if change != "other keys":  # which nothing shows at the entrance
        refused = pytest.raises(vitcop.UnsupportedModelError, match="rows cannot be worked out")
        with torch.no_grad(), vitcop.prune(model, vitcop.HAWK(0.5)), refused:
            model(**batch([ONE_IMAGE]))


def test_a_norm_by_another_name_raises():
    """DART compares what it makes of hidden states."""
    model = LLAVA.model()
    decoder = model.get_decoder()
    decoder.final_layernorm = decoder._modules.pop("norm")
    method = vitcop.DART(0.5)
    with torch.no_grad(), vitcop.prune(model, method), pytest.raises(vitcop.UnsupportedModelError, match="no `norm`"):
        model(**batch([ONE_IMAGE]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_queries_and_keys_do_not_overflow(dtype):
    """Fused attention scales before it multiplies; so must we, in a type that ends at 65,504."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (100 + torch.randn(9, 2, 64, generator=generator).to(dtype) for _ in range(2))
    visible = torch.ones(1, 9, 9, dtype=torch.bool)

    def both(queries, keys):
        rows = attention_rows(queries[None], keys.transpose(0, 1)[None], visible, 0.125)
        return rows, attention_received(queries, keys, 0.125, (9,))

    for half, full in zip(both(queries, keys), both(queries.float(), keys.float()), strict=True):
        assert half.isfinite().all()
        if dtype == torch.float16:
            torch.testing.assert_close(half, full)


def test_no_attention_before_the_first_layer():
    @dataclass(frozen=True)
    class TooEarly(vitcop.Random):
        def score(self, tokens):
            return tokens.attention()

    model = LLAVA.model()
    with torch.no_grad(), vitcop.prune(model, TooEarly()), pytest.raises(vitcop.VitcopError, match="later layer"):
        model(**batch([ONE_IMAGE]))
