"""Pretrains the vision encoder on what a scene holds, read from [CLS] and from the patches.

The [CLS] objective is what makes [CLS] attend to objects, which ViTCoP's pruning in the encoder
builds on. It is read behind the last layer and behind the last but one, whose features the decoder
gets, so that [CLS] looks for objects in that layer already. The objective on the patches makes
their features say what is where, which is what the decoder's questions are about.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from training.loop import Trainer, batches, half_precision, prepare
from training.model import SIDE, make_processor, vision_config
from vitcop.scenes import Scene
from vitcop.scenes.world import BACKDROPS, COLORS, EMOJI, HELD_OUT_PAIRS, KINDS, MARKS, SHAPES, SIGN, TEXTS

BATCH = 32
FIRST_SEED = 1_000_000_000  # the decoder's scenes have seeds below
PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in HELD_OUT_PAIRS)
NAMES = (*KINDS, *COLORS, *PAIRS, *TEXTS)  # what [CLS] must list, as a caption would: no marks, no background
COUNTED = (*SHAPES, *EMOJI, *COLORS)  # what [CLS] must count
MOST = 5


@dataclass(frozen=True)
class PatchHead:
    """What a patch must tell in one of a few ``words``, or, where ``or_nothing``, in class 0 for none."""

    words: tuple[str, ...]
    weight: float
    or_nothing: bool = True

    @property
    def classes(self) -> int:
        return len(self.words) + self.or_nothing


# The kinds are the hardest to tell, and matter most.
PATCH_HEADS = {
    "kind": PatchHead((*KINDS, *MARKS), 4.0),
    "color": PatchHead(tuple(COLORS), 2.0),
    "text": PatchHead(TEXTS, 3.0),
    "middle": PatchHead(("middle",), 3.0),
    "column": PatchHead(("left", "right"), 0.5, or_nothing=False),
    "row": PatchHead(("top", "bottom"), 0.5, or_nothing=False),
    "backdrop": PatchHead(BACKDROPS, 1.0, or_nothing=False),
}
PATCH_CLASSES = tuple(head.classes for head in PATCH_HEADS.values())


def image_tensor(scene: Scene) -> torch.Tensor:
    """The picture as uint8, 3 x SIZE x SIZE."""
    return torch.from_numpy(np.array(scene.picture)).permute(2, 0, 1)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as the processor would hand them to the model."""
    processor = make_processor().image_processor
    mean = torch.tensor(processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_std)[:, None, None]
    return (images / 255 - mean) / std


def targets(scene: Scene) -> dict[str, torch.Tensor]:
    """The labels of one scene.

    present: float, len(NAMES). counts: int64, len(COUNTED). patches: int64, SIDE * SIDE x
    len(PATCH_HEADS).
    """
    there: set[object] = set()
    counts: Counter[str] = Counter()
    rows = [(0, 0, 0)]
    for item in scene.items:
        rows.append(
            (
                1 + PATCH_HEADS["kind"].words.index(item.kind),
                1 + list(COLORS).index(item.color) if item.color else 0,
                1 + TEXTS.index(item.text) if item.text else 0,
            )
        )
        if not item.small:
            there |= {item.kind, item.color, (item.color, item.kind), item.text}
            counts.update(name for name in (item.kind, item.color) if name and name != SIGN)
    patches = np.zeros((SIDE, SIDE, len(PATCH_HEADS)), dtype=np.int64)
    patches[..., :3] = np.array(rows)[scene.patch_owner(SIDE)]
    for item in scene.items:
        x, y = item.center
        patches[int(y * SIDE), int(x * SIDE), 3] = 1
    half = np.arange(SIDE) >= SIDE / 2
    patches[..., 4], patches[..., 5] = half[None, :], half[:, None]
    patches[..., 6] = BACKDROPS.index(scene.backdrop)
    return {
        "present": torch.tensor([float(name in there) for name in NAMES]),
        "counts": torch.tensor([min(counts[name], MOST) for name in COUNTED]),
        "patches": torch.from_numpy(patches.reshape(SIDE * SIDE, len(PATCH_HEADS))),
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
        weighted = [head.weight * part for head, part in zip(PATCH_HEADS.values(), parts, strict=True)]
        loss = 10 * present + 4 * counts + torch.stack(weighted).sum()
        report = {"present": present.item(), "counts": counts.item()}
        report |= {name: part.item() for name, part in zip(PATCH_HEADS, parts, strict=True)}
        return loss, report


def begin_from(encoder: CLIPVisionModel, folder: Path) -> None:
    """Gives ``encoder`` the weights of the model in ``folder``, which may have seen smaller pictures."""
    earlier = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).model.vision_tower
    state = earlier.state_dict()
    for name in [name for name in state if "position_embedding.weight" in name]:
        cls, patches = state[name].split([1, len(state[name]) - 1])
        side = round(len(patches) ** 0.5)
        grid = patches.T.reshape(1, -1, side, side)
        grid = functional.interpolate(grid, (SIDE, SIDE), mode="bicubic", align_corners=False)
        state[name] = torch.cat([cls, grid.reshape(-1, SIDE * SIDE).T])
    encoder.load_state_dict(state, strict=False)  # the position_ids buffer follows from the size


def pretrain(folder: Path, steps: int, threads: int, earlier: Path | None) -> None:
    """Trains for ``steps`` batches, from the checkpoint in ``folder`` on if there is one.

    Without a checkpoint it begins from the encoder of the model in ``earlier``, or from nothing.
    """
    prepare(0, threads)
    model = Pretraining()
    file = folder / "vision.pt"
    if earlier is not None and not file.exists():
        begin_from(model.encoder, earlier)
    trainer = Trainer(model, file, steps, peak=1e-3, warmup=300)
    left = steps - trainer.step
    for batch in batches(FIRST_SEED + trainer.step * BATCH, left, BATCH, encode):
        with half_precision():
            loss, report = model.loss(model.states(batch["image"]), batch)
        trainer.update(loss, report)
