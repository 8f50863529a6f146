"""Frames come from when and where they should in a video, as a player shows them, and from that file alone."""

import struct
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import RATE, greys, number_of, write_clip
from PIL import Image
from transformers.video_utils import VideoMetadata

import vitcop
from vitcop.inputs import pictures, video
from vitcop.inputs.video import MOST_FRAMES, read_clip

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
# Of two axes in the order (x to x, x to y, y to x, y to y).
TURNS = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])  # only the first says how many frames it has
@pytest.mark.parametrize(("count", "numbers"), [(1, (10,)), (4, (2, 7, 12, 17)), (20, range(20)), (30, range(20))])
def test_frames_are_the_middle_ones_of_equal_stretches(name, count, numbers, tmp_path):
    clip = read_clip(write_clip(tmp_path / name, greys(20)), count)
    assert [number_of(frame) for frame in clip.frames] == list(numbers)
    metadata = VideoMetadata(**clip.metadata)
    assert metadata.timestamps == pytest.approx([number / RATE for number in numbers])
    assert metadata.duration == pytest.approx(2)
    assert metadata.sampled_fps == pytest.approx(len(numbers) / 2)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_where_frames_last_unequally_stretches_are_of_time(name, tmp_path):
    times = [*range(10), 20, 40, 60, 80, 100]  # as screens are recorded: most of it in the first second
    clip = read_clip(write_clip(tmp_path / name, greys(15), times=times), 5)
    # Shown 1, 3, 5, 7 and 9 seconds after the beginning, or up to a tenth later, as the last frame lasts a little.
    assert [number_of(frame) for frame in clip.frames] == [9, 10, 11, 12, 13]
    assert clip.times == pytest.approx([0.9, 2, 4, 6, 8])
    assert VideoMetadata(**clip.metadata).timestamps == pytest.approx(clip.times)


def test_a_frame_that_is_shown_for_long_is_taken_once(tmp_path):
    clip = read_clip(write_clip(tmp_path / "clip.mkv", greys(3), times=[0, 50, 51]), 10)
    assert [number_of(frame) for frame in clip.frames] == [0]


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4"])  # AVI says when frames are decoded, not when they are shown
def test_frames_that_are_stored_out_of_order_are_taken_in_order(name, tmp_path):
    clip = read_clip(write_clip(tmp_path / name, greys(20), codec="libx264", bf="2", crf="1"), 5)
    assert [number_of(frame) for frame in clip.frames] == [2, 6, 10, 14, 18]
    assert clip.times == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8])


# Of the second, frames that are cut off come along, since those behind are made of them.
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_that_an_edit_list_cuts_off_do_not_count(codec, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", greys(20), codec=codec, g="20", bf="0")
    content = bytearray(path.read_bytes())
    # After the box's name: version, number of entries, duration in ms, and where it begins.
    entry = content.index(b"elst") + 12
    (second,) = struct.unpack_from(">i", content, content.index(b"mdhd") + 16)
    struct.pack_into(">ii", content, entry, 1500, second // 2)
    path.write_bytes(content)
    clip = read_clip(path, 3)
    assert [number_of(frame) for frame in clip.frames] == [7, 12, 17]
    assert clip.times == pytest.approx([0.2, 0.7, 1.2])


@pytest.mark.parametrize("axes", TURNS)
def test_frames_are_turned_and_mirrored_as_the_display_matrix_says(axes, tmp_path):
    shown = np.zeros((48, 64), dtype=np.uint8)
    shown[:16, :48] = 255  # of no symmetry
    path = write_clip(tmp_path / "clip.mp4", [Image.fromarray(shown).convert("RGB")])
    a, b, c, d = axes
    content = path.read_bytes()
    track = content.index(IDENTITY, content.index(b"tkhd"))
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:track] + matrix + content[track + len(IDENTITY) :])
    (frame,) = read_clip(path, 1).frames
    y, x = np.indices(shown.shape)
    column, row = a * x + c * y, b * x + d * y
    right = np.zeros((64, 48) if b else (48, 64), dtype=np.uint8)
    right[row - row.min(), column - column.min()] = shown
    assert frame.size == right.shape[::-1]
    assert abs(np.asarray(frame.convert("L")).astype(int) - right).mean() < 5


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2), 128), (Fraction(1, 2), 32), (Fraction(16, 15), 68)])
def test_pixels_that_are_not_square_are_made_so(aspect, width, tmp_path):
    (frame,) = read_clip(write_clip(tmp_path / "clip.mkv", greys(1), aspect=aspect), 1).frames
    assert frame.size == (width, 48)


@pytest.mark.parametrize(
    ("codec", "pixels", "width", "complaint"),
    [
        ("libx264", "yuv420p", 64, "64 x 48 pixels, which are too many"),
        ("png", "rgb24", 64, "frames of more than 3,071 pixels"),
        ("png", "rgb24", 8, "frames of more than 3,071 pixels"),
        ("mpeg4", "yuv420p", 8, "frames of more than 3,071 pixels"),
    ],
)
def test_large_frames_are_not_decoded_whatever_the_header_says(codec, pixels, width, complaint, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mov", greys(1), codec=codec, pixels=pixels)
    content = bytearray(path.read_bytes())
    size = content.index(struct.pack(">HH", 64, 48), content.index(b"stsd"))
    struct.pack_into(">H", content, size, width)
    path.write_bytes(content)
    for module in (pictures, video):
        monkeypatch.setattr(module, "MOST_PIXELS", 64 * 48 - 1)
    with pytest.raises(vitcop.VitcopError, match=complaint):
        read_clip(path, 1)


def test_what_all_frames_together_take_is_bounded(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", greys(4))
    monkeypatch.setattr(video, "MOST_PIXELS_OF_FRAMES", 3 * 64 * 48)
    assert len(read_clip(path, 3).frames) == 3
    with pytest.raises(vitcop.VitcopError, match="4 frames of 64 x 48 pixels are too much"):
        read_clip(path, 4)


def test_frames_that_are_too_thin_with_square_pixels_are_refused(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mkv", greys(1), aspect=Fraction(2))
    monkeypatch.setattr(pictures, "MOST_ASPECT", 2)
    with pytest.raises(vitcop.VitcopError, match="128 x 48 pixels, which is too thin"):
        read_clip(path, 1)


@pytest.mark.parametrize("count", [0, MOST_FRAMES + 1])
def test_the_number_of_frames_is_bounded(count):
    with pytest.raises(vitcop.VitcopError, match=f"frames has to be from 1 to {MOST_FRAMES}; got {count}"):
        read_clip(Path("clip.mp4"), count)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile clip.ts\n"),
        ("picture%d.png", None),
        ("concat:clip.ts|clip.ts", None),
        ("http://127.0.0.1:9/clip.ts", None),
    ],
)
def test_no_other_file_is_opened(name, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(Path("clip.ts"), greys(2))
    greys(1)[0].save("picture0.png")
    if content:
        Path(name).write_text(content)
    with pytest.raises(vitcop.VitcopError):
        read_clip(Path(name), 1)


def test_a_name_is_never_taken_for_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(Path("clip.mp4"), greys(1)).rename("12:30.mp4")
    assert len(read_clip(Path("12:30.mp4"), 1).frames) == 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing.mp4", "missing.mp4 as a video: No such file"),
        ("text.mp4", "Cannot read text.mp4 as a video"),
        ("sound.wav", "sound.wav is not a video, or of a kind that is not read"),
        ("sound.mka", "sound.mka has no video stream"),
        ("empty.avi", "empty.avi holds a video stream without frames"),
        ("codec.mkv", "codec.mkv is of a codec that PyAV does not have"),
    ],
)
def test_what_is_no_video_raises(name, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video")
    write_clip(Path("empty.avi"), [])
    content = write_clip(Path("codec.mkv"), greys(1)).read_bytes()
    Path("codec.mkv").write_bytes(content.replace(b"V_MPEG4/ISO", b"V_OTHER/ISO"))
    with wave.open("sound.wav", "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1000))
    with av.open("sound.wav") as sound, av.open("sound.mka", "w", format="matroska") as copy:
        stream = copy.add_stream_from_template(sound.streams.audio[0])
        for packet in sound.demux():
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    with pytest.raises(vitcop.VitcopError, match=complaint):
        read_clip(Path(name), 1)


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(vitcop.VitcopError, match=r"vitcop\[video\]"):
        read_clip(Path("clip.mp4"), 1)
