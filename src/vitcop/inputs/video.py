"""Frames of a video file, decoded by PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import VitcopError


@dataclass(frozen=True)
class Clip:
    """Some frames of a video.

    Attributes:
        frames: as a player shows them, in order of time.
        numbers: of these frames among all frames of the video.
        total: frames of the video.
        rate: its frames per second, on average; None if the file does not say.
    """

    frames: tuple[Image.Image, ...]
    numbers: tuple[int, ...]
    total: int
    rate: float | None

    @property
    def metadata(self) -> dict[str, Any]:
        """When the frames were, as the video processors of transformers take it."""
        return {"total_num_frames": self.total, "fps": self.rate, "frames_indices": list(self.numbers)}


def read_clip(path: Path, count: int) -> Clip:
    """Take `count` frames spread evenly over a video, or all that it has if they are fewer.

    Only the frames taken are held in memory.

    Args:
        path: a file in any format that FFmpeg reads.
        count: frames to take; at least 1.

    Raises:
        VitcopError: PyAV is not installed, or the file has no video that can be read.
    """
    try:
        import av
    except ImportError as error:
        raise VitcopError('Reading a video needs PyAV; install it with: pip install "vitcop[video]"') from error
    try:
        with av.open(path, metadata_errors="ignore") as file:
            if not file.streams.video:
                raise VitcopError(f"{path} has no video stream; give a file with moving pictures.")
            # Headers may lack the number of frames, or count those that an edit list cuts off.
            packets = file.demux(file.streams.video[0])
            total = sum(1 for packet in packets if packet.size and not packet.is_discard)
        with av.open(path, metadata_errors="ignore") as file:
            stream = file.streams.video[0]
            stream.thread_type = "AUTO"
            wanted = middles(min(count, total), total)
            decoded = enumerate(file.decode(stream))
            frames = {number: _upright(frame) for number, frame in decoded if number in wanted}
    except av.FFmpegError as error:
        raise VitcopError(f"Cannot read {path} as a video: {error.strerror}.") from error
    if not frames:
        raise VitcopError(f"{path} holds a video stream without frames; give a file that a player can show.")
    rate = stream.average_rate
    return Clip(tuple(frames.values()), tuple(frames), total, float(rate) if rate else None)


def middles(shares: int, total: int) -> list[int]:
    """Which of `total` things in a row stand in the middle of each of so many equal shares of them."""
    return [(2 * share + 1) * total // (2 * shares) for share in range(shares)]


def _upright(frame: Any) -> Image.Image:
    """A decoded frame, turned as its metadata says."""
    picture: Image.Image = frame.to_image()
    return picture.rotate(frame.rotation, expand=True)
