"""What methods may read of the model is what the model computes, whatever the attention backend."""

import inspect
import operator
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from families.base import DECODER, IMAGE, NUM_LAYERS, VIDEO
from families.llava import Llava
from families.paligemma import PaliGemma2
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, LLAVA, METHODS, ONE_IMAGE, ThreeStages, batch, merged, ragged
from transformers import DynamicCache, OlmoeConfig, Phi3Config

import vitcop
from vitcop.models import family_of
from vitcop.ops.saliency import attention_received, attention_rows
from vitcop.ops.segments import smallest_per_segment


@dataclass(frozen=True)
class Reading(ThreeStages):
    """Drops as its base does, before some of its layers, and keeps what it read at every stage."""

    until: int = NUM_LAYERS
    since: int = 0
    attends: tuple = tuple(range(NUM_LAYERS))
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
            for ahead in (False, True) if tokens.layer in self.attends else (False,):
                seen[ahead] = tokens.attention(ahead=ahead), tokens.attention(weights, ahead=ahead)
        self.read.append(seen)
        selection = super().select(tokens, budget)
        if self.calibrate != "none" and tokens.layer == 0:
            return merged(selection.keep, tokens.lengths, budget)
        return selection


SHOWN = [name for name, family in FAMILIES.items() if "fastv" not in family.refuses]
"""Families whose decoders show rows of attention."""


def run(family, attention, method, inputs):
    """What the method read, the attention weights of each layer that attends, by its number, and the report."""
    model = family.model(attention)
    with torch.no_grad(), vitcop.prune(model, method) as pruning:
        output = model(**inputs, output_attentions=attention == "eager")
    weights = dict(zip(attending(model), output.attentions or (), strict=False))
    return method.read, weights, pruning.report


def attending(model):
    """Numbers of the decoder layers that attend."""
    return [number for number, layer in enumerate(model.get_decoder().layers) if hasattr(layer, "self_attn")]


def nearest(layers, before):
    """The last one of some layers before another."""
    return max(layer for layer in layers if layer < before)


def slots_of(columns, held):
    """Where a layer that holds some prompt columns, of all tokens or of a row for each, has those of tokens."""
    return (held == columns[:, None]).int().argmax(1)


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


class WithoutCap(PaliGemma2):
    """Rows that reach beyond a window where tokens see each other both ways."""

    cap = None


OTHERS = {"llava with olmoe": WithOlmoe(), "paligemma without a cap": WithoutCap()}

HOWS = (("keep", 0, "none"), ("compact", 0, "none"), ("keep", 1, "none"), ("keep", 0, "size"))
ROWS = [(name, *how) for name in SHOWN for how in HOWS] + [
    (name, "keep", 0, "distance") for name in ("llava", "gemma3", "internvl")
]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "positions", "since", "calibrate"), [*ROWS, *((name, "keep", 0, "none") for name in OTHERS)]
)
def test_rows_are_the_attention_that_the_decoder_pays(name, positions, since, calibrate, padding):
    family = (FAMILIES | OTHERS)[name]
    inputs, attends = batch(ragged(family), padding, family), tuple(attending(family.model()))
    reading = partial(Reading, positions=positions, since=since, calibrate=calibrate, attends=attends)
    read, weights, report = run(family, "eager", reading(), inputs)
    other, _, _ = run(family, "sdpa", reading(), inputs)
    entered, _, _ = run(family, "sdpa", Reading(positions=positions, until=1, attends=attends), inputs)
    for seen, under_sdpa in zip(read, other, strict=True):
        if seen["tokens"].layer == 0:
            continue
        tokens, text = seen["tokens"], seen["text"]
        # A layer about to run has paid none yet: it does in a model that goes on without this stage.
        _, undropped, _ = run(family, "eager", reading(until=tokens.layer), inputs)
        columns, shown = report.positions_at(tokens.layer - 1), nearest(weights, tokens.layer)
        slots = tokens.slots % columns.shape[1]
        paid = {False: (weights[shown].mean(1), report.positions_at(shown))}
        if tokens.layer in attends:
            paid[True] = undropped[tokens.layer].mean(1), columns
        behind = text.slots.split(text.lengths)
        for image, row in enumerate(report.rows):
            own, asking = tokens.images == image, behind[image] % columns.shape[1]
            assert torch.equal(columns[row, asking], text_behind(inputs, entered[0]["tokens"], row, image))
            for ahead, (attention, held) in paid.items():
                last, weighted = (rows[own] for rows in seen[ahead])
                # Where they stood in that layer, which another stage may have left fewer of since.
                looked_at = slots_of(columns[row, slots[own]], held[row])
                looking = slots_of(columns[row, asking], held[row])
                torch.testing.assert_close(last, attention[row, held[row].argmax(), looked_at], rtol=1e-4, atol=1e-6)
                expected = seen["weights"][image] @ attention[row][looking][:, looked_at]
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
@pytest.mark.parametrize("name", SHOWN)
def test_states_of_text_and_pictures_are_those_of_the_decoder(name, padding):
    family = FAMILIES[name]
    model, inputs, entered = family.model(), batch(ragged(family), padding, family), {}
    attends = tuple(attending(model))
    method = Reading(attends=attends)

    decoder = model.get_decoder()
    number = {layer: index for index, layer in enumerate(decoder.layers)}

    def spy(layer, args, kwargs):
        entered[number[layer]] = args[0]

    with torch.no_grad(), vitcop.prune(model, method) as pruning:
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
                    shown = nearest(attends, tokens.layer)
                    keys, held = cache.layers[shown].keys, pruning.report.positions_at(shown)
                    if keys.shape[2] == held.shape[1]:  # a cache with a window has forgotten some
                        row, slot = table.slots // states.shape[1], table.slots % states.shape[1]
                        column = pruning.report.positions_at(tokens.layer - 1)[row, slot]
                        at = slots_of(column, held[row])
                        assert torch.equal(table.keys, keys[row, :, at])
    assert method.read[0]["text"].keys is None


@dataclass(frozen=True)
class Ahead(vitcop.Pruner):
    """Reads what some layers would project, those that attend, and drops nothing before the last but one."""

    attends: tuple = tuple(range(NUM_LAYERS))
    read: list = field(default_factory=list)

    def budgets(self, num_tokens, num_layers, first_layer=1):
        return {0: num_tokens, max(1, first_layer): num_tokens, 5: num_tokens, num_layers - 2: num_tokens - 1}

    def select(self, tokens, budget):
        text, projected = tokens.text, []
        if tokens.layer in self.attends:
            tables = tokens, text
            projected = [(tokens.queries_ahead(table.slots), tokens.keys_ahead(table.slots)) for table in tables]
        self.read.append((tokens, text, projected))
        return vitcop.Selection(smallest_per_segment(tokens.index, tokens.lengths, budget))


PROJECTIONS = operator.attrgetter("q_proj", "k_proj")


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", [*SHOWN, "llava with olmoe"])
def test_what_a_layer_would_project_is_what_it_turns_by_its_rotary_embedding(name, padding, monkeypatch):
    family = (FAMILIES | OTHERS)[name]
    model, inputs = family.model(), batch(ragged(family), padding, family)
    attends = attending(model)
    method = Ahead(attends=tuple(attends))
    with torch.no_grad(), vitcop.prune(model, method):
        model(**inputs)

    layers = model.get_decoder().layers
    made, module = [], inspect.getmodule(type(layers[attends[0]].self_attn))
    name = "apply_rotary_pos_emb" if hasattr(module, "apply_rotary_pos_emb") else "apply_rotary_emb"
    rotate = getattr(module, name)

    def spy(queries, keys, *args, **kwargs):
        made.append((queries.transpose(1, 2).flatten(0, 1), keys.transpose(1, 2).flatten(0, 1)))
        return rotate(queries, keys, *args, **kwargs)

    def spy_before_norm(queries, keys, *args, **kwargs):
        made.append(tuple(layers[0].self_attn.qk_norm(states.flatten(0, 1)) for states in (queries, keys)))
        return rotate(queries, keys, *args, **kwargs)

    def spy_on_one(x, *args, **kwargs):
        turned.append(x.flatten(0, 1))
        return rotate(x, *args, **kwargs)

    def unturned(attention, args, kwargs):
        states = kwargs["hidden_states"]
        heads = (proj(states).flatten(0, 1).unflatten(1, (-1, attention.head_dim)) for proj in PROJECTIONS(attention))
        made.append(tuple(heads))

    turned, taken = [], inspect.signature(rotate).parameters
    other = spy_before_norm if "xk" in taken else spy_on_one  # Llama 4 turns first
    monkeypatch.setattr(module, name, spy if "k" in taken else other)
    model.get_decoder().register_forward_pre_hook(lambda *args: turned.clear())  # Gemma 4's encoder turns by it, too
    for number, layer in enumerate(layers):
        if not family_of(model).turns(number):
            layer.self_attn.register_forward_pre_hook(unturned, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    made += zip(turned[::2], turned[1::2], strict=False)
    assert len(made) >= sum(layer < family_of(model).num_layers for layer in attends) and method.read[0][0].layer == 0
    first_tokens, first_text, _ = method.read[0]
    for tokens, _, projected in method.read[:-1]:
        tables = first_tokens.slots[tokens.rows], first_text.slots
        for places, found in zip(tables, projected, strict=bool(projected)):
            for ours, dense in zip(found, made[attends.index(tokens.layer)], strict=True):
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


@pytest.mark.parametrize(
    ("name", "method"), [(name, m) for name, family in FAMILIES.items() for m in sorted(family.refuses)]
)
def test_what_layers_do_not_show_is_refused(name, method):
    """A layer that does not attend shows nothing, one with a soft cap no rows, and an image that sees text no keys."""
    family = FAMILIES[name]
    model, inputs = family.model(), batch([ONE_IMAGE], family=family)
    ways = "folds tokens into a state|rows cannot be worked out|cannot be run over an image by itself"
    refused = pytest.raises(vitcop.UnsupportedModelError, match=ways)
    with torch.no_grad(), vitcop.prune(model, METHODS[method]), refused:
        model(**inputs)


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
