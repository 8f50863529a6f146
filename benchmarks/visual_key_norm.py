"""Whether small key norms of visual tokens lie on things and foretell who is attended to, by layer, on the testbed.

`python -m benchmarks.visual_key_norm` writes docs/results/visual_key_norm.md and its plot from what is stored beside
them. With `--measure` it measures first, which needs the testbed's packages (docs/testbed.md): random projectors,
unless that is done, and the adapters that are given, the testbed's own if none is. What is stored of others stays.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from benchmarks.ranks import LAST_TOKEN, auc, held, small_norms, spearman
from docs import visual_key_norm_page as page
from vitcop import photos, testbed
from vitcop.environment import versions
from vitcop.inputs.prompts import prompt_about
from vitcop.photos.catalogue import plural
from vitcop.quality import Case, Suite
from vitcop.scenes import Scene
from vitcop.scenes.item import Item

PROJECTORS = 8  # that are drawn

Reader = Callable[[Any, Any, Scene, Sequence[Case]], Iterator[page.Readings]]


class Look(NamedTuple):
    """What a question and its answer make of a picture.

    Attributes:
        last, question, answer: attention to each visual token, (layers, visual), mean over heads, of the last token of
            the prompt, of all its tokens behind the picture, and of those of the right answer behind it; means over
            tokens.
        right: whether the model would answer so.
    """

    last: Tensor
    question: Tensor
    answer: Tensor
    right: bool


def asked_about(case: Case, items: Sequence[Item]) -> list[int]:
    """The things that a question is about, counted from 1 as masks count them."""
    if case.type == "background":
        return []
    if corner := re.search(r"at the (top|bottom) (left|right)\?", case.question):
        place = float(corner[2] == "right"), float(corner[1] == "bottom")
        away = {
            number: max(abs(own - other) for own, other in zip(item.center, place, strict=True))
            for number, item in enumerate(items, start=1)
            if not item.small
        }
        return [min(away, key=away.__getitem__)]
    said = f"{case.question} {case.answer}"
    return [
        number
        for number, item in enumerate(items, start=1)
        if re.search(rf"\b({item.kind}|{plural(item.kind)})\b", said)
    ]


def masks(case: Case, scene: Scene, side: int) -> dict[str, Tensor]:
    """Which of side x side patches show a thing, and which show what the question is about."""
    owner = torch.from_numpy(scene.patch_owner(side)).flatten()
    return {"things": owner > 0, "asked": torch.isin(owner, torch.tensor(asked_about(case, scene.items)))}


@torch.inference_mode()
def see(model: Any, processor: Any, scene: Scene, cases: Sequence[Case]) -> tuple[Tensor, list[Look]]:
    """Keys of visual tokens, (layers, heads, visual, channels), which no question changes, and a look for each case.

    Args:
        model: with eager attention.
        processor: of the model.
        scene: what the cases are about.
        cases: of the one scene.
    """
    tokenizer, cache = processor.tokenizer, DynamicCache()
    prompts = [prompt_about(case.question, processor, "image") for case in cases]
    start = prompts[0].partition(processor.image_token)[0]
    inputs = processor(text=start + processor.image_token, images=scene.picture, return_tensors="pt")
    model(**inputs, past_key_values=cache, logits_to_keep=1)
    visual = inputs["input_ids"][0] == processor.image_token_id
    length = len(visual)
    keys = torch.stack([layer.keys[0, :, visual] for layer in cache.layers])
    looks = []
    for case, prompt in zip(cases, prompts, strict=True):
        texts = prompt.partition(processor.image_token)[2], f" {case.answer}"
        asking, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        ids = torch.tensor([asking + answer])
        made = model(ids, past_key_values=cache, output_attentions=True, logits_to_keep=len(answer) + 1)
        cache.crop(-len(asking + answer))
        paid = torch.stack([attention[0, :, :, :length].mean(0)[:, visual] for attention in made.attentions])
        said = made.logits[0].argmax(-1).tolist()
        last, behind = paid[:, len(asking) - 1], paid[:, : len(asking)].mean(1)
        looks.append(Look(last, behind, paid[:, len(asking) :].mean(1), said == [*answer, tokenizer.eos_token_id]))
    return keys, looks


def read(keys: Tensor, look: Look, wanted: dict[str, Tensor]) -> page.Readings:
    """What every signal is worth to one look: of all layers, or all but the last, whose next one there is not.

    Args:
        keys: (layers, heads, visual, channels).
        look: at the same tokens.
        wanted: masks of visual tokens, by name.
    """
    signals = small_norms(keys) | {LAST_TOKEN: look.last}
    readings: page.Readings = {
        name: {mask: auc(signal, of) for mask, of in wanted.items()} for name, signal in signals.items()
    } | {page.BEST: {}}
    for asker in page.ASKERS:
        received = getattr(look, asker)[1:]
        for name, signal in signals.items():
            readings[name][asker] = spearman(signal[:-1], received)
        for name, signal in ({name: signal[:-1] for name, signal in signals.items()} | {page.BEST: received}).items():
            for share in page.SHARES:
                count = round(Fraction(share) * received.shape[-1])
                readings[name][page.mass(asker, share)] = held(signal, received, count)
    return readings


@torch.inference_mode()
def read_encoder(model: Any, processor: Any, scene: Scene, cases: Sequence[Case]) -> Iterator[page.Readings]:
    """For each case what saliency is worth in each layer of the encoder."""
    pixels = processor.image_processor(scene.picture, return_tensors="pt")["pixel_values"]
    attentions = model.model.vision_tower(pixels, output_attentions=True).attentions
    paid = torch.stack([attention[0].mean(0) for attention in attentions])[..., 1:]
    signals = {page.CLS: paid[:, 0], page.RECEIVED: paid.mean(1)}
    for case in cases:
        wanted = masks(case, scene, round(paid.shape[-1] ** 0.5))
        yield {name: {mask: auc(signal, of) for mask, of in wanted.items()} for name, signal in signals.items()}


def read_decoder(model: Any, processor: Any, scene: Scene, cases: Sequence[Case]) -> Iterator[page.Readings]:
    """For each case what every signal is worth in each layer of the decoder, and whether the answer is right."""
    keys, looks = see(model, processor, scene, cases)
    for case, look in zip(cases, looks, strict=True):
        right = torch.tensor([float(look.right)])
        yield read(keys, look, masks(case, scene, round(keys.shape[2] ** 0.5))) | {page.ANSWERS: {"right": right}}


def measure(reader: Reader, model: Any, processor: Any, suite: Suite) -> page.Readings:
    """What a reader says of each picture, (pictures, layers), the mean over the questions about it.

    A question about nothing in the picture says nothing of what is asked about.
    """
    of_scene: dict[int, list[Case]] = {}
    for case in suite.cases:
        of_scene.setdefault(case.scene, []).append(case)
    found = []
    for number, cases in of_scene.items():
        readings = list(reader(model, processor, photos.scene(number), cases))
        found.append(_joined(readings, lambda stack: stack.nanmean(0)))
    return _joined(found)


def measure_untrained(suite: Suite) -> page.Readings:
    """What random projectors show, (projectors, layers), the mean over pictures: one by itself can show anything."""
    model, processor = load(None)
    found = []
    for seed in range(PROJECTORS):
        torch.manual_seed(seed)  # 0 is `testbed.unadapted()`
        model.model.multi_modal_projector = LlavaMultiModalProjector(model.config)
        of_pictures = measure(read_decoder, model, processor, suite)
        found.append(_joined([of_pictures], lambda stack: stack[0].nanmean(0)))
        print(f"{page.UNTRAINED}: projector {seed} measured", flush=True)
    return _joined(found)


def _joined(readings: Sequence[page.Readings], how: Callable[[Tensor], Tensor] = lambda stack: stack) -> page.Readings:
    """One of all: a stack of them, or what is made of it."""
    return {
        name: {kind: how(torch.stack([each[name][kind] for each in readings])) for kind in kinds}
        for name, kinds in readings[0].items()
    }


def load(path: Path | None) -> tuple[Any, Any]:
    """A testbed with eager attention, and its processor.

    Args:
        path: a folder of PEFT's, or a checkpoint of training/testbed; None for what was not trained at all.
    """
    model, processor = testbed.unadapted()
    if path is not None and path.is_dir():
        model = testbed.adapted(model, path)
    elif path is not None:
        trained = torch.load(path, weights_only=True)["weights"]
        wrapped = get_peft_model(model, testbed.lora_config())
        for name, weight in wrapped.named_parameters():
            if weight.requires_grad:
                weight.data.copy_(trained[name])
        model = wrapped.merge_and_unload()
    model.set_attn_implementation("eager")
    return model.eval(), processor


def main() -> None:
    """Measure, if that is asked for, and write the page and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="NAME=PATH",
        help=f"folder of PEFT's or checkpoint of training.testbed; NAME is one of {', '.join(page.TRAINED)}",
    )
    parser.add_argument("--questions", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0, help="of the questions: 0 to report, others to choose")
    parser.add_argument("--out", type=Path, default=page.DOCS, help="folder with results/ and images/")
    options = parser.parse_args()
    if options.measure:
        given = options.adapter or [f"{page.TESTBED}={testbed.ADAPTER}"]
        adapters = {name: Path(path) for name, _, path in (each.partition("=") for each in given)}
        for name, path in adapters.items():
            if name not in page.TRAINED or not path.exists():
                parser.error(f"--adapter {name}={path}: NAME is one of {', '.join(page.TRAINED)}, and PATH is there")
        suite = Suite.of("photos", options.questions, options.seed)
        setting = {"suite": suite.name, "seed": suite.seed, "questions": len(suite.cases), "versions": versions()}
        store = page.Store(options.out)
        if store.setting not in (None, setting):
            parser.error(f"{store.file} is of another seed, number of questions or version: move it away")
        store.setting = setting
        if page.UNTRAINED not in store.models:
            store.encoder = measure(read_encoder, *load(None), suite)  # which no training changes
            store.models[page.UNTRAINED] = measure_untrained(suite)
            store.write()
        for name, path in adapters.items():
            store.models[name] = measure(read_decoder, *load(path), suite)
            store.write()
            print(f"{name}: measured", flush=True)
    page.write(options.out)


if __name__ == "__main__":
    main()
