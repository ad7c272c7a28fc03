"""Draw the stages of un-masking, as `llada sample --frames N` prints them, as one SVG picture.

    llada sample --checkpoint runs/demo --prompt $'ROMEO:\\n' --gen_length 120 --temperature 0.7 --seed 3 --frames 5 \\
        | python scripts/film_strip.py > docs/images/unmasking.svg

Every character is drawn at its place in the finished text, so that the eye can follow it from stage to stage; a mask is
a box, and what has appeared since the stage before is in colour. Needs Python alone.
"""

import re
import sys
from collections.abc import Iterator
from html import escape
from itertools import groupby

MASK = "░"
COLUMNS = 3
CHARACTER, LINE, MARGIN, CAPTION = 7.0, 17.0, 12.0, 22.0
STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  text { font: 11.6px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre }
  .old { fill: #24292f } .new { fill: #0969da; font-weight: bold } .caption { fill: #57606a } .mask { fill: #d8dee4 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; stroke: #30363d }
    .old { fill: #e6edf3 } .new { fill: #58a6ff } .caption { fill: #8b949e } .mask { fill: #3d444d }
  }
"""


def read_stages(output: str) -> list[str]:
    """Return the stages and the finished text, all equally long, from what `llada sample --frames N` prints.

    Raises:
        ValueError: there are no stages, or they are not equally long.
    """
    pieces = re.split(r"^--- \d+ of \d+ masked\n", output, flags=re.MULTILINE)[1:]
    if len(pieces) < 2:
        raise ValueError("there are no stages to draw: call llada sample with --frames 2 or more")
    length = len(pieces[0]) - 1  # the line break after it belongs to the output
    finished = pieces[-1][length + 1 :][:length]  # the text itself follows the last stage
    stages = [piece[:length] for piece in pieces] + [finished]
    if any(len(stage) != length for stage in stages):
        raise ValueError("the stages are not equally long: was more than one sample printed?")
    return stages


def kinds(stage: str, before: str) -> list[str]:
    """Return for each character whether it is a mask, has appeared since the stage before, or was there."""
    pairs = zip(stage, before, strict=True)
    return ["mask" if now == MASK else "new" if then == MASK else "old" for now, then in pairs]


def places(finished: str) -> list[tuple[int, int]]:
    """Return the line and the column of each character; a line break stands at the end of its line."""
    found, line, column = [], 0, 0
    for character in finished:
        found.append((line, column))
        line, column = (line + 1, 0) if character == "\n" else (line, column + 1)
    return found


def draw_stage(stage: str, before: str, finished: str, x: float, y: float) -> Iterator[str]:
    """Yield the SVG elements of one stage, whose first line is centred at y."""
    items = zip(places(finished), kinds(stage, before), stage, strict=True)
    for (line, kind), run in groupby(items, lambda item: (item[0][0], item[1])):
        found = list(run)
        left, middle = x + CHARACTER * found[0][0][1], y + LINE * line
        if kind == "mask":
            for i in range(len(found)):
                yield (
                    f'<rect class="mask" x="{left + CHARACTER * i + 0.5:g}" y="{middle - 6:g}" '
                    f'width="{CHARACTER - 1:g}" height="12" rx="1.5"/>'
                )
        elif text := "".join(character for _, _, character in found).rstrip("\n"):
            yield (
                f'<text class="{kind}" x="{left:g}" y="{middle + 4:g}" textLength="{CHARACTER * len(text):g}" '
                f'xml:space="preserve">{escape(text)}</text>'
            )


def draw(stages: list[str]) -> str:
    """Return the picture: the stages in rows of three, each with the number of its masks above it."""
    finished = stages[-1]
    lines = finished.split("\n")
    width = CHARACTER * (max(map(len, lines)) + 1) + 2 * MARGIN  # a line break takes a column
    height = CAPTION + LINE * len(lines) + 2 * MARGIN
    rows = -(-len(stages) // COLUMNS)
    parts = []
    for i, (before, stage) in enumerate(zip([stages[0], *stages], stages, strict=False)):
        x, y = (i % COLUMNS) * (width + MARGIN) + 1, (i // COLUMNS) * (height + MARGIN) + 1
        n_masks = stage.count(MASK)
        caption = f"{n_masks} of {stages[0].count(MASK)} masked" if n_masks else "finished"
        parts.append(f'<rect class="card" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')
        parts.append(f'<text class="caption" x="{x + MARGIN:g}" y="{y + MARGIN + 8:g}">{caption}</text>')
        parts += draw_stage(stage, before, finished, x + MARGIN, y + MARGIN + CAPTION + LINE / 2)
    full_width, full_height = COLUMNS * (width + MARGIN) - MARGIN + 2, rows * (height + MARGIN) - MARGIN + 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full_width:g} {full_height:g}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    try:
        sys.stdout.write(draw(read_stages(sys.stdin.read())))
    except ValueError as error:
        sys.exit(f"film_strip.py: {error}")
