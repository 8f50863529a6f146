"""Projector and adapters, trained on packed questions in pieces that go on from one another."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from training.testbed import naming
from training.testbed.packing import Packer, embed, in_turn
from training.testbed.sources import vary
from vitcop import testbed
from vitcop.photos import SIZE
from vitcop.photos.catalogue import NOUNS
from vitcop.photos.compose import compose
from vitcop.photos.shelf import Shelf

RATE, RATE_OF_PROJECTOR = 1.5e-3, 7e-4
WARMUP = 15  # steps after each start
SAVED = 20  # steps between checkpoints
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"size": SIZE // 2, "most": 2, "sides": (0.4, 0.75)},
    "medium": {"size": SIZE, "most": 5, "sides": (0.26, 0.42)},
    "whole": {"size": SIZE},
}
"""How pictures are composed. Easy ones have a quarter of the tokens, and one or two large things."""
LATE = ("place", "relation", "count")
"""Types of questions that nothing is learned from before things are known by their names."""


@dataclass(frozen=True)
class Piece:
    """A piece of training.

    Attributes:
        steps: of the optimizer.
        pictures: in each; of easy ones twice as many.
        questions: behind each picture, at most.
        level: of the pictures, one of `LEVELS`; until they are whole, no `LATE` questions are asked.
        easy: every so many steps one of easy pictures; 1 for all.
        first, last: shares of the learning rates that it begins and ends with, straight between them. A constant one
            can go on for ever; before a model is measured, it has to fall to nothing.
    """

    steps: int
    pictures: int = 4
    questions: int = 14
    level: str = "whole"
    easy: int = 4
    first: float = 1.0
    last: float = 1.0


class Trainer:
    """The testbed in training.

    Args:
        shelf: what it is shown.
        file: what it goes on from, if it is there, and writes.
        seed: of weights and pictures.
        named: begin by `naming`; else with a random projector, which nobody has told what a thing is.
        device: to train on.
    """

    def __init__(self, shelf: Shelf, file: Path, seed: int, named: bool, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.shelf, self.file, self.seed, self.device = shelf, file, seed, device
        model, processor = testbed.unadapted()
        self.packer = Packer(processor)
        self.pixels = processor.image_processor
        self.model = get_peft_model(model, testbed.lora_config())
        self.trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        for weight in self.model.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(torch.bfloat16)
        self.model.to(device)
        self.tower, self.decoder = model.model.vision_tower, model.model.language_model
        self.projector, self.head = model.model.multi_modal_projector, model.lm_head
        if device.type == "cpu":  # where masks of packed questions make it the faster one
            self.decoder.config._attn_implementation = "eager"
        lora = [weight for name, weight in self.trained.items() if "lora_" in name]
        rest = [weight for name, weight in self.trained.items() if "lora_" not in name]
        groups = [{"params": lora, "rate": RATE}, {"params": rest, "rate": RATE_OF_PROJECTOR}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self.step = self.pictures = 0
        self.seconds = 0.0
        self.losses: dict[str, list[float]] = {}
        if file.exists():
            self._read()
        elif named:
            self._name()

    def adopt(self, folder: Path) -> None:
        """Begin with an adapter that was exported, whose optimizer is forgotten."""
        set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"))

    def train(self, piece: Piece) -> None:
        """Go on for a piece, and write what came of it."""
        first, began, before = self.step, time.monotonic(), self.seconds
        while (done := self.step - first) < piece.steps:
            share = piece.first + (piece.last - piece.first) * done / piece.steps
            share *= min(1.0, (done + 1) / WARMUP)
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * share
            easy = piece.easy > 0 and self.step % piece.easy == 0
            level = "easy" if easy else piece.level
            loss = self.loss(piece.pictures * (2 if easy else 1), piece.questions, level, late=piece.level == "whole")
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
            self.optimizer.step()
            self.step += 1
            self.seconds = before + time.monotonic() - began
            if self.step % SAVED == 0:
                self._tell()
                self._write()
        self._write()

    def loss(self, pictures: int, questions: int, level: str, late: bool) -> Tensor:
        """Of the answers to questions about the next pictures, the mean over their tokens."""
        numbers = range(self.pictures, self.pictures + pictures)
        self.pictures += pictures
        rngs = [np.random.default_rng((0, self.seed, 1, number)) for number in numbers]
        scenes = [compose(rng, self.shelf, change=vary, **LEVELS[level]) for rng in rngs]
        asked = [[question for question in scene.questions if late or question.type not in LATE] for scene in scenes]
        features = self.see([scene.picture for scene in scenes])
        with torch.autocast(self.device.type, torch.bfloat16):
            visual = self.projector(features)
            rows = [self.packer.row(in_turn(of_scene, questions), visual.shape[1]) for of_scene in asked]
            embedded, positions, seen = embed(rows, visual, self.decoder.embed_tokens)
            bias = torch.zeros_like(seen, dtype=embedded.dtype).masked_fill(~seen, torch.finfo(embedded.dtype).min)
            hidden = self.decoder(
                inputs_embeds=embedded, position_ids=positions, attention_mask=bias, use_cache=False
            ).last_hidden_state
        places = [
            (number, len(row.before) + visual.shape[1] + index)
            for number, row in enumerate(rows)
            for index in row.asked
        ]
        picture, column = (torch.tensor(axis, device=self.device) for axis in zip(*places, strict=True))
        labels = torch.tensor([label for row in rows for label in row.labels], device=self.device)
        each = nn.functional.cross_entropy(self.head(hidden[picture, column]).float(), labels, reduction="none")
        types = [f"{level} {kind}" for row in rows for kind in row.types]
        for kind, value in zip(types, each.tolist(), strict=True):
            self.losses.setdefault(kind, []).append(value)
        return each.mean()

    @torch.no_grad()
    def see(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the projector gets: (pictures, patches, width)."""
        # Easy pictures are smaller than the processor would make them.
        pixels = self.pixels(list(pictures), do_resize=False, return_tensors="pt").pixel_values
        made = self.tower(pixels.to(self.device, torch.bfloat16), output_hidden_states=True)
        return made.hidden_states[testbed.config().vision_feature_layer][:, 1:]

    def _name(self) -> None:
        words = self.decoder.embed_tokens.weight
        tokens = {noun: self.packer.tokens(f" {noun}") for noun in NOUNS}
        projector = self.projector.modules_to_save["default"]
        nouns = {noun: words[torch.tensor(of, device=self.device)].mean(0) for noun, of in tokens.items()}
        naming.begin(projector, self.see, self.shelf, self.seed, nouns)
        self._write()

    def _tell(self) -> None:
        losses = " ".join(f"{kind} {np.mean(values):.2f}" for kind, values in sorted(self.losses.items()))
        self.losses = {}
        print(f"step {self.step}, {self.pictures} pictures, {self.seconds:.0f} s: {losses}", flush=True)

    def _read(self) -> None:
        state = torch.load(self.file, weights_only=True)
        for name, weight in self.trained.items():
            weight.data.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.pictures, self.seconds = state["step"], state["pictures"], state["seconds"]

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        state = {
            "weights": {name: weight.detach().cpu() for name, weight in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "pictures": self.pictures,
            "seconds": self.seconds,
        }
        torch.save(state, part)
        part.replace(self.file)  # a stop leaves a whole file
