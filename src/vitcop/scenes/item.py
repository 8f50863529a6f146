"""An object in a scene."""

from dataclasses import dataclass

from vitcop.scenes.world import MARKS


@dataclass(frozen=True)
class Item:
    """One object. ``box`` is left, top, right, bottom as shares of the picture's side."""

    kind: str
    box: tuple[float, float, float, float]
    color: str | None = None  # shapes and marks only
    text: str | None = None  # signs only

    @property
    def small(self) -> bool:
        """Whether it is a mark, which no caption would name."""
        return self.kind in MARKS

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2
