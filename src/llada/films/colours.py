"""The colours of films: two hues that colour-blind people can distinguish, and an underline for what grey would hide.

Blue and vermilion are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), darkened or lightened until they have
a contrast of 4.5 with the background.
"""

from dataclasses import dataclass

from llada.films.frames import AGES, CONFIDENCES, ColourBy, Shade


@dataclass(frozen=True)
class Palette:
    """Colours of a picture, as #rrggbb."""

    background: str
    border: str
    caption: str
    mask: str
    ink: str
    blue: str
    vermilion: str

    def of(self, shade: Shade) -> str:
        """Return the colour of a shade."""
        if shade == "mask":
            return self.mask
        if shade in ("likely", "young"):
            return self.blue
        return self.vermilion if shade in ("unsure", "guess", "new") else self.ink


LIGHT = Palette("#ffffff", "#d0d7de", "#57606a", "#d8dee4", "#24292f", "#0072b2", "#b84e00")
DARK = Palette("#161b22", "#30363d", "#9198a1", "#3d444d", "#e6edf3", "#56b4e9", "#e69f00")

UNDERLINED: tuple[Shade, ...] = ("guess",)
BOLD: tuple[Shade, ...] = ("given", "new")

LEGENDS: dict[ColourBy, tuple[tuple[Shade, str], ...]] = {
    "confidence": (
        ("sure", f"p ≥ {CONFIDENCES[0]:g}"),
        ("likely", f"≥ {CONFIDENCES[1]:g}"),
        ("unsure", f"≥ {CONFIDENCES[2]:g}"),
        ("guess", "below"),
    ),
    "age": (
        ("new", "new"),
        ("young", f"{AGES[0]} step or more"),
        ("settled", f"{AGES[1]}"),
        ("old", f"{AGES[2]}"),
    ),
}
"""What the colours mean, in the order of the shades."""
