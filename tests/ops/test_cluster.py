"""Clustering against a naive transcription of its definition, and its invariants."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from measures import LargestTensor

from vitcop.ops import cluster
from vitcop.ops.cluster import num_centres


def density_peaks(keys, places, lengths, *, centre_fraction, **settings):
    centres = [num_centres(centre_fraction, n) for n in lengths]
    return cluster.density_peaks(keys, places, lengths, centres, **settings)


def naive_density_peaks(keys, places, fraction, cutoff, radius):
    """Labels of one picture, by loops over the page that defines them."""
    n = len(keys)
    distance = [[math.dist(a, b) for b in keys] for a in keys]
    density = [sum(math.exp(-((d / cutoff) ** 2)) for d in row) for row in distance]
    parent, separation = [None] * n, [math.inf] * n
    for i in range(n):
        for j in range(n):
            denser = density[j] > density[i] or (density[j] == density[i] and j < i)
            if denser and math.dist(places[i], places[j]) <= radius + 1e-6 and distance[i][j] < separation[i]:
                parent[i], separation[i] = j, distance[i][j]
    peaks = sorted(range(n), key=lambda i: (-density[i] * separation[i], i))
    centres = peaks[: num_centres(fraction, n)]
    label = {centre: number for number, centre in enumerate(centres)}
    for i in sorted(range(n), key=lambda i: (-density[i], i)):
        if i not in label:
            nearest = min(centres, key=lambda c: (distance[i][c], c))
            label[i] = label[nearest] if parent[i] is None else label[parent[i]]
    return [label[i] for i in range(n)]


def picture(seed, side, dim=5, spread=3):
    generator = torch.Generator().manual_seed(seed)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)) / side
    blobs = torch.randn(4, dim, generator=generator) * spread
    keys = blobs[torch.randint(4, (side**2,), generator=generator)]
    return keys + torch.randn(side**2, dim, generator=generator), places


def partition(labels):
    """The clusters as sets of their members."""
    return {frozenset(i for i, label in enumerate(labels) if label == cluster) for cluster in labels}


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.05, 0.6), st.sampled_from([0.2, 0.6, 2.0]))
@example(seed=0, side=5, fraction=0.5, radius=0.2)  # neighbours exactly at the radius
def test_equals_the_naive_loop(seed, side, fraction, radius):
    keys, places = picture(seed, side)
    labels = density_peaks(keys, places, (side**2,), centre_fraction=fraction, cutoff=2.5, radius=radius)
    expected = naive_density_peaks(keys.double().tolist(), places.tolist(), fraction, 2.5, radius)
    # Peaks that differ by less than float32 can tell change numbers, but not members.
    assert partition(labels.tolist()) == partition(expected)


def test_equal_keys_fall_into_one_forest():
    """Ties everywhere: every token is as dense as every other, and still each gets a cluster."""
    keys, (_, places) = torch.ones(36, 4), picture(0, 6)
    for cutoff in (None, 8.0):
        labels = density_peaks(keys, places, (36,), centre_fraction=0.12, cutoff=cutoff, radius=0.6)
        assert sorted(labels.unique().tolist()) == list(range(num_centres(0.12, 36)))


@pytest.mark.parametrize("seed", [19, 34, 82, 276])
def test_equal_keys_are_equal_beside_others(seed):
    """As of a plain background: their order is that of their numbers, whatever rounding says."""
    generator, pictures = torch.Generator().manual_seed(seed), []
    for side in (12, 9, 11):
        kinds = int(torch.randint(1, 6, (), generator=generator))
        keys, (_, places) = torch.randn(kinds, 64, generator=generator) * 3, picture(0, side)
        pictures.append((keys[torch.randint(kinds, (side**2,), generator=generator)], places))
    settings = {"centre_fraction": 0.12, "cutoff": 8.0, "radius": 0.6}
    alone = [density_peaks(keys, places, (len(keys),), **settings) for keys, places in pictures]
    keys, places = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    assert torch.equal(density_peaks(keys, places, (144, 81, 121), **settings), torch.cat(alone))


@pytest.mark.parametrize("spread", [3, 0])  # with 0, padding would stand where keys are densest
@pytest.mark.parametrize("cutoff", [None, 2.5])
def test_ragged_segments_are_clustered_by_themselves(cutoff, spread):
    sides = (3, 6, 1, 4, 7, 5)  # of which 4 and 5, and 6 and 7, are padded to each other
    pictures = [picture(seed, side, spread=spread) for seed, side in enumerate(sides)]
    settings = {"centre_fraction": 0.2, "cutoff": cutoff, "radius": 0.6}
    alone = [density_peaks(keys, places, (len(keys),), **settings) for keys, places in pictures]
    keys, places = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    together = density_peaks(keys, places, tuple(len(k) for k, _ in pictures), **settings)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("seed", range(8))
def test_half_of_the_tokens_have_two_percent_of_the_others_within_the_derived_cutoff(seed):
    keys, places = picture(seed, 12)
    reach = torch.cdist(keys, keys).sort().values[:, 3]  # 2 % of 143 others are three
    settings = {"centre_fraction": 0.15, "radius": 0.6}
    derived = density_peaks(keys, places, (144,), cutoff=None, **settings)
    given = reach.median().item()
    assert torch.equal(derived, density_peaks(keys, places, (144,), cutoff=given, **settings))
    assert not torch.equal(derived, density_peaks(keys, places, (144,), cutoff=10 * given, **settings))


def test_a_chain_of_all_tokens_leads_to_its_end():
    """Each follows the next one, which is a little denser, and the only such within reach."""
    keys, places = torch.linspace(2, 1, 36).diag(), torch.arange(36)[:, None] * torch.tensor([0, 0.02])
    labels = density_peaks(keys, places, (36,), centre_fraction=1 / 36, cutoff=2.0, radius=0.02)
    assert labels.tolist() == [0] * 36


def test_copies_of_a_few_keys_are_as_many_clusters():
    """Which stand apart by what rounding makes of a distance of 0, and of keys that share a large offset."""
    keys = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) + 10).repeat(9, 1)
    for cutoff in (1.0, 30.0):
        labels = density_peaks(keys, torch.zeros(36, 2), (36,), centre_fraction=1 / 9, cutoff=cutoff, radius=1.0)
        assert partition(labels.tolist()) == {frozenset(range(first, 36, 4)) for first in range(4)}


def test_a_share_of_a_hundred_tokens_is_a_whole_number():
    """Which floating point misses by a little, 0.29 among others."""
    assert [num_centres(percent / 100, 100) for percent in range(1, 101)] == list(range(1, 101))


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_derived_cutoff_is_free_of_scale(scale):
    keys, places = picture(5, 6)
    settings = {"centre_fraction": 0.15, "cutoff": None, "radius": 0.6}
    plain = density_peaks(keys, places, (36,), **settings)
    assert torch.equal(density_peaks(keys * scale, places, (36,), **settings), plain)
    assert torch.equal(density_peaks(keys + 1000, places, (36,), **settings), plain)


@pytest.mark.parametrize("cutoff", [None, 2.5])
def test_autocast_does_not_round_distances(cutoff):
    keys, places = picture(6, 12, dim=64)
    settings = {"centre_fraction": 0.15, "cutoff": cutoff, "radius": 0.6}
    plain = density_peaks(keys, places, (144,), **settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(density_peaks(keys, places, (144,), **settings), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_round_distances(dtype):
    keys, places = picture(6, 12, dim=64)
    settings = {"centre_fraction": 0.15, "cutoff": None, "radius": 0.6}
    narrow = density_peaks(keys.to(dtype), places, (144,), **settings)
    assert torch.equal(narrow, density_peaks(keys.to(dtype).float(), places, (144,), **settings))


def test_partition_does_not_depend_on_the_order():
    keys, places = picture(6, 6)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    settings = {"centre_fraction": 0.15, "cutoff": 2.5, "radius": 0.6}
    plain = density_peaks(keys, places, (36,), **settings)[order]
    moved = density_peaks(keys[order], places[order], (36,), **settings)
    assert torch.equal(plain[:, None] == plain, moved[:, None] == moved)


def test_small_pictures_beside_a_large_one_cost_what_they_cost_alone():
    """Padding each to the largest would make maps of 400 x 400 for every one of them."""
    pictures = [picture(0, 20), *(picture(seed, 2) for seed in range(1, 41))]
    keys, places = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    lengths = (400, *[4] * 40)
    with LargestTensor() as largest:
        together = density_peaks(keys, places, lengths, centre_fraction=0.2, cutoff=None, radius=0.6)
    assert largest.values <= 400 * 400
    for first in range(400, 560, 4):
        rows = slice(first, first + 4)
        alone = density_peaks(keys[rows], places[rows], (4,), centre_fraction=0.2, cutoff=None, radius=0.6)
        assert torch.equal(together[rows], alone)
