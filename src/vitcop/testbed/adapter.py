"""What was trained: the projector, and low-rank adapters of the decoder's attention, as PEFT keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import LlavaForConditionalGeneration

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

ADAPTER = Path(__file__).parent / "adapter"


def lora_config() -> LoraConfig:
    """What is trained, for `peft.get_peft_model(unadapted()[0], lora_config())`."""
    from peft import LoraConfig

    return LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj",
        modules_to_save=["multi_modal_projector"],
    )


def adapted(model: LlavaForConditionalGeneration, folder: Path) -> LlavaForConditionalGeneration:
    """The model with an adapter in its weights, in place and in their type.

    Args:
        model: that the adapter was trained on.
        folder: where PEFT has saved it.
    """
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write what was trained, in bfloat16, and nothing else.

    Args:
        model: of `peft.get_peft_model`, by `lora_config`.
        folder: as `adapted` takes it; made if it is not there.
    """
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    # Else PEFT asks the hub whether the vocabulary has grown.
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink()  # a form to fill in
