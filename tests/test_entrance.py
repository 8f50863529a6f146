"""Images that are encoded by themselves are left what the engine lets enter the decoder of a prompt with them."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tiny import FAMILIES, LLAVA, METHODS, ONE_IMAGE, READING_TEXT, batch, ragged

import vitcop
from vitcop.engine.prefill import Prefill
from vitcop.engine.probe import probed_keys
from vitcop.entrance import check_entrance, placeholders_left, prune_features
from vitcop.models import family_of

ALONE = [
    name
    for name, method in METHODS.items()
    if list(method.budgets(576, 32)) == [0] and name not in READING_TEXT and method.calibrate == "none"
]


@pytest.fixture
def entered(monkeypatch):
    """Of the last prefill: where its images stood, and what entered the decoder before and after stage 0."""
    seen, enter = {}, Prefill.enter

    def spy(self, kwargs):
        seen["prefill"], seen["before"] = self, kwargs["inputs_embeds"].flatten(0, 1)
        result = enter(self, kwargs)
        seen["after"] = result["inputs_embeds"]
        return result

    monkeypatch.setattr(Prefill, "enter", spy)
    return seen


def observed(seen):
    """What the encoder showed of the images, and where in the flattened prompts the placeholders of each stand."""
    placed, masks = seen["prefill"].stages.placed, seen["prefill"].placeholders.masks.values()
    places = torch.cat([mask.flatten().nonzero()[:, 0] for mask in masks])
    return placed.observation, places.split(placed.observation.placeholders)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_by_themselves_are_left_what_enters_the_decoder(name, entered):
    family = FAMILIES[name]
    model, inputs = family.model(), batch(ragged(family), family=family)
    width, known = inputs["input_ids"].shape[1], family_of(model)
    for method in (METHODS[name] for name in ALONE if name not in family.refuses):
        with torch.no_grad(), vitcop.prune(model, method) as pruning:
            model(**inputs)
        observation, places = observed(entered)
        features = [entered["before"][own] for own in places]
        left = prune_features(method, known, observation, features, probe=partial(probed_keys, known))
        assert [len(image.features) for image in left] == list(placeholders_left(method, known, observation.images))

        columns = pruning.report.positions_at(0)
        found = (torch.arange(len(columns))[:, None] * width + columns)[columns >= 0]
        rows = torch.full((len(entered["before"]),), -1).scatter(0, found, torch.arange(len(found)))
        rows, states = rows[torch.cat(places)].split(observation.placeholders), entered["after"][columns >= 0]
        for image, own in zip(left, rows, strict=True):
            assert torch.equal(image.placeholders, (own >= 0).nonzero()[:, 0])
            assert torch.equal(image.features, states[own[own >= 0]])


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_looks_at_is_found_out_before_there_is_an_image(name):
    if name in ALONE:
        check_entrance(METHODS[name], probe=True)
        return
    reason = "prunes before" if list(METHODS[name].budgets(576, 32)) != [0] else "to look at|calibrate"
    with pytest.raises(vitcop.UnsupportedModelError, match=reason):
        check_entrance(METHODS[name], probe=True)


def test_a_probe_is_needed_where_keys_are_not_normalised():
    method = METHODS["earlyvitcop"]
    check_entrance(method, normalised_keys=True)
    with pytest.raises(vitcop.UnsupportedModelError, match="no decoder layer to look at"):
        check_entrance(method)


NOT_THERE = {
    "text": lambda tokens: tokens.text,
    "attention": lambda tokens: tokens.attention(),
    "queries ahead": lambda tokens: tokens.queries_ahead(tokens.slots),
    "keys ahead": lambda tokens: tokens.keys_ahead(tokens.slots),
    "probed keys": lambda tokens: tokens.probed_keys(2),
    "rotary": lambda tokens: tokens.without_rotary(tokens.keys, tokens.slots),
    "norm": lambda tokens: tokens.final_norm(tokens.hidden_states),
}


@dataclass(frozen=True)
class Peeking(vitcop.Random):
    """Looks at what is not there, although it does not need it."""

    at: str = ""

    def score(self, tokens):
        NOT_THERE[self.at](tokens)
        return super().score(tokens)


def alone(entered, method=METHODS["random"]):
    """A call of `prune_features`, but for its last argument, with one image; and its features."""
    model = LLAVA.model()
    with torch.no_grad(), vitcop.prune(model, method):
        model(**batch([ONE_IMAGE]))
    observation, places = observed(entered)
    return partial(prune_features, method, family_of(model), observation), [entered["before"][own] for own in places]


@pytest.mark.parametrize("at", NOT_THERE)
def test_looking_at_what_is_not_there_raises(at, entered):
    method, (prune, features) = Peeking(at=at), alone(entered)
    for refused in (partial(check_entrance, method), partial(prune_features, method, *prune.args[1:], features)):
        with pytest.raises(vitcop.UnsupportedModelError, match="to look at where images are encoded by themselves"):
            refused()


def test_where_nothing_is_dropped_features_are_as_they_were(entered):
    prune, features = alone(entered, vitcop.VisionZip(retention=1.0))
    (left,) = prune(features)
    assert left.features is features[0] and left.placeholders.tolist() == list(range(36))


def test_features_of_other_images_raise(entered):
    prune, (image,) = alone(entered)
    for wrong in ([image[:-1]], [image, image], []):
        with pytest.raises(vitcop.VitcopError, match="were expected from their sizes"):
            prune(wrong)


@dataclass(frozen=True)
class Twice(vitcop.EntrancePruner):
    """Keeps the first token twice."""

    def select(self, tokens, budget):
        return vitcop.Selection(torch.zeros(sum(budget), dtype=torch.long))


def test_a_wrong_selection_is_never_taken(entered):
    prune, features = alone(entered)
    with pytest.raises(vitcop.VitcopError, match="not valid"):
        prune_features(Twice(), *prune.args[1:], features)
    with pytest.raises(vitcop.VitcopError, match="image 0 of the batch are not finite"):
        prune_features(Twice(), *prune.args[1:], [features[0] * torch.nan])
