"""Trains the decoder on questions, over the frozen encoder, growing it from 5 to 20 layers.

A thin decoder of 20 layers learns slowly at first and costs four times a decoder of 5. So the short
one learns to look at the picture, and is then deepened by layers that change nothing at first.

All questions about a picture share one sequence, and so the cost of the picture's tokens. A mask
and the positions see to it that each sees just what it would see alone behind the picture.
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from training.loop import Trainer, batches, half_precision, prepare
from training.model import SIDE, make_model
from training.pretrain_vision import PATCH_CLASSES, PATCH_HEADS, Pretraining, image_tensor, normalize
from training.vocabulary import make_tokenizer, prompt
from vitcop.scenes import Scene
from vitcop.scenes.questions import TYPES

BATCH = 16
DEPTHS = (5, 20)
PEAKS = (1.5e-3, 7e-4)  # learning rate by depth
FIRST_TYPES = ("existence", "color", "place", "reading", "small", "background")
FEATURE_SPREAD = 2.0  # standard deviation of the pretrained encoder's features within a patch
SHARPNESS = 2.4  # of the first matches: how much longer queries and keys are than random ones
KEY_OFFSET = 1.5  # length, in each head, of the key of a unit of nothing; other keys of a unit have one of about 0.45
TOKENIZER = make_tokenizer()
IGNORED = -100  # the label of a token that predicts nothing


def question_tokens(question: str) -> list[int]:
    """The prompt's tokens behind the picture."""
    tokens = TOKENIZER(prompt(question)).input_ids
    return tokens[tokens.index(TOKENIZER.image_token_id) + 1 :]


def picture_tokens() -> list[int]:
    """The prompt's tokens up to the picture and the picture's placeholders."""
    tokens = TOKENIZER(prompt("")).input_ids
    before = tokens[: tokens.index(TOKENIZER.image_token_id)]
    return before + [TOKENIZER.image_token_id] * (SIDE * SIDE)


def encode(scene: Scene, asked_types: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """One scene with all its questions of these types as one sequence.

    tokens, labels (the token to come, or IGNORED), positions, segments (0 for the picture, then the
    number of the question), types (of the question, by its place in TYPES): int64, tokens.
    """
    tokens = picture_tokens()
    start = len(tokens)
    labels, segments, types = [IGNORED] * start, [0] * start, [0] * start
    positions = list(range(start))
    questions = [question for question in scene.questions if question.type in asked_types]
    for number, question in enumerate(questions, start=1):
        asked = question_tokens(question.text)
        answer = TOKENIZER(question.answer, add_special_tokens=False).input_ids
        # The end of the sequence is predicted, never read.
        tokens += asked + answer
        length = len(asked) + len(answer)
        labels += [IGNORED] * (len(asked) - 1) + answer + [TOKENIZER.eos_token_id]
        positions += range(start, start + length)
        segments += [number] * length
        types += [TYPES.index(question.type)] * length
    columns = {
        "tokens": tokens,
        "labels": labels,
        "positions": positions,
        "segments": segments,
        "types": types,
    }
    return {"image": image_tensor(scene)} | {key: torch.tensor(row) for key, row in columns.items()}


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest of them."""
    padding = {
        "tokens": TOKENIZER.pad_token_id,
        "labels": IGNORED,
        "positions": 0,
        "segments": -1,
        "types": 0,
    }
    batch = {key: nn.utils.rnn.pad_sequence([row[key] for row in rows], True, value) for key, value in padding.items()}
    return batch | {"image": torch.stack([row["image"] for row in rows])}


def block_mask(segments: torch.Tensor) -> torch.Tensor:
    """What each token may see: earlier tokens of the picture and of its own question.

    segments: batch x tokens. Returns 0 or minus infinity as float, batch x 1 x tokens x tokens.
    """
    mine, theirs = segments[:, :, None], segments[:, None, :]
    seen = ((theirs == 0) | (theirs == mine)).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).unsqueeze(1)


def answer_loss(
    model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of the answers and, for the log, each type's share of right answer tokens."""
    hidden = model.model(
        input_ids=batch["tokens"],
        pixel_values=normalize(batch["image"]),
        attention_mask=block_mask(batch["segments"]),
        position_ids=batch["positions"],
        use_cache=False,
    ).last_hidden_state
    answering = batch["labels"] != IGNORED
    logits = model.lm_head(hidden[answering])
    labels = batch["labels"][answering]
    right = logits.argmax(-1) == labels
    counted = labels != TOKENIZER.eos_token_id
    report = {}
    for number, name in enumerate(TYPES):
        of_type = right[counted & (batch["types"][answering] == number)]
        report[name] = of_type.float().mean().nan_to_num().item()
    return functional.cross_entropy(logits, labels), report


def deepen(shallow: LlavaForConditionalGeneration, depth: int) -> LlavaForConditionalGeneration:
    """A model of ``depth`` decoder layers that computes the same as ``shallow``.

    Its layers are spread evenly; each new layer copies the one before it, but adds nothing to the
    residual stream until it is trained.
    """
    deep = make_model(depth)
    state = shallow.state_dict()
    prefix = "model.language_model.layers."
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    deep.load_state_dict(rest, strict=False)
    old = shallow.model.language_model.layers
    every = depth // len(old)
    with torch.no_grad():
        for number, layer in enumerate(deep.model.language_model.layers):
            layer.load_state_dict(old[number // every].state_dict())
            if number % every:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    return deep


def checkpoint(folder: Path, depth: int) -> Path:
    return folder / f"decoder-{depth}.pt"


def load(folder: Path, depth: int) -> LlavaForConditionalGeneration:
    """The model as it is after the training at this depth."""
    model = make_model(depth)
    model.load_state_dict(torch.load(checkpoint(folder, depth), weights_only=True)["module"])
    return model


def align(model: LlavaForConditionalGeneration, pretraining: Pretraining, turn: torch.Tensor) -> None:
    """Lets the projector say what the patch head sees in a patch, by the words' own embeddings, turned.

    So a patch of a red circle starts out as "red" plus "circle", and what the decoder has to learn
    is one way of matching rather than a translation of every word. A patch of nothing starts out as
    a vector of its own, which `offset_keys` builds on.

    turn: orthogonal, hidden size x hidden size.
    """
    norm, head = pretraining.patch_head
    embeddings = model.get_input_embeddings().weight
    nothing = torch.randn(embeddings.shape[1]) * embeddings.std()
    outputs, vectors = [0], [nothing]
    for start, told in zip(torch.tensor([0, *PATCH_CLASSES]).cumsum(0).tolist(), PATCH_HEADS.values(), strict=False):
        for number, word in enumerate(told.words, start=start + told.or_nothing):
            if word in TOKENIZER.vocab:
                outputs.append(number)
                vectors.append(turn @ embeddings[TOKENIZER.vocab[word]])
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        # The head reads normalised features; their spread hardly varies, so it can be folded in.
        weight = head.weight[outputs] * norm.weight / FEATURE_SPREAD
        projector.linear_1.weight[: len(outputs)] = weight - weight.mean(1, keepdim=True)
        projector.linear_1.bias[: len(outputs)] = head.weight[outputs] @ norm.bias + head.bias[outputs]
        projector.linear_2.weight[:, : len(outputs)] = torch.stack(vectors, dim=1)
        model.lm_head.weight.copy_(embeddings)
    offset_keys(model, nothing / nothing.norm())


def match_alike(model: LlavaForConditionalGeneration, turn: torch.Tensor) -> None:
    """Lets words attend, to begin with, to the patches that show what they name.

    Keys are made as queries are, once `turn`, by which `align` tells what patches show from words,
    has been undone: so a word finds patches, and not itself. From random queries and keys a model
    this small took long to learn that, or did not. An idea of "Mimetic Initialization of
    Self-Attention Layers" (arXiv 2305.09828).
    """
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight *= SHARPNESS
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight @ turn.T)


def offset_keys(model: LlavaForConditionalGeneration, nothing: torch.Tensor) -> None:
    """Gives patches of nothing large keys that mean the same in every head and at every distance.

    In pretrained language models most keys share a large offset that queries point away from, so
    that small keys are those attended to, which ViTCoP's stages in the decoder build on
    (docs/results/key_norm.md). A model trained from nothing for an hour grows the opposite: keys of
    nothing stay near zero. This is where training starts from; all of it is trained.

    nothing: the direction in which patches of nothing lie, of length 1, hidden size.
    """
    decoder = model.model.language_model
    width, heads = decoder.layers[0].self_attn.head_dim, decoder.config.num_key_value_heads
    slowest = torch.tensor([width // 2 - 2, width // 2 - 1, width - 2, width - 1])  # of the rotary dimensions
    rows = (torch.arange(heads)[:, None] * width + slowest).flatten()
    with torch.no_grad():
        for layer in decoder.layers:
            layer.self_attn.k_proj.weight[rows] = KEY_OFFSET / 2 * nothing
            layer.self_attn.q_proj.weight[rows] = 0  # whether to look there or away is for training to find


def start(folder: Path, stage: int) -> LlavaForConditionalGeneration:
    """The model to begin a stage with: on the pretrained encoder, or the last stage's, deepened."""
    if stage > 0:
        return deepen(load(folder, DEPTHS[stage - 1]), DEPTHS[stage])
    pretraining = Pretraining()
    pretraining.load_state_dict(torch.load(folder / "vision.pt", weights_only=True)["module"])
    model = make_model(DEPTHS[0])
    model.model.vision_tower.load_state_dict(pretraining.encoder.state_dict())
    turn = nn.init.orthogonal_(torch.empty(model.config.text_config.hidden_size, model.config.text_config.hidden_size))
    match_alike(model, turn)
    align(model, pretraining, turn)
    return model


def train(folder: Path, steps: tuple[int, ...], threads: int) -> None:
    """Trains each depth for its number of batches, from the checkpoints in ``folder`` on."""
    first_seed = 0
    for stage, (depth, count) in enumerate(zip(DEPTHS, steps, strict=True)):
        prepare(1 + stage, threads)
        model = start(folder, stage)
        model.model.vision_tower.requires_grad_(False)
        warmup = min(200, count // 10)
        trainer = Trainer(model, checkpoint(folder, depth), count, PEAKS[stage], warmup)
        # Finding things comes first; counting and comparing them build upon it.
        for types, end in ((FIRST_TYPES, count // 2 if stage == 0 else 0), (TYPES, count)):
            left = max(0, end - trainer.step)
            seed = first_seed + trainer.step * BATCH
            row = partial(encode, asked_types=types)
            for batch in batches(seed, left, BATCH, row, collate):
                with half_precision():
                    loss, report = answer_loss(model, batch)
                trainer.update(loss, report)
        first_seed += count * BATCH
