"""Tensor operations where pictures of random numbers do not lead: copies of tokens, and half precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from vitcop.ops.greedy import best_cover, farthest_first, keep_greedily, most_probable
from vitcop.ops.matching import most_similar, thin_out
from vitcop.ops.saliency import attention_received, attention_rows, cls_attention, key_norm
from vitcop.ops.segments import by_size, pad_segments, padded_lengths, unpad_segments

LENGTHS = (40, 25)
TARGETS = torch.arange(sum(LENGTHS)) % 5 == 0


def drawn(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def likeness(features):
    """Cosines, where the largest cannot be told from 1."""
    return features @ features.mT


def test_shapes_in_annotations_are_checked():
    """By the import hook of `conftest.py`, which would do nothing if a module were imported before it."""
    with pytest.raises(TypeCheckError, match="tokens heads head_dim"):
        key_norm(torch.zeros(3, 8))


PICKS = {
    "farthest": lambda features, real, steps, _: farthest_first(features, real, steps, []),
    "probable": lambda features, real, steps, _: most_probable(likeness(features), real, steps),
    "cover": lambda features, real, steps, _: best_cover(likeness(features).clamp(min=0), real, steps),
}


@pytest.mark.parametrize("pick", PICKS)
def test_one_of_each_kind_is_chosen_before_a_copy_and_none_twice(pick):
    """When every kind is there, nothing is gained any more but by rounding."""
    kinds, orders = 5, []

    def recorded(*asked):
        orders.append(PICKS[pick](*asked))
        return orders[-1]

    kept = keep_greedily(drawn(kinds, 16).repeat(16, 1), (16 * kinds,), (40,), recorded)
    (order,) = orders[0].tolist()
    assert sorted(order) == kept.tolist() == sorted(set(order))
    assert len({row % kinds for row in order[:kinds]}) == kinds
    if pick == "probable":
        assert order[kinds:] == [row for row in range(16 * kinds) if row not in order[:kinds]][:35]


def probable_one_by_one(features, steps):
    kernel, chosen = likeness(features), []
    for _ in range(steps):
        explained = kernel[:, chosen] @ torch.linalg.solve(kernel[chosen][:, chosen], kernel[chosen])
        gain = (kernel - explained).diagonal().index_fill(0, torch.tensor(chosen, dtype=torch.long), -torch.inf)
        chosen.append(int(gain.argmax()))
    return chosen


def cover_one_by_one(features, steps):
    cover, chosen = likeness(features).clamp(min=0), []
    for _ in range(steps):
        covered = cover[:, chosen].amax(1) if chosen else torch.zeros(len(cover))
        gain = (cover - covered[:, None]).clamp(min=0).sum(0)
        chosen.append(int(gain.index_fill(0, torch.tensor(chosen, dtype=torch.long), -torch.inf).argmax()))
    return chosen


@pytest.mark.parametrize(
    ("pick", "one_by_one", "rows", "steps"),
    [("probable", probable_one_by_one, 500, 60), ("cover", cover_one_by_one, 1100, 20)],
)
def test_what_is_chosen_of_many_rows_is_chosen_one_after_another(pick, one_by_one, rows, steps):
    """So many rows that several steps, or a part of them, are taken at a time; most are long, and of a few kinds."""
    alike = (drawn(6, 64) + 1).repeat_interleave(rows // 10, 0)
    rest = drawn(rows - len(alike), 64) + 1
    features = torch.cat([2 * alike + 0.1 * drawn(*alike.shape), rest]) / 20
    (order,) = PICKS[pick](features[None], torch.ones(1, rows, dtype=torch.bool), steps, [0])
    assert order.tolist() == one_by_one(features.double(), steps)


def test_what_is_thinned_out_to_a_few_rows_goes_by_all_that_are_left():
    """None of those that are most like a row at first is there any more."""
    features = torch.nn.functional.normalize(drawn(200, 16), dim=-1)
    left = list(range(200))
    while len(left) > 5:
        first, second = left[::2], left[1::2]
        alike = likeness(features)[first][:, second].amax(1)
        gone = alike.argsort(descending=True)[: min(8, len(left) - 5)].tolist()
        left = [row for row in left if row not in {first[number] for number in gone}]
    assert thin_out(features, (200,), (5,), 8).tolist() == left


def of_cls(values):
    keys = values.unflatten(1, (8, 8))[None]
    return cls_attention(keys[:, 0], keys, 0.3)


def of_rows(values):
    heads = values.unflatten(1, (8, 8))[None]
    visible = torch.ones(1, 3, len(values), dtype=torch.bool)
    return attention_rows(heads[:, :3], heads[:, :, :2].transpose(1, 2), visible, 0.3)


MEASURES = {
    "most similar": lambda values: most_similar(values, LENGTHS, TARGETS, (8, 5)),
    "thinned out": lambda values: thin_out(values, LENGTHS, (9, 4), 8),
    "greedy": lambda values: keep_greedily(values, LENGTHS, (20, 12), farthest_first),
    "key norms": lambda values: key_norm(values.unflatten(1, (8, 8))),
    "attention of [CLS]": of_cls,
    "rows of attention": of_rows,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("measure", MEASURES)
def test_what_comes_in_half_precision_is_measured_in_float32(measure, dtype):
    """Tokens are much alike, so that rounding would choose others."""
    values = (drawn(sum(LENGTHS), 64) + 3).to(dtype)
    wide = MEASURES[measure](values.float())
    assert torch.equal(MEASURES[measure](values), wide)
    if wide.is_floating_point():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(MEASURES[measure](values), wide)


def test_autocast_does_not_round_attention_received():
    values = drawn(sum(LENGTHS), 8, 8)
    plain = attention_received(values, values, 0.3, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_received(values, values, 0.3, LENGTHS), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_all_queries_pay_in_half_precision_adds_up_to_one(dtype):
    values = drawn(sum(LENGTHS), 8, 8).to(dtype)
    received = attention_received(values, values, 0.3, LENGTHS)
    torch.testing.assert_close(torch.stack([part.sum() for part in received.split(LENGTHS)]), torch.ones(2))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_padding_can_be_undone_and_takes_what_costs_say(lengths):
    values, padded = torch.arange(sum(lengths)), padded_lengths(lengths)
    for rows, segments in by_size(lengths, values.device):
        sizes = [lengths[i] for i in segments]
        table = pad_segments(values[rows], sizes)
        assert torch.equal(unpad_segments(table, sizes), values[rows])
        assert {padded[i] for i in segments} == {table.shape[1]}
        assert table.shape[1] < 2 * min(sizes)
