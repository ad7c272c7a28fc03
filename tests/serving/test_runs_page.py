"""The page of `llada watch` in a real browser: curves that grow, samples by step, runs next to each other."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from llada.serving.listening import Address, listen
from llada.serving.runs.api import make_app
from tests.support.browser import Watched, accessibility_problems, launched, wait_until
from tests.support.watched_runs import append, bound, make_run, row, snapshot

HOSTILE = "<img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def _look_often() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llada.serving.runs.collection.SECONDS_BETWEEN_LOOKS", 0)
        yield


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs: `first` trains, and `second` is over and has been for long."""
    for name, slower, total in (("first", 0.0, 100), ("second", 0.5, 60)):
        rows = []
        for step in range(1, 61):
            each = row(step, memory_bytes=4e8 + 1e6 * step)
            rows.append({**each, "nll": each["nll"] + slower})
            if step % 20 == 0:
                rows.append(bound(step, 3 - step / 50 + slower))
        samples = {step: f"{name} writes at {step}\n{HOSTILE}\x1b[2J" for step in (20, 40, 60)}
        make_run(tmp_path / "runs" / name, rows, samples, steps=total, seed=len(name))
    return tmp_path / "runs"


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    with listen(Address(port=0)) as socket:
        server = uvicorn.Server(uvicorn.Config(make_app([runs]), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


@pytest.fixture
def visit(opened: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page with properties of the browser's context; at the end, it must have had nothing to complain of."""
    watched: list[Watched] = []

    def visit(fragment: str = "", **context: Any) -> Any:
        context = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **context}
        watched.append(Watched(opened, **context))
        page = watched[-1].page
        page.goto(address + fragment)
        page.wait_for_selector("#facts dt")
        page.wait_for_selector("#samples pre")
        return page

    yield visit
    for each in watched:
        each.check()
        each.close()


def look_again(page: Any, expression: str) -> None:
    """Let the page ask at once, not after its seconds, and wait until an expression is true."""
    page.evaluate("dispatchEvent(new Event('online'))")
    wait_until(page, expression)


def chart(page: Any, title: str) -> Any:
    return page.locator("figure", has=page.locator(".chart-title", has_text=title)).first


def test_curves_appear_and_grow_while_the_run_trains(visit: Callable[..., Any], runs: Path) -> None:
    page, before = visit(), snapshot(runs)
    assert page.locator("#focus-name").inner_text() == "first"
    assert page.locator("#facts").inner_text().splitlines()[1] == "1.800 ± 0.020"
    bounds = chart(page, "Bound on validation text")
    assert bounds.locator("circle.dot").count() == 6
    assert bounds.locator("path.error").count() == 6
    loss = chart(page, "Training loss")
    line = loss.locator("path.line.strong").get_attribute("d")
    assert snapshot(runs) == before
    append(runs / "first", *(row(step) for step in range(61, 81)), bound(80, 1.234))
    look_again(page, "document.querySelector('#facts b').textContent.startsWith('1.234')")
    assert page.title() == "80 % · 1.234 · first"
    assert bounds.locator("circle.dot").count() == 7
    assert loss.locator("path.line.strong").get_attribute("d") != line
    (runs / "second").rename(runs.parent / "elsewhere")  # a run that is removed meanwhile
    look_again(page, "document.querySelectorAll('#runs li').length === 1")
    make_run(runs / "third", [row(1)])
    look_again(page, "document.querySelectorAll('#runs li').length === 2")


def test_samples_by_step_are_text(visit: Callable[..., Any], runs: Path) -> None:
    page = visit()
    samples = page.locator("#samples pre")
    assert samples.all_inner_texts()[0] == f"first writes at 60\n{HOSTILE}\u241b[2J"
    assert "second writes at 60" in samples.nth(1).inner_text()
    slider = page.locator("#sample-step")
    slider.focus()
    page.keyboard.press("Home")
    wait_until(page, "document.querySelector('#samples pre').textContent.includes('at 20')")
    assert slider.get_attribute("aria-valuetext") == "step 20"
    assert "second writes at 20" in samples.nth(1).inner_text()
    (runs / "first" / "samples" / "step-00000080.txt").write_text("newer")
    look_again(page, "document.querySelector('#sample-step').max === '3'")
    assert "at 20" in samples.first.inner_text()  # an older one was chosen, and stays
    page.evaluate("kept = document.querySelector('#samples pre')")
    append(runs / "first", row(61))
    look_again(page, "document.querySelector('#facts').textContent.includes('61')")
    assert page.evaluate("kept.isConnected")  # what is selected in it stays selected
    page.locator("#sample-step").focus()
    page.keyboard.press("End")
    wait_until(page, "document.querySelector('#samples pre').textContent === 'newer'")
    assert page.locator("img").count() == 0


def test_runs_next_to_each_other(visit: Callable[..., Any]) -> None:
    page = visit()
    settings = page.locator("#settings")
    assert [line.split("\t") for line in settings.inner_text().splitlines()] == [
        ["setting", "first", "second"], ["steps", "100", "60"], ["seed", "5", "6"],
    ]  # fmt: skip
    page.get_by_label("only what differs").uncheck()
    assert "learning_rate\t0.003\t0.003" in settings.inner_text()
    page.get_by_label("Draw second").uncheck()
    wait_until(page, "document.querySelectorAll('#settings thead th').length === 2")
    loss = chart(page, "Training loss")
    assert loss.locator("path.line").count() == 1
    page.get_by_role("button", name="second").click()
    wait_until(page, "document.querySelector('#focus-name').textContent === 'second'")
    assert loss.locator("path.line").count() == 2
    assert page.locator("#focus-state").inner_text() == "finished"


def test_a_link_shows_the_same(visit: Callable[..., Any]) -> None:
    page = visit()
    page.get_by_label("Draw second").uncheck()
    page.locator("#place").select_option("seconds")
    wait_until(page, "location.hash.includes('over=seconds')")
    again = visit(page.evaluate("location.hash"))
    assert not again.get_by_label("Draw second").is_checked()
    assert again.locator("#place").input_value() == "seconds"
    assert "6 s" in chart(again, "Training loss").locator("svg").text_content()


def test_a_part_can_be_looked_at_closer(visit: Callable[..., Any]) -> None:
    page = visit()
    area = chart(page, "Training loss").locator(".plot-area")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=3)
    page.mouse.up()
    page.wait_for_selector("#unzoom:visible")
    assert 20 < float(area.get_attribute("aria-valuemin")) < 40 < float(area.get_attribute("aria-valuemax")) < 55
    page.locator("#unzoom").click()
    wait_until(page, "document.querySelector('#unzoom').hidden")
    assert area.get_attribute("aria-valuemin") == "0"


def test_values_are_read_by_keyboard_and_as_a_table(visit: Callable[..., Any]) -> None:
    page = visit()
    bounds = chart(page, "Bound on validation text")
    area = bounds.locator(".plot-area")
    area.focus()
    page.keyboard.press("Home")
    said = area.get_attribute("aria-valuetext")
    assert said == "step 20: first 2.600 ± 0.02, second 3.100 ± 0.02"
    page.keyboard.press("ArrowRight")
    assert area.get_attribute("aria-valuetext").startswith("step 40: first 2.200")
    bounds.locator("summary").click()
    assert bounds.locator("table").inner_text().splitlines()[2].split("\t") == ["20", "2.600 ± 0.02", "3.100 ± 0.02"]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing(visit: Callable[..., Any], width: int, scheme: str, runs: Path) -> None:
    append(runs / "first", row(61, spike_from=1.0, skipped_steps=2))
    (runs / "first" / "trouble.json").write_text('{"step": 61, "loss": NaN, "gradient_norms": {"a": Infinity}}')
    page = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("summary").first.click()
    assert accessibility_problems(page) == []


def test_a_server_that_stops_is_said_and_found_again(opened: Any, address: str) -> None:
    watched = Watched(opened)
    page = watched.page
    page.goto(address)
    page.wait_for_selector("#facts dt")
    page.route("**/api/**", lambda route: route.abort())
    look_again(page, "document.querySelector('#connection').textContent.startsWith('Connection lost')")
    assert page.locator("#facts dt").count() > 0
    page.unroute("**/api/**")
    look_again(page, "document.querySelector('#connection').textContent === '1 run trains'")
    assert all("Failed to load resource" in complaint for complaint in watched.complaints)
    watched.close()


def test_no_run_yet(opened: Any, tmp_path: Path, address: str, runs: Path) -> None:
    for folder in list(runs.iterdir()):
        folder.rename(tmp_path / folder.name)
    watched = Watched(opened)
    watched.page.goto(address)
    watched.page.wait_for_selector("#empty:visible")
    make_run(runs / "late", [row(1)])
    look_again(watched.page, "document.querySelectorAll('#facts dt').length > 0")
    watched.check()
    watched.close()
