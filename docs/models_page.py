"""Prints docs/models.md, whose table comes from the registry of families."""

from __future__ import annotations

from vitcop.models import FAMILIES, ModelFamily

_TEXT = """\
# Supported models

Made from the families in `src/vitcop/models` by `make docs`; a test checks that it is up to date, and others check
what it says. A model whose `model_type` is not here raises `UnsupportedModelError`.

{table}

* **takes**: what becomes visual tokens. Pictures of all sizes, none or several in a prompt, and pictures and videos
  in one batch, unless the table says otherwise.
* **saliency**: what stage I of ViTCoP ranks by; always computed in the layer whose features the model uses, unless
  the table says otherwise, one grid (picture, tile or frame) at a time, and never by a norm. Attention received is
  the mean over all heads and queries; it is streamed, and no map of all patches by all patches is made.
* **first layer**: the earliest decoder layer, besides the entrance, before which tokens can be dropped. `ViTCoP`
  and `KNorm` begin at 2 at the earliest, since key norms of layer 0 rank tokens the wrong way round.
* **positions**: `compact` numbers the tokens that are left anew where the method asks for it; `keep` leaves them
  where they were.
* **raises**: what is refused for this family, besides what [limits.md](limits.md) lists for all.
* DINOv2 takes pictures of any size and interpolates its positions: whatever `image_size` the config has, 224 x 224
  pixels are 256 visual tokens, and 336 x 336 are 576. Which size the processor makes is not in the config, so that
  `vitcop plan` takes `--image-size` for it; `vitcop eval` asks the processor.
* Of DINOv2 with registers, LLaVA takes [CLS] away and nothing else, so that registers go through the projector and
  have placeholders, in front of those of the patches; the processor writes as many where its
  `num_additional_image_tokens` is 1 and the number of registers. They show no place of the picture and hold what the
  encoder has gathered of all of it, so that they are separators. [CLS] attends to them, which is no patch's saliency.
* Prompts of GLM-V have the placeholder of pictures for videos as well, between other markers; which of the two they
  are is told by what comes along. `EarlyViTCoP` needs the `bos_token_id` that the configs of its decoders leave out.
* Three of four decoder layers of Qwen3.5 (and Qwen3.6, which is of the same types) fold tokens into a state and keep no
  keys: layers 3, 7, 11 and so on attend. What a stage sees of the layer before is that of the nearest one that attends,
  so that none stands before layer 4. What is dropped is not read by recurrent layers behind the stage either.
  `PyramidDrop` looks at the layer about to run, and needs `layers` that attend, such as `[7, 15, 23]`; `HAWK`, which
  looks at layer 0, raises. A token that was merged counts for one in states, whatever `calibrate` says.
* VideoLLaMA 3 makes a visual token of each patch of a picture, and of 2 x 2 patches of a frame. Its video processor
  drops tokens of frames that look like the frame before, unless it is called with `use_token_compression=False`; for
  commands, which leave it at its settings, that goes into the checkpoint's `video_preprocessor_config.json`. Take a
  checkpoint that was converted for transformers, as `lkhl/VideoLLaMA3-2B-Image-HF`, which transformers' own pages load:
  those of the authors (`DAMO-NLP-SG/VideoLLaMA3-2B`) are of another type and need Python code that they bring along.
* More than half of the decoder layers of LFM2-VL are short convolutions, which keep a state as well: of the 16 of
  LFM2-1.2B, layers 2, 5, 8, 10, 12 and 14 attend. All that is said of Qwen3.5 goes for it, with other numbers. Its
  processor cuts what is more than twice the most tokens that a picture may have into tiles, and adds a thumbnail.
* MiniCPM-V 4.6 and 4.7 cut a picture, or a frame, into up to nine slices, which stand behind the whole of it and need
  not have its shape. Their decoder is that of Qwen3.5, of which all goes that is said above. Halfway through the
  encoder 2 x 2 patches become one, and behind it 2 x 2 of these a visual token; with `downsample_mode="4x"`, in the
  config or in a call, the first of the two mergers is left out. Otherwise the last layer, which shows saliency, sees
  merged patches. A number stands in front of each picture and, in 4.6, of each video. Without it
  (`use_image_id=False`), pictures still stay apart, and videos with nothing between them are one. In 4.7 slices have
  positions in the picture that they are of, so that positions have three axes. Transformers 5.17 has no 4.7, and its
  encoder of 4.6 takes all pictures for as large as the first one, so that it raises; 5.24 has neither flaw.
* Of Qwen2.5-Omni and Qwen3-Omni, it is the thinker that takes pictures and videos (`model.thinker` of the whole, which
  speaks as well), in transformers 5.24 or newer. Sound stands in its prompts as text does and stays, also among the
  frames of a video (`use_audio_in_video`). Without an attention mask, thinkers take pictures for text, pruned or not.
* Of Cohere's second decoder (Command R7B and Command A), layers with a sliding window turn queries and keys by rotary
  embeddings, and the others have no positions: `calibrate="distance"` raises, all else works. Aya Vision 32B has the
  first, whose layers are all alike.
* Llama 4 runs in transformers up to 5.23; its own of 5.24 ends in an AttributeError (`image_outputs`), dense as well.
  It is pruned as long as the whole prompt, dropped tokens included, and the answer reach neither the end of a chunk,
  within which three of four layers attend, nor the place from which the others scale queries: 8,191 tokens of the
  published models, or three of the largest pictures. Beyond, prompt or answer raise. Every fourth layer has no
  positions, so that `calibrate="distance"` raises. All experts run on all tokens, and costs say so. Its processor makes
  pixels of bfloat16.
* Gemma 4 makes of a picture as many visual tokens as its shape allows within a budget, which is a setting of its
  processor: `max_soft_tokens`, 70, 140, 280, 560 or 1,120, by default 280 a picture and 70 a frame. Encode 1,120 and
  keep a quarter: the decoder pays for 280, the encoder for all of them. Its small models (E2B, E4B) end in layers that
  use the keys and values of layers before them: retention is averaged over the others, and nothing is dropped behind
  the first layer whose keys are so used. Sound is text. `gemma4_unified` has no vision encoder to observe.
* Prompts of PaliGemma see themselves both ways, pictures and text, and an answer behind them sees backwards: it needs
  the `token_type_ids` that its processor makes, in a forward as in `generate`. `EarlyViTCoP` raises, as a picture by
  itself is not what it is beside its question. The decoder of PaliGemma 2, Gemma 2, has a soft cap on attention, so
  that methods that read rows of it, and `DART`, raise; key norms work, and the decoder runs under eager attention.
  Answers name places by location tokens, which are of the whole picture whatever is left of it. `positions="keep"`
  leaves the decoder the places that tokens had in it, and so is to be preferred where boxes or masks are asked for
  (not measured). The processor has no chat template, so that commands do not ask as the model was trained to be
  asked: do so in Python.
* Molmo 2 shows a picture as a thumbnail and crops that overlap, and says of which patches each visual token is pooled.
  Where crops meet, a token may be of several, and then counts to that of its first patch. Row ends, and the markers
  around a thumbnail, all crops or a frame, are text to us and stay. All pictures or frames of a prompt see each other
  both ways, and these markers, as its processor says by `mm_token_type_ids`; so the first picture sees the last one,
  and by it the text between the two. Prompts have one placeholder for pictures and videos, which of the two is told by
  what comes along. Saliency is that of the deepest of the encoder layers whose features are joined. Where some decoder
  layers alone have scaled positions (`rope_scaling_layers`), `calibrate="distance"` raises. For overlays
  the processor cuts the picture once more. Transformers has the model since a release behind 5.17, by 5.24.
* `shieldgemma2` is a classifier around a Gemma 3: `vitcop.prune(model.model, ...)` prunes that, and the classifier is
  called as ever.
* InternVL 3.5 with a decoder of Qwen3 is as InternVL 3, but for its QK-norm. With that of gpt-oss, whose layers have
  windows and sinks, it raises.
* In every family, decoders that normalise their keys (QK-norm: Qwen3, Qwen3.5, MiniCPM-V, LFM2, Molmo 2, Gemma 3 and
  4, Llama 4 Scout) have ViTCoP's stages II and III rank by saliency, as [design.md](design.md) explains;
  `VisualTokens.normalised_keys` says so to methods.

One budget covers one picture or one video: tiles and frames share it in proportion to the visual tokens they really
have. Separators (newlines, row breaks, markers, a frame's [CLS], registers) are text and always stay.
"""

_HEADER = ("`model_type`", "takes", "grids", "encoders", "saliency", "first layer", "positions", "raises")


def page() -> str:
    """The page docs/models.md."""
    families = sorted(set(FAMILIES.values()), key=lambda family: family.model_types)
    lines = [_HEADER, ("---",) * len(_HEADER), *(_row(family) for family in families)]
    return _TEXT.format(table="\n".join(f"| {' | '.join(line)} |" for line in lines))


def _row(family: type[ModelFamily]) -> tuple[str, ...]:
    return (
        ", ".join(f"`{model_type}`" for model_type in family.model_types),
        ", ".join(f"{modality}s" for modality in family.modalities),
        family.described.grids,
        ", ".join(f"`{encoder}`" for encoder in getattr(family, "encoders", ())) or "its own",
        family.described.saliency,
        family.described.first_layer,
        "keep" if family.keeps_positions else "compact or keep",
        "; ".join(family.described.refuses),
    )


if __name__ == "__main__":
    print(page(), end="")
