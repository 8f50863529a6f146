import pytest
import torch
from peft import get_peft_model

from vitcop import testbed


@pytest.fixture
def adapt():
    """Puts an adapter of random weights on a model and saves it, rounded as it is saved."""

    def adapt(model, folder):
        wrapped = get_peft_model(model, testbed.lora_config()).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.copy_((0.05 * torch.randn(weight.shape, generator=generator)).bfloat16())
        testbed.save_adapter(wrapped, folder)
        return wrapped

    return adapt
