"""What stands for sound is text: it stays, at its place, also where it stands among the frames of a video."""

import pytest
import torch
from families import FAMILIES
from families.base import IMAGE, VIDEO
from families.omni import AUDIO, MARKERS
from oracle import masked_dense_logits, pruned_logits
from tiny import GREEDY, KEEP_ONLY

import vitcop

OMNI = [name for name in FAMILIES if "omni" in name]
START, END, SOUND, SILENCE = MARKERS.values()
HEARD = 24
"""Columns of a spectrogram."""


def with_sound(family, model, within):
    """A video and sound, behind one another or interleaved, and a picture behind them."""
    video, picture = family.visual("video", 0, seed=1), family.visual("image", 1, seed=2)
    _, *frames, _ = family.tokens(video)
    half = len(frames) // 2
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(1, HEARD, dtype=torch.long)
    features = torch.randn(1, model.config.audio_config.num_mel_bins, HEARD, generator=generator)
    with torch.no_grad():
        heard = model.get_audio_features(features, mask, return_dict=True).last_hidden_state
    audio = [AUDIO] * len(heard)
    if within:  # a frame, all that is heard within its seconds, and the other
        shown = [START, SOUND, *frames[:half], *audio, *frames[half:], SILENCE, END]
    else:
        shown = [START, *frames, END, SOUND, *audio, SILENCE]
    ids = torch.tensor([[1, 5, *shown, 6, *family.tokens(picture), 7, 8]])
    inputs = {"input_ids": ids} | family.token_kinds(ids) | family.inputs([[video, picture]])
    inputs |= {"input_features": features, "feature_attention_mask": mask, "use_audio_in_video": within}
    return inputs | {"video_second_per_grid": torch.full((1,), 2.0)}


@pytest.mark.parametrize("within", [False, True], ids=["behind", "within"])
@pytest.mark.parametrize("method", ["three_stages", "fastv"])
@pytest.mark.parametrize("name", OMNI)
def test_pictures_beside_sound_are_pruned_as_a_mask_would(name, method, within):
    family = FAMILIES[name]
    model = family.model()
    inputs = with_sound(family, model, within)
    report, pruned = pruned_logits(model, inputs, KEEP_ONLY[method])
    ids = inputs["input_ids"][0]
    assert sorted(report.image_lengths) == sorted(int((ids == token).sum()) for token in (IMAGE, VIDEO))
    left = report.positions_at(report.num_layers - 1)[0]
    assert set(((ids != IMAGE) & (ids != VIDEO)).nonzero()[:, 0].tolist()) < set(left.tolist())
    for after, before in zip(pruned, masked_dense_logits(model, inputs, KEEP_ONLY[method], report), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OMNI)
def test_sound_is_cached_in_front_of_the_last_picture_and_refused_behind_it(name):
    family = FAMILIES[name]
    model = family.model()
    inputs = with_sound(family, model, within=True)
    with torch.no_grad(), vitcop.prune(model, KEEP_ONLY["three_stages"]):
        expected = model.generate(**inputs, **GREEDY)
        prefix = vitcop.ImagePrefix(model, **inputs)
        assert torch.equal(prefix.generate(**inputs, **GREEDY), expected)
        heard = torch.cat([inputs["input_ids"], torch.tensor([[SOUND, AUDIO, SILENCE]])], 1)
        for refusing in (prefix.generate, lambda **asked: vitcop.ImagePrefix(model, **asked)):
            with pytest.raises(vitcop.UnsupportedModelError, match="or sound"):
                refusing(**inputs | {"input_ids": heard, "attention_mask": torch.ones_like(heard)})
