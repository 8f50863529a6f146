"""Before the decoder is run at all: the features of what a thing covers towards the embedding of its noun.

Nothing is said of the background: what the decoder makes of the difference between the two is found and not told.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from training.testbed.sources import vary
from vitcop.photos.compose import compose
from vitcop.photos.shelf import Shelf

PICTURES, STEPS, PATCHES = 800, 1200, 1024
RATE = 1e-3
TEMPERATURE = 0.07
BACKGROUND = 0.15  # of its patches, those that are kept: they have a size to learn
COVERED = 0.4  # the least share of a patch that a thing must cover to be what the patch shows

See = Callable[[Sequence[Image.Image]], Tensor]


def _patches(see: See, shelf: Shelf, seed: int, nouns: list[str]) -> tuple[Tensor, Tensor]:
    """Features of patches, and the number of the noun that each shows, -1 for none."""
    found, labels = [], []
    for first in range(0, PICTURES, 8):
        rngs = [np.random.default_rng((0, seed, 0, number)) for number in range(first, first + 8)]
        scenes = [compose(rng, shelf, change=vary) for rng in rngs]
        for scene, features in zip(scenes, see([scene.picture for scene in scenes]).float(), strict=True):
            owner = scene.patch_owner(round(len(features) ** 0.5), COVERED).ravel()
            kinds = [-1, *(nouns.index(item.kind) if item.kind in nouns else -1 for item in scene.items)]
            label = torch.from_numpy(np.array(kinds)[owner]).to(features.device)
            keep = (label >= 0) | (torch.rand(len(label), device=label.device) < BACKGROUND)
            found.append(features[keep])
            labels.append(label[keep])
    return torch.cat(found), torch.cat(labels)


def begin(projector: nn.Module, see: See, shelf: Shelf, seed: int, nouns: dict[str, Tensor]) -> None:
    """Train the projector alone.

    Args:
        projector: of LLaVA's, in float32; begun anew.
        see: pictures to features (pictures, patches, width).
        shelf: what is on the pictures.
        seed: of the pictures.
        nouns: their embeddings.
    """
    features, labels = _patches(see, shelf, seed, list(nouns))
    targets = torch.stack(list(nouns.values())).float()
    center = targets.mean(0)
    directions = nn.functional.normalize(targets - center, dim=1)
    size = targets.pow(2).mean(1).sqrt().median()
    mean, deviation = features.mean(0), features.std(0)
    first, second = projector.linear_1, projector.linear_2
    with torch.no_grad():  # the first layer makes features standard
        first.weight.copy_(torch.randn_like(first.weight) / first.in_features**0.5 / deviation)
        first.bias.copy_(-(first.weight @ mean))
        second.weight.copy_(torch.randn_like(second.weight) / second.in_features**0.5 * size)
        second.bias.zero_()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=RATE, weight_decay=0.01)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        index = torch.randint(len(features), (PATCHES,), device=features.device)
        made = projector(features[index] + torch.randn_like(features[index]) * 0.1 * deviation)
        things = labels[index] >= 0
        logits = nn.functional.normalize(made[things] - center, dim=1) @ directions.T / TEMPERATURE
        loss = nn.functional.cross_entropy(logits, labels[index][things], label_smoothing=0.05)
        loss = loss + 0.5 * ((made.pow(2).mean(1).sqrt() / size).log() ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0 or step == STEPS - 1:
            named = (logits.argmax(1) == labels[index][things]).float().mean()
            print(f"naming, step {step}: loss {loss:.3f}, patches named right {named:.3f}", flush=True)
