"""Output that rich draws for people, on standard error and on standard output."""

import io
import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from llada.system.files import hush
from llada.system.terminal import tell, visible


class _Visible(Console):
    """A console that shows the control characters that a terminal would obey, unless they are rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does; everything that is printed passes here, and control codes of rich's own are marked."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class StderrConsole(_Visible):
    """A console on standard error that outlives the terminal, the pipe or the disk that it writes to: rich's own
    console would end the process there."""

    def __init__(self) -> None:
        # Live displays put a stream of their own into this place, which leads back here.
        stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        # Names of files may look like markup.
        super().__init__(file=cast(IO[str], _Forgiving(stream)), markup=False, emoji=False)


def print_rich(renderable: RenderableType) -> None:
    """Write a result that rich lays out to standard output; raises like `terminal.tell`."""
    drawing = io.StringIO()
    on_terminal = Console(highlight=False, soft_wrap=True, emoji=False)
    console = _Visible(
        file=drawing, width=on_terminal.width, highlight=False, soft_wrap=True, emoji=False,
        force_terminal=on_terminal.is_terminal,
    )  # fmt: skip
    console.print(renderable)
    tell("", ahead=drawing.getvalue().removesuffix("\n"))


def as_terminal_codes(text: Text, width: int) -> str:
    """Return a text with the codes of a terminal of 256 colours, whatever terminal there is here."""
    drawing = io.StringIO()
    console = _Visible(
        file=drawing, width=width, highlight=False, emoji=False, force_terminal=True, color_system="256",
        no_color=False, legacy_windows=False, _environ={},
    )  # fmt: skip
    console.print(text, end="", soft_wrap=True)
    return drawing.getvalue()


class _Forgiving:
    """A stream that goes silent when it cannot be written."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            hush(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            hush(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
