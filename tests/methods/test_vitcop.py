"""ViTCoP's schedule and its merging stage, against properties and a literal transcription."""

import re
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from literal import average
from tables import table

import vitcop
from vitcop.methods.vitcop import MergeClusters
from vitcop.ops.cluster import density_peaks, num_centres
from vitcop.selection.tokens import merge_hidden_states

merge_clusters = MergeClusters().select


@pytest.mark.parametrize(
    ("retention", "counts", "mean"),
    [(1 / 3, (288, 253, 51), 192.1), (2 / 9, (230, 165, 33), 127.8), (1 / 9, (172, 77, 15), 63.6)],
)
def test_papers_table(retention, counts, mean):
    budgets = vitcop.ViTCoP(retention=retention).budgets(576, 32)
    assert budgets == dict(zip((0, 2, 22), counts, strict=True))
    assert round(average(budgets, 32), 1) == mean


def test_stage_one_keeps_at_most_half_until_later_stages_need_more():
    assert [vitcop.ViTCoP(r).budgets(576, 32)[0] for r in (0.34, 0.37, 0.4)] == [288, 288, 307]


@settings(max_examples=400)
@given(st.integers(1, 3000), st.integers(4, 80), st.floats(0, 1))
def test_schedule_averages_the_retention(num_tokens, num_layers, share):
    retention = 1 / num_tokens + share * (1 - 1 / num_tokens)
    budgets = vitcop.ViTCoP(retention=retention).budgets(num_tokens, num_layers)
    assert num_tokens >= max(budgets.values()) and min(budgets.values()) >= 1
    assert list(budgets.values()) == sorted(budgets.values(), reverse=True)
    assert abs(average(budgets, num_layers) - retention * num_tokens) <= 1
    if retention == 1:
        assert set(budgets.values()) == {num_tokens}


def test_explicit_numbers_win_or_raise():
    assert vitcop.ViTCoP(1 / 9, vision_retention=0.25, shallow_layer=3, deep_layer=20).budgets(576, 32)[0] == 144
    assert (
        vitcop.ViTCoP(1 / 3, deep_ratio=1.0).budgets(576, 32)[22]
        == vitcop.ViTCoP(1 / 3, deep_ratio=1.0).budgets(576, 32)[2]
    )
    with pytest.raises(vitcop.BudgetError, match=r"0\.0\d+ to 0\.0\d+ is possible"):
        vitcop.ViTCoP(0.5, vision_retention=0.1).budgets(576, 32)
    with pytest.raises(vitcop.BudgetError, match=r"0\.08854 to 1 is possible"):
        vitcop.ViTCoP(0.03, vision_retention=1.0).budgets(36, 32)
    with pytest.raises(vitcop.BudgetError, match=r"to 0\.79\d+ is possible"):
        vitcop.ViTCoP(0.876, deep_ratio=0.33).budgets(576, 32)
    with pytest.raises(vitcop.BudgetError, match="number of decoder layers"):
        vitcop.ViTCoP(deep_layer=32).budgets(576, 32)


SHARES = st.none() | st.floats(0.01, 1)


@settings(max_examples=1000)
@given(st.integers(1, 1500), st.integers(4, 60), st.floats(0.001, 1), SHARES, SHARES)
@example(num_tokens=729, num_layers=28, retention=0.51, vision=0.55, deep=None)  # 400, 400, 312
@example(num_tokens=35, num_layers=28, retention=0.747, vision=None, deep=0.6)  # 31, 31, 19, of 30.2 rounded down
def test_what_is_said_to_be_possible_is(num_tokens, num_layers, retention, vision, deep):
    method = vitcop.ViTCoP(retention, vision_retention=vision, deep_ratio=deep)
    try:
        budgets = method.budgets(num_tokens, num_layers)
    except vitcop.BudgetError as error:
        low, high = (float(bound) for bound in re.search(r"settings (\S+) to (\S+) is", str(error)).groups())
        assert not low * 1.001 <= retention <= high * 0.999  # bounds are rounded in the message
    else:
        assert abs(average(budgets, num_layers) - retention * num_tokens) <= 1


@pytest.mark.parametrize(
    "bad",
    [
        {"retention": 0.0},
        {"retention": 2.0},
        {"vision_retention": 0.0},
        {"centre_fraction": 1.5},
        {"cutoff": -1.0},
        {"radius": -0.1},
    ],
    ids=str,
)
def test_values_out_of_range_raise(bad):
    with pytest.raises(vitcop.BudgetError):
        vitcop.ViTCoP(**bad)


@pytest.mark.parametrize(
    "bad",
    [{"vision_retention": 0.0}, {"centre_fraction": 1.5}, {"shallow_layer": 1}, {"cutoff": -1.0}, {"radius": -0.1}],
    ids=str,
)
def test_values_out_of_range_raise_before_the_decoder(bad):
    with pytest.raises(vitcop.BudgetError):
        vitcop.EarlyViTCoP(**bad)


def test_a_probe_beyond_the_last_layer_raises():
    assert vitcop.EarlyViTCoP(0.5, shallow_layer=8).budgets(36, 8) == {0: 18}
    with pytest.raises(vitcop.BudgetError, match="shallow_layer <= 8"):
        vitcop.EarlyViTCoP(0.5, shallow_layer=9).budgets(36, 8)


def clustered(norms, clusters, hidden=None, **fields):
    """A one-image table in stage 2 whose key norms are `norms`."""
    n = len(norms)
    keys = torch.zeros(n, 2, 4)
    keys[:, :, 0] = torch.tensor(norms)[:, None]
    if hidden is None:
        hidden = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    columns = {"layer": 2, "stage": 1, "keys": keys} | fields
    return table((n,), hidden_states=hidden, labels={"cluster": torch.tensor(clusters)}, **columns)


def literal_merge(norms, clusters, budget):
    """Stage II of the design page, line by line: {position: members averaged into it}, [] for unmerged ones."""
    n = len(norms)
    members = {c: [i for i in range(n) if clusters[i] == c] for c in sorted(set(clusters))}
    total = {c: sum(norms[i] for i in m) for c, m in members.items()}
    kept: dict[int, list[int]] = {}
    groups = []
    if len(members) <= budget:
        share, spare = budget - len(members), n - len(members)
        quota = {c: round(Fraction((len(m) - 1) * share, max(spare, 1))) for c, m in members.items()}
        lightest = sorted(members, key=lambda c: (total[c], c))
        while sum(quota.values()) != share:
            missing = share - sum(quota.values())
            able = (
                [c for c in lightest if quota[c] < len(members[c]) - 1]
                if missing > 0
                else [c for c in reversed(lightest) if quota[c] > 0]
            )
            for c in able[: abs(missing)]:
                quota[c] += 1 if missing > 0 else -1
        for c, m in members.items():
            by_norm = sorted(m, key=lambda i: (norms[i], i))
            kept |= {i: [] for i in by_norm[: quota[c]]}
            groups.append(sorted(by_norm[quota[c] :]))
    else:
        lightest = sorted(members, key=lambda c: (total[c], c))
        groups = [members[c] for c in lightest[: budget - 1]]
        groups.append(sorted(i for c in lightest[budget - 1 :] for i in members[c]))
    for group in groups:
        kept[group[len(group) // 2]] = group
    return dict(sorted(kept.items()))


def test_clusters_may_lose_all_their_members_before_they_are_merged():
    """Then they are numbered beyond the tokens that are left."""
    left = clustered([1.0] * 12, list(range(12))).take(torch.tensor([2, 5, 7, 8, 11]), (5,))
    selection = merge_clusters(left, (3,))
    assert selection.allows((5,), (3,))
    assert selection.merge.bincount().tolist() == [1, 1, 3]  # the two lightest, and the rest


@settings(max_examples=300)
@given(st.data())
def test_merging_equals_its_definition(data):
    n = data.draw(st.integers(2, 40))
    num_clusters = data.draw(st.integers(1, n))
    clusters = [
        *range(num_clusters),
        *data.draw(st.lists(st.integers(0, num_clusters - 1), min_size=n - num_clusters, max_size=n - num_clusters)),
    ]
    clusters = data.draw(st.permutations(clusters))
    norms = data.draw(st.lists(st.integers(1, 64).map(lambda x: x / 8), min_size=n, max_size=n))
    budget = data.draw(st.integers(1, n - 1))
    tokens = clustered(norms, clusters)
    selection = merge_clusters(tokens, (budget,))
    expected = literal_merge(norms, clusters, budget)
    assert selection.keep.tolist() == list(expected)

    merged = merge_hidden_states(tokens.hidden_states, selection)
    for row, (position, group) in zip(merged, expected.items(), strict=True):
        own = tokens.hidden_states[position]
        torch.testing.assert_close(row, own + tokens.hidden_states[group].mean(0) if group else own)


@pytest.mark.parametrize("normalised", [False, True])
def test_images_are_merged_by_themselves_and_full_ones_left_alone(normalised):
    generator = torch.Generator().manual_seed(0)
    sizes, budgets = (12, 7, 20), (5, 7, 3)
    tables = [
        clustered(
            torch.rand(n, generator=generator).tolist(),
            torch.randint(4, (n,), generator=generator).tolist(),
            saliency=torch.rand(n, generator=generator) - n,  # of another size in each image
            normalised_keys=normalised,
        )
        for n in sizes
    ]
    together = table(
        sizes,
        hidden_states=torch.cat([t.hidden_states for t in tables]),
        keys=torch.cat([t.keys for t in tables]),
        saliency=torch.cat([t.saliency for t in tables]),
        normalised_keys=normalised,
        layer=2,
        stage=1,
        labels={"cluster": torch.cat([t.labels["cluster"] for t in tables])},
    )
    merged = merge_hidden_states(together.hidden_states, merge_clusters(together, budgets)).split(budgets)
    for part, budget, rows in zip(tables, budgets, merged, strict=True):
        alone = merge_hidden_states(part.hidden_states, merge_clusters(part, (budget,)))
        torch.testing.assert_close(rows, alone)
    assert torch.equal(merged[1], tables[1].hidden_states)


def test_sums_of_large_groups_do_not_overflow_half_precision():
    selection = vitcop.Selection(torch.tensor([0]), torch.zeros(5000, dtype=torch.long))
    merged = merge_hidden_states(torch.full((5000, 2), 100.0, dtype=torch.float16), selection)
    assert merged.tolist() == [[100.0, 100.0]]


def first_stage(method, **fields):
    generator = torch.Generator().manual_seed(0)
    tokens = table(
        (144,),
        keys=torch.randn(144, 2, 3, generator=generator),
        saliency=torch.rand(144, generator=generator),
        grid=torch.cartesian_prod(torch.arange(12), torch.arange(12)) / 12,
        **fields,
    )
    return method.select(tokens, (100,)).labels["cluster"]


def test_the_encoders_cutoff_is_taken_unless_one_is_given():
    derived, known = first_stage(vitcop.ViTCoP()), first_stage(vitcop.ViTCoP(), key_cutoff=2.0)
    assert torch.equal(known, first_stage(vitcop.ViTCoP(cutoff=2.0)))
    assert torch.equal(known, first_stage(vitcop.ViTCoP(cutoff=2.0), key_cutoff=9.0))
    assert not torch.equal(known, derived)


@pytest.mark.parametrize(("retention", "centres"), [(0.05, 12), (1 / 9, 12), (2 / 9, 15), (1 / 3, 18), (0.9, 18)])
def test_papers_number_of_clusters(retention, centres):
    assert first_stage(vitcop.ViTCoP(retention=retention)).max() + 1 == centres


@settings(max_examples=200)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=10), st.floats(0, 1))
def test_grids_share_the_budget_in_proportion(sizes, share):
    budget = round(share * sum(sizes))
    (shares,) = table((sum(sizes),), sizes=(tuple(sizes),)).shares_of_grids((budget,))
    assert sum(shares) == budget
    assert all(0 <= kept <= size for kept, size in zip(shares, sizes, strict=True))
    assert all(abs(kept - budget * size / sum(sizes)) < 1 for kept, size in zip(shares, sizes, strict=True))


def test_grids_are_ranked_and_clustered_by_themselves():
    """Two pictures, the first of three tiles that lie across each other in the prompt, as LLaVA-NeXT's do."""
    generator = torch.Generator().manual_seed(0)
    segments = torch.tensor([0] * 36 + [1, 1, 1, 2, 2, 2] * 12 + [3] * 25)
    sizes, budget = ((36, 36, 36), (25,)), (46, 9)
    tokens = table(
        (108, 25),
        keys=torch.randn(133, 2, 3, generator=generator),
        grid=torch.rand(133, 2, generator=generator),
        saliency=torch.rand(133, generator=generator) + (segments == 2),  # one tile outshines all
        segments=segments,
        sizes=sizes,
    )
    selection = vitcop.ViTCoP().select(tokens, budget)
    clusters, seen = selection.labels["cluster"], set()
    for segment, quota in enumerate((16, 15, 15, 9)):
        rows = (segments == segment).nonzero()[:, 0]
        kept = rows[tokens.saliency[rows].topk(quota).indices].sort().values
        assert torch.equal(selection.keep[segments[selection.keep] == segment], kept)
        alone = density_peaks(
            tokens.keys[kept].flatten(1),
            tokens.grid[kept],
            (quota,),
            [num_centres(0.12, quota)],
            cutoff=None,
            radius=0.6,
        )
        assert torch.equal(clusters[kept, None] == clusters[kept], alone[:, None] == alone)
        if segment < 3:  # of the same picture
            assert seen.isdisjoint(clusters[kept].tolist())
            seen |= set(clusters[kept].tolist())


@pytest.mark.parametrize("stage", [1, 2])
def test_saliency_takes_the_place_of_normalised_keys(stage):
    """What a saliency lacks of its image's largest stands for a norm, so that small clusters win here as there."""
    norms = [0, *torch.rand(19, generator=torch.Generator().manual_seed(0)).tolist()]
    clusters = [0] * 12 + [1, 2, 3, 1, 2, 1, 1, 4]
    plain = clustered(norms, clusters, stage=stage)
    columns = {"keys": torch.ones_like(plain.keys), "saliency": 2 - torch.tensor(norms)}
    as_saliency = clustered(norms, clusters, stage=stage, normalised_keys=True, **columns)
    method = vitcop.ViTCoP()
    for budget in (3, 8):
        assert torch.equal(method.select(as_saliency, (budget,)).keep, method.select(plain, (budget,)).keep)
