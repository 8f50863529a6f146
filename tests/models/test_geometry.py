"""Visual tokens stand where they are said to, and their saliency is the attention that the encoder computes."""

import inspect
import math

import pytest
import torch
from families.minicpmv import MISSING, Unmerged
from families.molmo2 import PATCH
from measures import LargestTensor
from needs import has_molmo2
from tables import table
from tiny import FAMILIES

import vitcop
from vitcop.engine.hooks import _OBSERVATION
from vitcop.models import encoders, family_of, video_llama_3
from vitcop.models.grids import Grids
from vitcop.ops import saliency
from vitcop.selection.tokens import EncoderSignal

OTHERS = {} if MISSING else {"minicpmv4_6 without merger": Unmerged()}
KINDS = [(name, kind) for name, family in FAMILIES.items() for kind in family.kinds]


def visuals(name, kind):
    family = (FAMILIES | OTHERS)[name]
    return [family.visual(kind, size, seed=size) for size in range(family.sizes if kind == "image" else 1)]


def encode(model, kind, inputs):
    """What the model makes of pictures, one row per placeholder, and what was observed of it."""
    encoder = getattr(model.base_model, f"get_{kind}_features")
    parameters = inspect.signature(encoder).parameters
    call = {name: inputs[name] for name in (*parameters, "image_sizes") if name in inputs}
    if kind == "video" and "pixel_values" in parameters:  # as transformers called it before 5.18
        call["pixel_values"] = inputs["pixel_values_videos"]
    if model.config.model_type == "llama4" and "vision_feature_select_strategy" in parameters:
        call["vision_feature_select_strategy"] = None  # which transformers wanted, for nothing, in 5.17
    with torch.no_grad():
        output = encoder(**call, return_dict=True)
    features = torch.cat([feature.flatten(0, -2) for feature in family_of(model).features_in(output)])
    observation = getattr(output, _OBSERVATION)
    place = Grids.join(observation.images)
    if len(features) < place.placeholders:  # separators are yet to come
        features = torch.zeros(place.placeholders, features.shape[1]).masked_scatter(place.visual[:, None], features)
    return features, observation


def without_mixing(model, family):
    """Leave every patch of the encoder to itself, so that what is painted changes nothing elsewhere."""
    for kind, observed in family.observed.items():
        for module in family.vision(kind).tower.modules():  # Molmo 2's projector attends, too
            if type(module) is type(observed):
                last = [child for name, child in module.named_children() if name in OUTPUTS]
                torch.nn.init.zeros_(next(last[0].parameters()))  # its weight


OUTPUTS = ("out_proj", "o_proj", "proj", "projection_layer", "value")  # the last is DINOv2's before transformers 5.18


def changed(before, after):
    return (before - after).abs().flatten(1).amax(1) > 1e-6


def test_cells_are_whole_again_in_grids_of_any_size():
    """Places are fractions: of 41 rows and more, some come out below their number."""
    for rows in range(1, 130):
        image = Grids.full((rows, 1))
        assert [row for _, row, _ in image.cells] == list(range(rows))
        tokens = table((rows,), grid=image.places, shapes=(image.shapes,))
        assert tokens.cells[:, 0].tolist() == list(range(rows))


def test_the_default_type_changes_no_place():
    """It is bfloat16 while servers load a model, whose grids are remembered."""
    expected = Grids.full((41, 3)).places
    Grids.full.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(Grids.join([Grids.full((41, 3)), Grids.separator()]).places[:-1], expected)
    finally:
        torch.set_default_dtype(torch.float32)
        Grids.full.cache_clear()


@pytest.mark.parametrize(("name", "kind"), KINDS + [(name, kind) for name in OTHERS for kind in OTHERS[name].kinds])
def test_painting_changes_the_tokens_whose_place_it_is(name, kind):
    """The lower left quarter of one grid after another: window order, merging, tiles, frames and unpadding."""
    family = (FAMILIES | OTHERS)[name]
    model = family.model()
    with vitcop.prune(model, vitcop.Random()) as pruning:
        without_mixing(model, pruning._family)
        for visual in visuals(name, kind):
            features, observation = encode(model, kind, family.inputs([[visual]]))
            place = Grids.join(observation.images)
            assert len(place.shapes) * family.frames_per_grid == max(len(visual.pixels), family.frames_per_grid)
            if visual.size in family.shrunk_sizes:
                continue  # see below
            for grid, (rows, _) in enumerate(place.shapes):
                painted = family.visual(kind, visual.size, seed=visual.size)
                first = grid * family.frames_per_grid
                height, width = painted.pixels.shape[2:]
                painted.pixels[first : first + family.frames_per_grid, :, height // 2 :, : width // 2] += 1
                new_features, new_observation = encode(model, kind, family.inputs([[painted]]))

                row, column = place.places.T
                here = (row + 1 / rows > 0.5 + 1e-6) & (column < 0.5 - 1e-6) & (place.segments == grid)
                assert here.any()
                assert torch.equal(changed(features, new_features), here)
                assert torch.equal(changed(observation.keys, new_observation.keys), here[place.visual])


def test_shrunk_pictures_are_where_their_features_come_from():
    """8 x 6 patches of 2 x 2 tiles become 6 x 4 tokens, each of which lies between two rows and two columns."""
    family, side = FAMILIES["llava_onevision"], 4
    model, size = family.model(), family.shrunk_sizes[0]
    inputs = [family.visual("image", size, seed=0) for _ in range(2)]
    with vitcop.prune(model, vitcop.Random()) as pruning:
        without_mixing(model, pruning._family)
        features, observation = encode(model, "image", family.inputs([[inputs[0]]]))
        (place,) = observation.images
        assert place.shapes == ((4, 4), *[(3, 3)] * 4) and len(set(place.cells)) == place.num_tokens
        tile = place.segments - 1
        corner = torch.stack([tile // 2, tile % 2], 1)
        patch = (corner + place.places) * side  # in the picture
        for painted_tile in range(4):
            inputs[1].pixels.copy_(inputs[0].pixels)
            inputs[1].pixels[1 + painted_tile, :, 28:, :28] += 1
            new_features, new_observation = encode(model, "image", family.inputs([[inputs[1]]]))
            top, left = painted_tile // 2 * side + 2, painted_tile % 2 * side
            near = torch.stack([(patch + 1e-4).floor(), (patch - 1e-4).ceil()])
            rows = ((near[..., 0] >= top) & (near[..., 0] < top + 2)).any(0)
            columns = ((near[..., 1] >= left) & (near[..., 1] < left + 2)).any(0)
            here = rows & columns & (tile >= 0)
            assert here.any()
            assert torch.equal(changed(features, new_features), here)
            assert torch.equal(changed(observation.keys, new_observation.keys), here[place.visual])


@has_molmo2
def test_crops_that_overlap_are_one_picture_again():
    """Paint one of 7 x 7 patches in every crop that shows it, and the one of 4 x 4 tokens changes that stands there."""
    family, side = FAMILIES["molmo2"], 5 * PATCH
    model, visual, canvas = family.model(), family.visual("image", 1, seed=0), torch.randn(3, 7 * PATCH, 7 * PATCH)

    def shown(canvas):
        crops = canvas.unfold(1, side, 2 * PATCH).unfold(2, side, 2 * PATCH)
        visual.pixels[1:] = crops.permute(1, 2, 0, 3, 4).flatten(0, 1)
        return encode(model, "image", family.inputs([[visual]]))

    with vitcop.prune(model, vitcop.Random()) as pruning:
        without_mixing(model, pruning._family)
        features, observation = shown(canvas)
        (place,) = observation.images
        assert place.shapes == ((3, 3), *[(2, 2)] * 4) and len(set(place.cells)) == place.num_tokens
        crop = place.segments - 1
        token = (torch.stack([crop // 2, crop % 2], 1) + place.places) * 2
        for row, column in ((0, 6), (1, 0), (2, 3), (3, 2), (4, 4), (5, 1), (6, 5)):
            painted = canvas.clone()
            painted[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
            new_features, new_observation = shown(painted)
            here = (crop >= 0) & (token == torch.tensor([row // 2, column // 2])).all(1)
            assert here.sum() == 1
            assert torch.equal(changed(features, new_features), here)
            assert torch.equal(changed(observation.keys, new_observation.keys), here)


def test_tokens_lie_where_the_model_interpolates_them():
    """VideoLLaMA 3 does so whatever the merge size of a picture, and whatever that of the next one."""
    tower = FAMILIES["video_llama_3"].model().model.vision_model
    sizes = ((2, 4, 6, 2), (1, 3, 5, 1), (1, 6, 3, 3), (1, 8, 4, 4))
    patches = [(frames * rows * columns, side) for frames, rows, columns, side in sizes]
    states = torch.randn(sum(count for count, _ in patches), 8, generator=torch.Generator().manual_seed(0))
    made = tower.pixel_unshuffle(states, torch.tensor(sizes)[:, :3], torch.tensor(sizes)[:, 3])
    torch.testing.assert_close(states[video_llama_3._interpolated(patches)].mean(1), made)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_default_device_changes_nothing(name, kind, monkeypatch):
    """Places are reckoned on the CPU, whatever `torch.set_default_device` says; here, one that can hold nothing."""
    family, model, seen = FAMILIES[name], FAMILIES[name].model(), []
    with vitcop.prune(model, vitcop.Random()) as pruning:
        observe = pruning._family.observe

        def elsewhere(*call):
            with torch.device("meta"):
                seen.append(observe(*call))
                assert len(seen[-1].saliency) == len(seen[-1].keys)  # worked out when read
            return observe(*call)

        monkeypatch.setattr(pruning._family, "observe", elsewhere)
        Grids.full.cache_clear()
        _, observation = encode(model, kind, family.inputs([[visual] for visual in visuals(name, kind)]))
    assert torch.equal(seen[0].keys, observation.keys) and torch.equal(seen[0].saliency, observation.saliency)
    for there, here in zip(seen[0].images, observation.images, strict=True):
        assert torch.equal(there.segments, here.segments) and torch.equal(there.places, here.places)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_what_is_observed_is_the_last_attention_before_the_features(name, kind):
    """A layer whose attention is spoilt spoils the features if they come from behind it; windows do not count."""
    family, model = FAMILIES[name], FAMILIES[name].model()
    inputs = family.inputs([[family.visual(kind, 0, seed=0)]])
    encoder = getattr(model.base_model, f"{kind}_tower") if name == "video_llava" else model.get_encoder(kind)
    with vitcop.prune(model, vitcop.Random()) as pruning:
        observed = pruning._family.observed[kind]
        attentions = in_order(type(observed), encoder, lambda: encode(model, kind, inputs))
    full = getattr(encoder, "fullatt_block_indexes", range(len(attentions)))

    def spoil(module, args, output):
        return (output[0] * torch.nan, *output[1:]) if isinstance(output, tuple) else output * torch.nan

    matters = []
    for number in full:
        hook = attentions[number].register_forward_hook(spoil)
        with vitcop.prune(model, vitcop.Random()):
            if encode(model, kind, inputs)[0].isnan().any():
                matters.append(attentions[number])
        hook.remove()
    assert matters[-1] is observed


def in_order(attention, encoder, run):
    """The attentions of an encoder as they run, which need not be how they stand in it."""
    order = []
    modules = [module for module in encoder.modules() if type(module) is attention]
    hooks = [module.register_forward_hook(lambda module, *call: order.append(module)) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return order


class Watching(vitcop.Random):
    """Asks for one more layer of the encoder."""

    signal = EncoderSignal()

    @property
    def encoder_signals(self):
        return (self.signal,)


SIGNALS = {
    "features": EncoderSignal(),
    "features, received": EncoderSignal(received=True),
    "first": EncoderSignal(depth=0.1),
    "middle, received": EncoderSignal(depth=0.6, received=True),
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_saliency_is_the_attention_that_the_encoder_pays(name, kind, signal, recorded, monkeypatch):
    family, model = FAMILIES[name], FAMILIES[name].model("recorded")
    seen = []

    def spy(function):
        def call(*args, **kwargs):
            seen.append(function(*args, **kwargs).flatten())
            return seen[-1]

        return call

    for function in ("cls_attention", "attention_received"):
        monkeypatch.setattr(encoders, function, spy(getattr(encoders, function)))
    inputs = family.inputs([[visual] for visual in visuals(name, kind)])
    monkeypatch.setattr(Watching, "signal", SIGNALS[signal])
    with vitcop.prune(model, Watching()) as pruning:
        observation = encode(model, kind, inputs)[1]
        assert not seen
        if signal == "features":
            assert len(observation.saliency) == sum(observation.lengths)
        else:
            observation.signal(SIGNALS[signal])
        depth = SIGNALS[signal].depth
        attention = pruning._family.observed[kind] if depth is None else pruning._family.encoder_attention(kind, depth)
    encoder = getattr(model.base_model, f"{kind}_tower") if name == "video_llava" else model.get_encoder(kind)
    number = [module for module in encoder.modules() if type(module) is type(attention)].index(attention)
    if not hasattr(encoder, "fullatt_block_indexes"):
        assert number == {"first": 0, "middle, received": 1}.get(signal, number)
    expected, received = [], SIGNALS[signal].received
    for weights in recorded[attention]:
        weights = weights.roll((1, 1), (2, 3)) if family.cls_behind else weights
        if family.has_cls and received:
            expected.append(weights.mean((1, 2)).flatten())
            continue
        if family.has_cls:
            expected.append(weights[:, :, 0, 1 + family.registers :].sum(1).flatten())
            continue
        attended = weights.amax(1) > 1e-30  # (batch, query, key): a picture of its own, or without padding
        for of_queries, real in zip(weights.mean(1), attended, strict=True):
            padding = ~real.any(0)
            of_queries = of_queries.masked_fill(padding[:, None], 0)
            queries = (real & ~padding[:, None]).sum(0).clamp(min=1)
            expected.append(of_queries.sum(0) / queries)
    expected = torch.cat(expected)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("received", [False, True])
def test_registers_are_attended_to_and_are_no_visual_tokens(received, recorded, monkeypatch):
    family = FAMILIES["llava with registers"]
    model, first = family.model("recorded"), 1 + family.registers
    monkeypatch.setattr(Watching, "signal", EncoderSignal(received=received))
    with vitcop.prune(model, Watching()) as pruning:
        _, observation = encode(model, "image", family.inputs([[family.visual("image", 0, seed=n)] for n in (0, 1)]))
        (weights,) = recorded[pruning._family.observed["image"]]
    paid = weights.mean((1, 2)) if received else weights[:, :, 0].sum(1)
    assert paid[:, 1:first].sum() > 0.1
    torch.testing.assert_close(observation.signal(Watching.signal), paid[:, first:].flatten())
    for image in observation.images:
        assert image.visual.tolist() == [False] * family.registers + [True] * 36


def test_attention_received_is_streamed(monkeypatch):
    """No map of all queries by all keys, and the size of a block changes nothing."""
    generator = torch.Generator().manual_seed(0)
    lengths = (500, 120, 3, 3, 400)
    queries, keys = torch.randn(2, sum(lengths), 2, 8, generator=generator)
    whole = saliency.attention_received(queries, keys, 1.0, lengths)
    monkeypatch.setattr(saliency, "_BLOCK_VALUES", 2**15)
    with LargestTensor() as largest:
        streamed = saliency.attention_received(queries, keys, 1.0, lengths)
    torch.testing.assert_close(streamed, whole)
    assert largest.values <= 2**15 < 500 * 500
    for length, part in zip(lengths, whole.split(lengths), strict=True):
        assert math.isclose(part.sum().item(), 1, rel_tol=1e-4) and len(part) == length
