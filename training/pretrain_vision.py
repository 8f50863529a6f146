"""Pretrains the vision encoder on what a scene holds, read from [CLS] and from the patches.

The [CLS] objective is what makes [CLS] attend to objects, which ViTCoP's pruning in the encoder
builds on. It is read behind the last layer and behind the last but one, whose features the decoder
gets, so that [CLS] looks for objects in that layer already. The objective on the patches makes
their features say what is where, which is what the decoder's questions are about.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionModel

from training.loop import Trainer, batches, prepare
from training.model import SIDE, make_processor, vision_config
from training.scenes import Scene
from training.world import COLORS, EMOJI, HELD_OUT_PAIRS, KINDS, SHAPES, SIGN, WORDS

BATCH = 32
FIRST_SEED = 1_000_000_000  # the decoder's scenes have seeds below
PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in HELD_OUT_PAIRS)
DIGITS = tuple("0123456789")
NAMES = (*KINDS, *COLORS, *PAIRS, *WORDS, *(f"lead {d}" for d in DIGITS))  # what [CLS] must list
COUNTED = (*SHAPES, *EMOJI, *COLORS)  # what [CLS] must count
MOST = 5
# What a patch must tell: the kind and the colour of its object, the first token of a sign's text
# and the second, and whether it holds the middle of its object. Class 0 is "nothing of the sort".
PATCH_CLASSES = (1 + len(KINDS), 1 + len(COLORS), 1 + len(WORDS) + len(DIGITS), 11, 2)
PATCH_WEIGHTS = (4.0, 2.0, 3.0, 3.0, 3.0)  # kinds are the hardest to tell, and matter most


def image_tensor(scene: Scene) -> torch.Tensor:
    """The picture as uint8, 3 x SIZE x SIZE."""
    return torch.from_numpy(np.array(scene.picture)).permute(2, 0, 1)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as the processor would hand them to the model."""
    processor = make_processor().image_processor
    mean = torch.tensor(processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_std)[:, None, None]
    return (images / 255 - mean) / std


def _text_classes(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 0
    if text in WORDS:
        return 1 + WORDS.index(text), 0
    return 1 + len(WORDS) + int(text[0]), 1 + int(text[1]) if len(text) == 2 else 0


def targets(scene: Scene) -> dict[str, torch.Tensor]:
    """The labels of one scene.

    present: float, len(NAMES). counts: int64, len(COUNTED). patches: int64, SIDE * SIDE x
    len(PATCH_CLASSES).
    """
    there: set[object] = set()
    counts: Counter[str] = Counter()
    rows = [(0, 0, 0, 0)]
    for item in scene.items:
        there |= {item.kind, item.color, (item.color, item.kind), item.text}
        if item.text and item.text not in WORDS:
            there.add(f"lead {item.text[0]}")
        counts.update(name for name in (item.kind, item.color) if name and name != SIGN)
        color = 1 + list(COLORS).index(item.color) if item.color else 0
        rows.append((1 + KINDS.index(item.kind), color, *_text_classes(item.text)))
    patches = np.zeros((SIDE, SIDE, len(PATCH_CLASSES)), dtype=np.int64)
    patches[..., :4] = np.array(rows)[scene.patch_owner(SIDE)]
    for item in scene.items:
        x, y = item.center
        patches[int(y * SIDE), int(x * SIDE), 4] = 1
    return {
        "present": torch.tensor([float(name in there) for name in NAMES]),
        "counts": torch.tensor([min(counts[name], MOST) for name in COUNTED]),
        "patches": torch.from_numpy(patches.reshape(SIDE * SIDE, len(PATCH_CLASSES))),
    }


def encode(scene: Scene) -> dict[str, torch.Tensor]:
    return {"image": image_tensor(scene), **targets(scene)}


class Pretraining(nn.Module):
    """The encoder and the heads that read it. The heads are thrown away afterwards."""

    def __init__(self) -> None:
        super().__init__()
        config = vision_config()
        self.encoder = CLIPVisionModel(config)
        width = config.hidden_size
        self.patch_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(PATCH_CLASSES)))
        outputs = len(NAMES) + len(COUNTED) * (MOST + 1)
        self.cls_heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs)) for _ in range(2))

    def states(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The encoder's hidden states of uint8 images: one before each layer and the last."""
        return self.encoder(normalize(images), output_hidden_states=True).hidden_states

    def loss(
        self, states: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss and its parts, for the log."""
        present, counts = torch.zeros(()), torch.zeros(())
        for head, state in zip(self.cls_heads, states[-2:], strict=True):
            logits = head(state[:, 0])
            listed, counted = logits.split([len(NAMES), len(COUNTED) * (MOST + 1)], dim=-1)
            present = present + functional.binary_cross_entropy_with_logits(listed, batch["present"]) / 2
            counted = counted.reshape(-1, MOST + 1)
            counts = counts + functional.cross_entropy(counted, batch["counts"].flatten()) / 2
        logits = self.patch_head(states[-2][:, 1:]).flatten(0, 1).split(PATCH_CLASSES, dim=-1)
        labels = batch["patches"].flatten(0, 1).unbind(-1)
        parts = [functional.cross_entropy(*pair) for pair in zip(logits, labels, strict=True)]
        weighted = [weight * part for weight, part in zip(PATCH_WEIGHTS, parts, strict=True)]
        loss = 10 * present + 4 * counts + torch.stack(weighted).sum()
        names = ("kind", "color", "lead", "trail", "middle")
        report = {"present": present.item(), "counts": counts.item()}
        report |= {name: part.item() for name, part in zip(names, parts, strict=True)}
        return loss, report


def pretrain(folder: Path, steps: int, threads: int) -> None:
    """Trains for ``steps`` batches, from the checkpoint in ``folder`` on if there is one."""
    prepare(0, threads)
    model = Pretraining()
    file = folder / "vision.pt"
    trainer = Trainer(model, file, steps, peak=1e-3, warmup=300)
    left = steps - trainer.step
    for batch in batches(FIRST_SEED + trainer.step * BATCH, left, BATCH, encode):
        trainer.update(*model.loss(model.states(batch["image"]), batch))
