"""Frames of a video file, which may come from anywhere, decoded by PyAV."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import EINVAL
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import VitcopError, one_line
from .pictures import MOST_PIXELS, check_size, refuse_address

# Demuxers of FFmpeg. Others open what a file names: playlists, numbered pictures, addresses.
CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "gif")
MOST_FRAMES = 2048
MOST_PIXELS_OF_FRAMES = 2**30  # 3 GiB of RGB
_USUAL_RATE = 25  # of FFmpeg, where a file does not say

# How the axes x and y of a frame lie in what is shown, by the signs of the display matrix.
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class Clip:
    """Some frames of a video.

    Attributes:
        frames: as a player shows them, in order of time.
        times: from which on each is shown, in seconds since the first frame of the video.
        duration: of the video, in seconds.
    """

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    duration: float

    @property
    def metadata(self) -> dict[str, Any]:
        """When the frames were, as the video processors of transformers take it.

        They count frames at a constant rate, which a video need not have: so these are given as frames of a video that
        has 1,000 a second.
        """
        return {
            "total_num_frames": max(1, round(1000 * self.duration)),
            "fps": 1000.0,
            "duration": self.duration,
            "frames_indices": [round(1000 * time) for time in self.times],
        }


def read_clip(path: Path, count: int) -> Clip:
    """Take the frames that a player shows in the middles of `count` equal stretches of time, each frame once.

    So they are fewer where the video has fewer, or shows one of them for longer. Pixels are square and upright, as in a
    player; of several streams it is the one that FFmpeg takes for the best. Only the frames taken are held in memory.

    Args:
        path: a file in one of `CONTAINERS`. No other file is opened.
        count: of stretches; 1 to `MOST_FRAMES`.

    Raises:
        VitcopError: PyAV is not installed; the count is out of range; the file has no video that can be read; a frame
            is larger or thinner than a picture may be; or all together have more than `MOST_PIXELS_OF_FRAMES` pixels.
    """
    try:
        import av
    except ImportError as error:
        raise VitcopError('Reading a video needs PyAV; install it with: pip install "vitcop[video]"') from error
    if not 1 <= count <= MOST_FRAMES:
        raise VitcopError(f"frames has to be from 1 to {MOST_FRAMES}; got {count}.")
    refuse_address(path)
    name = one_line(path)
    try:
        with _open(path, name) as file:
            course = _course(file, _stream(file, name), name)
        with _open(path, name) as file:
            return _take(file, _stream(file, name), course, count, name)
    except av.FFmpegError as error:
        if error.errno == EINVAL:  # what a codec says of frames that it may not decode
            raise VitcopError(
                f"{name} has frames of more than {MOST_PIXELS:,} pixels, or broken ones; scale the video down."
            ) from error
        raise VitcopError(f"Cannot read {name} as a video: {error.strerror}.") from error


def middles(shares: int, total: int) -> list[int]:
    """Which of `total` things in a row stand in the middle of each of so many equal shares of them."""
    return [(2 * share + 1) * total // (2 * shares) for share in range(shares)]


@dataclass(frozen=True)
class _Course:
    """When the frames of a stream are shown.

    Attributes:
        stamps: of the frames, in order, in ticks.
        end: when the last frame ends, in ticks.
        tick: in seconds.
        in_frames: whether decoded frames carry these stamps.
    """

    stamps: list[int]
    end: int
    tick: Fraction
    in_frames: bool


def _open(path: Path, name: str) -> Any:
    """The file as PyAV opens it, if it opens nothing else and its frames are not too large for the codec."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS), "max_pixels": str(MOST_PIXELS)}
    try:
        # With the protocol before it, no name is taken for an address.
        return av.open(f"file:{path}", metadata_errors="ignore", options=options)
    except av.FFmpegError as error:
        if error.errno == EINVAL:
            raise VitcopError(
                f"{name} is not a video, or of a kind that is not read; give one of {', '.join(CONTAINERS)}."
            ) from error
        raise


def _stream(file: Any, name: str) -> Any:
    stream = file.streams.best("video")
    if stream is None:
        raise VitcopError(f"{name} has no video stream; give a file with moving pictures.")
    if stream.codec_context is None:
        raise VitcopError(f"{name} is of a codec that PyAV does not have; convert the video to another.")
    if stream.width and stream.height:
        check_size(name, stream.width, stream.height)
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # headers may lie
    stream.thread_type = "AUTO"
    return stream


def _course(file: Any, stream: Any, name: str) -> _Course:
    # Headers may lack the number of frames, or count those that an edit list cuts off.
    packets = [
        (packet.pts, packet.dts, packet.duration or 0)
        for packet in file.demux(stream)
        if packet.size and not packet.is_discard
    ]
    if not packets:
        raise VitcopError(f"{name} holds a video stream without frames; give a file that a player can show.")
    # AVI says when frames are decoded, and not when they are shown.
    in_frames = file.format.name != "avi" and all(pts is not None for pts, _, _ in packets)
    shown = [(pts if in_frames else dts, duration) for pts, dts, duration in packets]
    tick = stream.time_base
    if any(stamp is None for stamp, _ in shown):
        shown, tick = [(number, 1) for number in range(len(packets))], 1 / Fraction(stream.average_rate or _USUAL_RATE)
    shown.sort()
    (first, _), (last, duration) = shown[0], shown[-1]
    end = last + (duration or -(-(last - first) // max(1, len(shown) - 1)) or 1)
    return _Course([stamp for stamp, _ in shown], end, tick, in_frames)


def _take(file: Any, stream: Any, course: _Course, count: int, name: str) -> Clip:
    start, aspect = course.stamps[0], stream.sample_aspect_ratio or 1
    moments = [start + middle for middle in middles(count, course.end - start)]
    frames, times, pixels = [], [], 0
    for stamp, frame in _shown_at(moments, _stamped(file.decode(stream), course)):
        width, height = max(1, round(frame.width * aspect)), frame.height
        check_size(name, width, height)
        pixels += width * height
        if pixels > MOST_PIXELS_OF_FRAMES:
            raise VitcopError(
                f"{count} frames of {width} x {height} pixels are too much of {name}: together they may have "
                f"{MOST_PIXELS_OF_FRAMES:,}; take fewer frames, or scale the video down."
            )
        frames.append(_upright(frame, frame.to_image(width=width, height=height)))
        times.append(float((stamp - start) * course.tick))
    if not frames:
        raise VitcopError(f"No frame of {name} can be decoded; give a file that a player can show.")
    return Clip(tuple(frames), tuple(times), float((course.end - start) * course.tick))


def _stamped(frames: Iterable[Any], course: _Course) -> Iterator[tuple[int, Any]]:
    """Decoded frames, and when each is shown."""
    for number, frame in enumerate(frames):
        counted = course.stamps[min(number, len(course.stamps) - 1)]
        yield frame.pts if course.in_frames and frame.pts is not None else counted, frame


def _shown_at(moments: list[int], frames: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Of frames in order of time those that are shown at some moments, each once."""
    ahead, shown = deque(moments), None
    for stamp, frame in frames:
        if shown and ahead[0] < stamp:
            yield shown
            while ahead and ahead[0] < stamp:
                ahead.popleft()
            if not ahead:
                return
        shown = stamp, frame
    if shown:
        yield shown


def _upright(frame: Any, picture: Image.Image) -> Image.Image:
    """A decoded frame, turned and mirrored as its display matrix says."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    turn = tuple((value > 0) - (value < 0) for value in (a, b, c, d))
    if turn in _TURNS:
        return picture.transpose(_TURNS[turn])
    return picture.rotate(frame.rotation, expand=True)
