"""What calibrated attention costs: Census counted in each way, on a decoder of random weights (NOTES, entry 13).

`python -m benchmarks.calibration` prints ratios of processor time, on one thread, to those of attention that is not.
"""

import time
from collections.abc import Iterator
from statistics import median

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vitcop

IMAGE, TOKENS, ROUNDS, STEPS = 999, 576, 7, 4


def model_of_random_weights() -> LlavaForConditionalGeneration:
    """Eight layers of width 1024, behind an encoder that takes no time."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=32,
    )
    text = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=IMAGE + 1,
        max_position_embeddings=8192,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=TOKENS)
    return LlavaForConditionalGeneration(config).eval()


def seconds(model: LlavaForConditionalGeneration, method: vitcop.Pruner, text: int) -> tuple[float, float]:
    """Of the prefill, and of a step of decoding."""
    ids = torch.cat([torch.full((1, TOKENS), IMAGE), torch.full((1, text), 5)], 1)
    with torch.inference_mode(), vitcop.prune(model, method):
        begun = time.process_time()
        cache = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 336, 336), logits_to_keep=1).past_key_values
        filled = time.process_time()
        for _ in range(STEPS):
            model(input_ids=ids[:, -1:], past_key_values=cache, logits_to_keep=1)
        return filled - begun, (time.process_time() - filled) / STEPS


def lines() -> Iterator[str]:
    """A line for each length of text, retention and calibration."""
    model = model_of_random_weights()
    for text in (64, 1024):
        for share in (1 / 9, 1 / 3):
            methods = [vitcop.Census(share, calibrate=kind) for kind in ("none", "size", "distance")]
            rounds = [[seconds(model, method, text) for method in methods] for _ in range(ROUNDS)][1:]
            for number, method in enumerate(methods[1:], start=1):
                ratios = [[own / alone for own, alone in zip(turn[number], turn[0], strict=True)] for turn in rounds]
                told = [f"{median(of):.3f} ({min(of):.3f} to {max(of):.3f})" for of in zip(*ratios, strict=True)]
                yield f"{text} of text, retention {share:.3f}, {method.calibrate}: prefill {told[0]}, step {told[1]}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for line in lines():
        print(line, flush=True)
