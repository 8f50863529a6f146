"""Cut-outs and photographs, from where they are installed; ``training/README.md`` says how."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from training.testbed.cutouts import ENTRIES
from vitcop.photos.shelf import SIDE, Background, Shelf, shipped, textures, tight

STAMPS = Path("/usr/share/tuxpaint/stamps")
WALLPAPERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"))
PHOTOGRAPHS = (
    "mate/nature/*.jpg", "*_by_*.jpg", "sunset*.jpg", "*/contents/images/2560x1600.*", "city.png", "desert.png",
)  # fmt: skip
DRAWN = (
    "Altai", "Canopee", "Cascade", "Cluster", "ColdRipple", "DarkestHour", "Flow", "FlyingKonqui", "Grey",
    "Honeywave", "IceCold", "Kay", "Kokkini", "Next", "Opal", "Painting-Colors_by__herobrine7gamer",
    "analogpattern_by_Peter_Nerlich", "free_by_Peter_Nerlich",
)  # fmt: skip
"""Wallpapers that are no photographs."""
VECTORS = ("openmoji", "fluent-emoji", "fluent-emoji-flat", "emojione", "noto-v1")
"""Emoji by several hands, of the npm packages ``@iconify-json/*``, which share the names of the first."""
HELD_OUT_VECTORS = ("twemoji",)


@cache
def _stamps() -> dict[str, Path]:
    found = sorted(STAMPS.rglob("*.png"))
    if not found:
        raise SystemExit(f"{STAMPS} is empty: apt-get install tuxpaint-stamps-default")
    named = {file.stem: file for file in found if "cartoon" not in file.parts}
    return named | {str(file.relative_to(STAMPS).with_suffix("")): file for file in found}


def stamps(names: list[str]) -> list[Image.Image]:
    return [tight(Image.open(_stamps()[name])) for name in names]


@cache
def _codes(npm: Path) -> dict[str, str]:
    listed = json.loads((npm / "emoji-datasource-google" / "emoji.json").read_text())
    return {each["short_name"]: each["unified"].lower() for each in listed}


def _emoji_files(npm: Path, folder: str, suffix: str, names: list[str]) -> list[Path]:
    """Files of emoji by short name, those that the package lacks left out."""
    found = []
    for name in names:
        code = _codes(npm)[name]
        forms = dict.fromkeys((code, code.removesuffix("-fe0f")))
        files = [npm / folder / f"{form}.{suffix}" for form in forms]
        found += [file for file in files if file.exists()][:1]
    return found


def noto(npm: Path, names: list[str]) -> list[Image.Image]:
    files = _emoji_files(npm, "emoji-datasource-google/img/google/64", "png", names)
    return [tight(Image.open(file)) for file in files]


def fluent_files(npm: Path, names: list[str]) -> list[Path]:
    return _emoji_files(npm, "fluent-emoji-3d/assets", "webp", names)


def fluent(npm: Path, names: list[str]) -> list[Image.Image]:
    return [tight(Image.open(file)) for file in fluent_files(npm, names)]


@cache
def _vectors(npm: Path, package: str) -> dict[str, Any]:
    drawn: dict[str, Any] = json.loads((npm / package / "icons.json").read_text())
    return drawn


@cache
def _named(npm: Path) -> dict[str, str]:
    """Names of vectors by code."""
    named: dict[str, str] = json.loads((npm / VECTORS[0] / "chars.json").read_text())
    return named


def vectors(npm: Path, names: list[str], packages: tuple[str, ...] = VECTORS) -> list[Image.Image]:
    """Emoji by short name, as every hand that has it draws it."""
    import cairosvg  # of the group `training`, which the tests of what is drawn do without

    found = []
    for code in (_codes(npm)[name] for name in names):
        name = _named(npm).get(code) or _named(npm)[code.removesuffix("-fe0f")]
        for package in packages:
            drawn = _vectors(npm, package)
            icon = drawn["icons"].get(drawn.get("aliases", {}).get(name, {"parent": name})["parent"])
            if icon is not None:
                width, height = (icon.get(edge, drawn.get(edge, 16)) for edge in ("width", "height"))
                head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
                png = cairosvg.svg2png(f"{head}{icon['body']}</svg>".encode(), output_width=SIDE)
                found.append(tight(Image.open(io.BytesIO(png))))
    return found


def wallpapers() -> list[Image.Image]:
    files = sorted(file for folder in WALLPAPERS for pattern in PHOTOGRAPHS for file in folder.glob(pattern))
    files = [file for file in files if not any(name in (file.stem, *file.parts) for name in DRAWN)]
    found = []
    for file in files:
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((900, 900))
        found.append(picture)
    return found


def training_shelf(npm: Path) -> Shelf:
    """Everything that training may see."""
    cutouts = {}
    for noun, entry in ENTRIES.items():
        drawn = noto(npm, entry.emoji) + vectors(npm, entry.emoji)
        # Photographs, and what the suite asks about, make up two thirds of what is seen of most nouns.
        cutouts[noun] = stamps(entry.stamps) * 4 + fluent(npm, entry.emoji) * 4 + drawn
    plain = [Background(picture) for picture in wallpapers()]
    return Shelf(cutouts, plain + textures(0) * (len(plain) // 6))


def drawn_shelf(npm: Path) -> Shelf:
    """Things as a hand draws them whose drawings training has never seen, on photographs that it has not either."""
    cutouts = {noun: vectors(npm, entry.emoji, HELD_OUT_VECTORS) for noun, entry in ENTRIES.items()}
    return Shelf({noun: drawn for noun, drawn in cutouts.items() if drawn}, shipped().backgrounds)


def stamp_shelf(held_out: bool) -> Shelf:
    """Photographs of things that training has or never has seen, on photographs that it never has.

    Nouns are the same: those of which one photograph is held out.
    """
    entries = {noun: entry for noun, entry in ENTRIES.items() if entry.held_out}
    cutouts = {noun: stamps(entry.held_out if held_out else entry.stamps) for noun, entry in entries.items()}
    return Shelf(cutouts, shipped().backgrounds)


def vary(rng: np.random.Generator, cutout: Image.Image) -> Image.Image:
    """A cut-out turned a little, in another light: few pictures of a noun so stand for more."""
    if rng.random() < 0.7:
        cutout = cutout.rotate(rng.uniform(-18, 18), Image.Resampling.BILINEAR, expand=True)
    if rng.random() < 0.5:
        stretch = np.exp(rng.uniform(-0.18, 0.18, 2))
        cutout = cutout.resize(tuple(max(8, round(s * f)) for s, f in zip(cutout.size, stretch, strict=True)))
    if rng.random() < 0.5:  # a part of it
        width, height = cutout.size
        cut = rng.uniform(0, 0.25, 4) * (rng.random(4) < 0.35)
        box = (cut[0] * width, cut[1] * height, width - cut[2] * width, height - cut[3] * height)
        cutout = cutout.crop(tuple(round(edge) for edge in box))
    alpha = cutout.getchannel("A")
    color = cutout.convert("RGB")
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        color = enhance(color).enhance(rng.uniform(0.7, 1.3))
    color.putalpha(alpha)
    return color if alpha.getbbox() else cutout
