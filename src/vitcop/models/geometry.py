"""What a vision encoder makes of a picture or a video of a given size, before there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .grids import Grids, Shape


@dataclass(frozen=True)
class Size:
    """A picture, or a video all of whose frames have this size.

    Attributes:
        height, width: in pixels.
        frames: of a video; None for a picture.
    """

    height: int
    width: int
    frames: int | None = None

    @property
    def modality(self) -> str:
        return "image" if self.frames is None else "video"


@dataclass(frozen=True)
class Geometry:
    """Numbers of tokens on the way of one picture or video into the decoder.

    Attributes:
        image: the grids, and the place of each placeholder in them.
        stretches: tokens, [CLS] and registers included, of each picture, tile or frame that the encoder attends within.
        patches: of all stretches, [CLS] and registers left out.
        projected: rows that go through the projector.
        pooled: patches that visual tokens are pooled from by attention, padding included, if there is any.
        windows: tokens of each window in encoder layers that attend within windows, if there are any.
        merged: tokens of each stretch behind a merger among the layers of the encoder, if there is one.
        markers: text tokens that the processor writes among the placeholders.
    """

    image: Grids
    stretches: tuple[int, ...]
    patches: int
    projected: int
    windows: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()
    markers: int = 0
    pooled: int = 0

    @staticmethod
    def of(
        shapes: Sequence[Shape],
        *,
        side: int = 1,
        image: Grids | None = None,
        cls: bool = False,
        registers: int = 0,
        projected: int | None = None,
        markers: int = 0,
    ) -> Geometry:
        """Pictures whose patches are projected, `side` x `side` of them as one row.

        Args:
            shapes: rows and columns of patches of each picture, tile or frame.
            side: rows and columns of patches that become one row of the projector.
            image, projected: as above, where they are not one visual token for each such row.
            cls: whether a [CLS] token stands before the patches of each.
            registers: tokens between [CLS] and the patches of each.
            markers: as above.
        """
        full = Grids.full(*((rows // side, columns // side) for rows, columns in shapes))
        patches = [rows * columns for rows, columns in shapes]
        return Geometry(
            image=image or full,
            stretches=tuple(count + cls + registers for count in patches),
            patches=sum(patches),
            projected=projected or full.placeholders,
            markers=markers,
        )


def least_enlarging(most: int, scale: Callable[[int, int], float]) -> Shape:
    """Rows and columns of the tiles into which a picture is cut: of at most so many, those that enlarge it least or, if
    all make it smaller, that do so least; the fewest of these, and then the lowest.

    Args:
        scale: by how much so many rows and columns of tiles enlarge the picture.
    """
    numbers = range(1, most + 1)
    cuts = sorted(
        ((rows, columns) for rows in numbers for columns in numbers if rows * columns <= most),
        key=lambda cut: (cut[0] * cut[1], cut[0]),
    )
    scales = [scale(*cut) for cut in cuts]
    enlarging = [value for value in scales if value >= 1]
    return cuts[scales.index(min(enlarging) if enlarging else max(scales))]
