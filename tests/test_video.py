"""Frames come from where they should in a video, and the right way up."""

import struct
import sys
import wave
from pathlib import Path

import pytest
from clips import RATE, greys, number_of, write_clip
from PIL import Image

import vitcop
from vitcop.inputs.video import read_clip

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
QUARTER_TURN = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # clockwise


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])  # only the first says how many frames it has
@pytest.mark.parametrize(("count", "numbers"), [(1, (10,)), (4, (2, 7, 12, 17)), (20, range(20)), (30, range(20))])
def test_frames_are_the_middle_ones_of_equal_stretches(name, count, numbers, tmp_path):
    clip = read_clip(write_clip(tmp_path / name, greys(20)), count)
    assert [number_of(frame) for frame in clip.frames] == list(numbers)
    assert clip.metadata == {"total_num_frames": 20, "fps": RATE, "frames_indices": list(numbers)}


def test_frames_that_an_edit_list_cuts_off_do_not_count(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", greys(20))
    content = bytearray(path.read_bytes())
    # After the box's name: version, number of entries, duration in ms, and where it begins.
    entry = content.index(b"elst") + 12
    (second,) = struct.unpack_from(">i", content, content.index(b"mdhd") + 16)
    struct.pack_into(">ii", content, entry, 1500, second // 2)
    path.write_bytes(content)
    clip = read_clip(path, 3)
    assert [number_of(frame) for frame in clip.frames] == [7, 12, 17]


def test_a_clip_filmed_sideways_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (64, 48))
    picture.paste((255, 255, 255), (0, 0, 16, 16))
    path = write_clip(tmp_path / "clip.mp4", [picture])
    content = path.read_bytes()
    track = content.index(IDENTITY, content.index(b"tkhd"))
    path.write_bytes(content[:track] + QUARTER_TURN + content[track + len(IDENTITY) :])
    (frame,) = read_clip(path, 1).frames
    assert frame.size == (48, 64)
    assert frame.getpixel((40, 8))[0] > 200 > 50 > frame.getpixel((8, 8))[0]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing.mp4", "missing.mp4 as a video: No such file"),
        ("text.mp4", "Cannot read text.mp4 as a video"),
        ("sound.wav", "sound.wav has no video stream"),
        ("empty.avi", "empty.avi holds a video stream without frames"),
    ],
)
def test_what_is_no_video_raises(name, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video")
    write_clip(Path("empty.avi"), [])
    with wave.open("sound.wav", "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1000))
    with pytest.raises(vitcop.VitcopError, match=complaint):
        read_clip(Path(name), 1)


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(vitcop.VitcopError, match=r"vitcop\[video\]"):
        read_clip(Path("clip.mp4"), 1)
