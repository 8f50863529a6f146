"""How many tokens each stage leaves, so that every method keeps the same share on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..errors import BudgetError

Shares = tuple[float, ...]


def solve(
    method: str,
    retention: float,
    num_tokens: int,
    num_layers: int,
    layers: Sequence[int],
    waypoints: Sequence[Shares] = (),
) -> dict[int, int]:
    """The schedule of a method that averages `retention` over all decoder layers, within half a token.

    A method says how its stages share what is kept by the schedules that it has been published with. From one
    token in each stage, through those, to all tokens in each, every stage moves in a straight line: the average
    rises along the way, and the schedule is where it meets `retention`. With no waypoint all stages keep the same.
    An image too small for that keeps one token in each stage, as long as this is at most one more than asked for.

    Args:
        method: its name, for errors.
        retention: share of the tokens alive, averaged over the decoder layers.
        num_tokens: of one image.
        num_layers: decoder layers.
        layers: decoder layers before which the stages stand, in order; 0 is the entrance.
        waypoints: shares of the tokens that each stage leaves, in order of their averages; they never rise from
            a stage to the next.

    Returns:
        Decoder layer -> tokens alive from that layer on.

    Raises:
        BudgetError: the decoder has no such layers, or those before the first stage alone exceed the retention.
    """
    if not all(first < second for first, second in pairwise([-1, *layers, num_layers])):
        found = ", ".join(map(str, layers))
        raise BudgetError(
            f"{method} prunes before layer {found}; these must rise, each one of the {num_layers} decoder layers, 0 to "
            f"{num_layers - 1}."
        )

    def average(shares: Shares) -> float:
        return average_retention(dict(zip(layers, shares, strict=True)), 1.0, num_layers)

    lowest, highest = (1 / num_tokens,) * len(layers), (1.0,) * len(layers)
    path = [lowest, *(tuple(max(1 / num_tokens, share) for share in shares) for shares in waypoints), highest]
    if (average(lowest) - retention) * num_tokens > 1:
        raise BudgetError(
            f"retention={retention:.4g} is below {average(lowest):.4g}, the smallest that {method} can average over "
            f"{num_layers} layers with {num_tokens} visual tokens when it first drops some before layer {layers[0]}; "
            "raise it or prune earlier."
        )
    below, above = next(
        (pair for pair in pairwise(path) if average(pair[1]) >= retention * (1 - 1e-12)), (highest, highest)
    )
    start, end = average(below), average(above)
    way = min(1.0, max(0.0, (retention - start) / (end - start))) if end > start else 1.0
    shares = (low + way * (high - low) for low, high in zip(below, above, strict=True))
    return {layer: max(1, round(share * num_tokens)) for layer, share in zip(layers, shares, strict=True)}


def average_retention(schedule: Mapping[int, int | float], num_tokens: int | float, num_layers: int) -> float:
    """Share of the tokens alive, averaged over the decoder layers.

    Args:
        schedule: decoder layer -> tokens alive from that layer on, in order of the layers.
        num_tokens: alive before the first of them.
        num_layers: decoder layers.
    """
    bounds = [0, *schedule, num_layers]
    alive = [num_tokens, *schedule.values()]
    total = sum((end - start) * count for (start, end), count in zip(pairwise(bounds), alive, strict=True))
    return total / (num_layers * num_tokens)


def scaled_layers(layers: Sequence[int], num_layers: int, first_layer: int, *, of: int = 32) -> tuple[int, ...]:
    """What layers of a decoder of `of` layers are in one of `num_layers`: all apart, and none before `first_layer`."""
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(first_layer, round(layer * num_layers / of), *(before + 1 for before in scaled[-1:])))
    return tuple(scaled)
