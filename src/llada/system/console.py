"""What is drawn on standard error for people, by rich."""

import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from llada.system.files import hush
from llada.system.terminal import visible


class StdoutConsole(Console):
    """On standard output, where a reader that has gone ends a command like any other (cli/ending.py)."""

    def on_broken_pipe(self) -> None:
        """By rich's own console the process would end here, with 1."""
        raise  # the error that is being handled


class StderrConsole(Console):
    """On standard error. Shows what a terminal would obey, unless it is rich's own, and outlives the terminal, the pipe
    or the disk that it goes to: rich's own console would end the process there."""

    def __init__(self) -> None:
        # Live displays put a stream of their own into this place, which leads back here.
        stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        # Names of files may look like markup.
        super().__init__(file=cast(IO[str], _Forgiving(stream)), markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does; everything that is printed passes here, and control codes of rich's own are marked."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


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
