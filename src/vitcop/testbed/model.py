"""The testbed, put together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .adapter import ADAPTER, adapted
from .architecture import config
from .packages import check_libraries

CARD = Path(__file__).parent / "card.md"


def build() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The testbed and its processor, in float32 and ready to answer.

    Raises:
        VitcopError: what it is made of is not installed, or in another version; the message says how to get it.
    """
    model, processor = unadapted()
    return adapted(model, ADAPTER).eval().requires_grad_(False), processor


def unadapted() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The testbed before its training: two pretrained parts and a projector that is drawn, always the same.

    Raises:
        VitcopError: as for `build`.
    """
    check_libraries()
    from .decoder import decoder_state
    from .encoder import encoder_state
    from .processor import make_processor, read_tokenizer

    whole = config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = LlavaMultiModalProjector(whole)
    parts = {
        "vision_tower": encoder_state(),
        "multi_modal_projector": projector.state_dict(),
        "language_model.model": decoder_state(),
    }
    state = {f"{part}.{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}
    model = LlavaForConditionalGeneration.from_pretrained(None, config=whole, state_dict=state)
    return model.eval(), make_processor(read_tokenizer())


def save(folder: str | os.PathLike[str]) -> None:
    """Write the testbed as an ordinary checkpoint, with its processor and a card.

    Args:
        folder: for `from_pretrained` and `vitcop --model`; made if it is not there.

    Raises:
        VitcopError: as for `build`.
    """
    model, processor = build()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    shutil.copyfile(CARD, target / "README.md")
