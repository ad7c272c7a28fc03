"""A film as an animated GIF, drawn by Pillow."""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from unicodedata import normalize

from PIL import Image, ImageDraw, ImageFont

from llada.films.colours import DARK, LEGENDS
from llada.films.frames import ColourBy, Frame, shade_of, status_of
from llada.films.layout import Layout, characters_of, lay_out
from llada.films.timing import durations_of

COLUMNS, FEWEST_COLUMNS = 64, 52
SIZE, CELL, LINE, MARGIN = 20, 12, 26, 24  # pixels: of the font, a column, a line, the space around
SMALL, SMALL_CELL = 15, 9.03  # of the lines below the text
N_COLOURS = 32  # few, because most of a frame is one colour, and the rest smooth edges of letters


def write_gif(frames: Sequence[Frame], by: ColourBy, path: Path) -> None:
    """Write an endless film with a pause at its end."""
    layout = lay_out(frames[-1], COLUMNS, by_words=True)
    # One palette for all, of frames that have masks, letters, and all shades.
    palette = _below_each_other(
        [_draw(frame, layout, by) for frame in (frames[0], frames[len(frames) // 2], frames[-1])]
    ).quantize(N_COLOURS)
    first, *others = (_draw(frame, layout, by).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(
        path, format="GIF", save_all=True, append_images=others, duration=durations_of(len(frames)), loop=0,
        optimize=False, disposal=1,
    )  # fmt: skip


def _below_each_other(images: Sequence[Image.Image]) -> Image.Image:
    width, height = images[0].size
    together = Image.new("RGB", (width, len(images) * height))
    for number, image in enumerate(images):
        together.paste(image, (0, number * height))
    return together


def _draw(frame: Frame, layout: Layout, by: ColourBy) -> Image.Image:
    width = max(FEWEST_COLUMNS, layout.width) * CELL + 2 * MARGIN
    bottom = MARGIN + LINE * len(layout.lines)
    image = Image.new("RGB", (width, bottom + 3 * LINE), DARK.sheet)
    draw = ImageDraw.Draw(image)
    for boxes in layout.lines:
        for box in boxes:
            place, x, y = frame.places[box.at], MARGIN + CELL * box.column, MARGIN + LINE * box.line
            if colour := DARK.of(shade_of(place, frame, by)):
                draw.rounded_rectangle((x + 1, y + 3, x + CELL * box.width - 2, y + LINE - 4), 3, fill=colour)
            if place.text is not None:
                _write(draw, x, y + LINE // 2, layout.fill(box, place), SIZE, CELL, DARK.ink, place.is_given)
    _write_foot(draw, frame, by, bottom, width)
    return image


def _write_foot(draw: ImageDraw.ImageDraw, frame: Frame, by: ColourBy, top: int, width: int) -> None:
    """Write the status, and what the colours mean, below the text, with a bar of how much is filled."""
    n_written = sum(not place.is_given for place in frame.places)
    done = 1 - frame.n_open / max(1, n_written)
    y = top + LINE // 2
    draw.rectangle((MARGIN, y, width - MARGIN, y + 2), fill=DARK.line)
    draw.rectangle((MARGIN, y, MARGIN + round((width - 2 * MARGIN) * done), y + 2), fill=DARK.accent)
    y += 18
    _write(draw, MARGIN, y, status_of(frame), SMALL, SMALL_CELL, DARK.quiet)
    x = MARGIN + 4.0
    for shade, words in LEGENDS[by]:
        end = x + SMALL_CELL * len(words)
        draw.rounded_rectangle((x - 4, y + 11, end + 4, y + 29), 3, fill=DARK.of(shade))
        _write(draw, x, y + 20, words, SMALL, SMALL_CELL, DARK.ink)
        x = end + 2 * SMALL_CELL


def _write(
    draw: ImageDraw.ImageDraw,
    x: float,
    middle: float,
    text: str,
    size: int,
    cell: float,
    colour: str,
    is_bold: bool = False,
) -> None:
    """Write a text on the grid, character by character, since fonts for other scripts have other widths."""
    for together, width in characters_of(text):
        for character in normalize("NFC", together):  # what remains is drawn onto the first
            if character != " ":
                draw.text((x, middle), character, fill=colour, font=_font_for(character, size, is_bold), anchor="lm")
        x += cell * width


@lru_cache(maxsize=4096)
def _font_for(character: str, size: int, is_bold: bool) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans Mono, which matplotlib brings, or, for a character that it lacks, a font of the system."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSansMono{'-Bold' * is_bold}.ttf"
    if _has(str(own), character):
        return _load(str(own), size)
    others = (font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal"))
    return _load(next((path for path in others if _has(path, character)), str(own)), size)


@cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _characters_of(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


def _has(path: str, character: str) -> bool:
    return ord(character) in _characters_of(path)
