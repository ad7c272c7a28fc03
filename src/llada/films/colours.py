"""The colours of films: doubt in orange, newness in blue, stronger or weaker.

They are two hues of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind people can distinguish, in
steps of lightness, which remain in grey. The page's player has the same.
"""

from dataclasses import dataclass

from llada.films.frames import AGES, CONFIDENCES, DOUBTS, NEWNESS, ColourBy, Shade


@dataclass(frozen=True)
class Palette:
    """Colours of a picture, as #rrggbb."""

    sheet: str
    line: str
    quiet: str
    ink: str
    accent: str
    mask: str
    doubts: tuple[str, str, str, str]
    newness: tuple[str, str, str, str]

    def of(self, shade: Shade) -> str | None:
        """Return what is behind a token of a shade; None is nothing."""
        shades = zip((*DOUBTS, *NEWNESS, "mask"), (*self.doubts, *self.newness, self.mask), strict=True)
        return dict(shades).get(shade)


LIGHT = Palette(
    "#ffffff", "#e4e2dc", "#5d6068", "#1c1d20", "#0067a8", "#d9d8d3",
    ("#f0a43c", "#f8c577", "#fcdfaf", "#fef1da"), ("#6dbdec", "#a3d6f4", "#cde9f9", "#e8f5fc"),
)  # fmt: skip
DARK = Palette(
    "#1a1c1f", "#33363b", "#a3a7b0", "#ececea", "#6cc0f2", "#3d4147",
    ("#93600f", "#6f4b14", "#503a18", "#352b19"), ("#0d6199", "#104e79", "#143c58", "#172d3e"),
)  # fmt: skip

LEGENDS: dict[ColourBy, tuple[tuple[Shade, str], ...]] = {
    "confidence": tuple(
        (shade, f"{'p below ' * (shade == DOUBTS[0])}{bound:g}")
        for shade, bound in zip(DOUBTS, CONFIDENCES, strict=True)
    ),
    "age": tuple(
        (shade, f"{'age below ' * (shade == NEWNESS[0])}{bound:.0%}{' of the steps' * (shade == NEWNESS[-1])}")
        for shade, bound in zip(NEWNESS, AGES, strict=True)
    ),
}
"""What the colours mean, in the order of the shades."""
