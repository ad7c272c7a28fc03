"""The playground in a real browser, with a tiny random model behind it: what is seen is what the events say."""

import base64
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch

import llada
from llada.checkpoints.folder import make_predictor, read_checkpoint, save_weights
from llada.models import LLaDAConfig
from llada.serving.served import Served
from llada.tokenizers.char import CharTokenizer
from tests.support.browser import accessibility_problems, launched, page_in
from tests.support.servers import live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHARACTERS = "\n !\"&'(),-./01:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 40
PLAYER = Path(llada.__file__).parent / "serving" / "playground"
HOSTILE_NAME = "<img src=x onerror='window.hacked=1'>"
SCRIPT = "<script>window.hacked=1</script>"
HIDDEN = "()=>document.documentElement.scrollWidth - window.innerWidth"


def tiny_checkpoint(folder: Path, length: int, seed: int) -> Path:
    """A random network over `CHARACTERS`, whose predictions depend on what is visible."""
    tokenizer = CharTokenizer(CHARACTERS)
    config = LLaDAConfig(
        vocab_size=tokenizer.vocab_size, mask_token_id=tokenizer.mask_row, pad_token_id=0, eos_token_id=2,
        max_sequence_length=length, d_model=16, n_heads=2, n_layers=1, mlp_hidden_size=24,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(weight.shape, generator=generator) * 0.6
        for name, weight in make_predictor(config, tokenizer).network.state_dict().items()
    }
    folder.mkdir(parents=True)
    save_weights(folder, config, tokenizer, drawn)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of whose name a page must not make HTML."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / HOSTILE_NAME, LENGTH, seed=0)


@pytest.fixture(scope="module")
def model(folder: Path) -> llada.Model:
    return llada.load(folder)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a checkpoint; yields the address."""
    with live(Served.of(read_checkpoint(folder), str(folder))) as server:
        yield server.url


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


@pytest.fixture(scope="module")
def other_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of another model, which takes long texts."""
    with served(tiny_checkpoint(tmp_path_factory.mktemp("other") / "long", 2048, seed=1)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with launched() as opened:
        yield opened


class Playground:
    """The page as a reader sees it."""

    def __init__(self, page: "Page") -> None:
        self.page = page

    def tokens(self, pane: int = 0) -> list[str]:
        """What each place shows: a line break as its sign, a mask as a block."""
        return self.page.locator(".pane").nth(pane).locator(".token").evaluate_all(
            "all => all.map(one => one.classList.contains('is-masked') ? '█' : one.textContent)"
        )  # fmt: skip

    def text(self, pane: int = 0) -> str:
        return "".join(self.tokens(pane)).replace("↵", "\n")

    def masked(self) -> int:
        return self.page.locator(".token.is-masked").count()

    def places(self, kind: str) -> list[int]:
        return self.page.locator(f".token.{kind}").evaluate_all("all => all.map(one => Number(one.dataset.place))")

    def token(self, place: int, pane: int = 0) -> Any:
        return self.page.locator(".pane").nth(pane).locator(f'.token[data-place="{place}"]')

    def finished(self) -> None:
        """Wait until nothing runs and nothing is masked."""
        self.page.wait_for_function(
            "() => !document.body.classList.contains('is-running') && !document.querySelector('.token.is-masked')"
            " && document.querySelectorAll('.token').length > 0"
            " && ![...document.querySelectorAll('.fact-value')].some(one => one.textContent === '–')"
        )

    def write(self, prompt: str, length: int = 24, seed: int = 7) -> None:
        self.page.locator("#prompt").fill(prompt)
        self.page.locator("#length").fill(str(length))
        self.page.locator("#seed").fill(str(seed))
        self.page.locator("#write").click()

    def stop(self) -> None:
        """Stop what is being written, if anything is; looked at and clicked at once, as it may end in between."""
        self.page.evaluate(
            "() => { const it = document.querySelector('#write'); if (it.textContent === 'Stop') it.click() }"
        )

    def written(self, prompt: str, length: int = 24, seed: int = 7) -> str:
        if self.page.locator("#write").text_content() == "Stop":
            self.finished()
        self.write(prompt, length, seed)
        self.page.wait_for_function(f"() => document.querySelectorAll('.token').length % {len(prompt) + length} === 0")
        self.finished()
        return self.text()

    def facts(self, pane: int = 0) -> list[str]:
        return self.page.locator(".pane").nth(pane).locator("dd").all_text_contents()

    def card(self) -> tuple[list[str], list[str]]:
        """Return the tokens and the probabilities of the card that is open."""
        card = self.page.locator(".player-card:visible")
        card.locator(".player-row").first.wait_for()
        return card.locator(".player-row .player-glyph").all_text_contents(), card.locator(
            ".player-percent"
        ).all_text_contents()

    def say(self) -> str:
        return self.page.locator("#status").text_content() or ""


@pytest.fixture
def playground(browser: "Browser", address: str) -> Iterator[Playground]:
    """The page without motion, so that a text is shown when it is finished, and after its first text."""
    with opened(browser, address) as page:
        yield page


@contextmanager
def opened(browser: "Browser", address: str, fragment: str = "", **options: Any) -> Iterator[Playground]:
    how = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
    with page_in(browser, (address,), **how) as page:
        page.goto(f"{address}/{fragment}")
        playground = Playground(page)
        playground.finished()
        yield playground


def events_of(address: str, **body: Any) -> list[dict[str, Any]]:
    """Ask the server as the page does, without the page."""
    answer = httpx.post(f"{address}/v1/diffusion", json={"alternatives": 5, **body}, timeout=60)
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


FIRST_SETTINGS = {"policy": "random", "temperature": 0.7, "steps": None}


def revealed_in(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {token["at"]: token | {"step": event["step"]} for event in events[1:-1] for token in event["revealed"]}


def shown(text: str) -> str:
    """A token in a list, as the page shows it."""
    return text.replace("\n", "↵").replace(" ", "␣")


# -- watching ---------------------------------------------------------------------------------------------------------


def test_masks_fall_step_by_step(browser: "Browser", address: str) -> None:
    with page_in(browser, (address,), viewport={"width": 1280, "height": 900}) as page:
        page.goto(address)
        playground = Playground(page)
        page.locator(".token").first.wait_for()
        page.evaluate(
            """() => { window.counts = []; const look = () => {
                 const n = document.querySelectorAll('.token.is-masked').length;
                 const size = document.querySelectorAll('.token').length;
                 if (size === 27 && window.counts.at(-1) !== n) window.counts.push(n);
                 requestAnimationFrame(look); }; look(); }"""
        )
        playground.stop()
        playground.write("ab ", 24)
        page.wait_for_function("() => window.counts.at(-1) === 0")
        counts = page.evaluate("window.counts")
        assert counts == sorted(set(counts), reverse=True)
        assert len(counts) > 8  # a slow frame shows two steps at most, at normal speed
        assert counts[0] <= 24
        expected = events_of(address, prompt="ab ", length=24, seed=7, settings=FIRST_SETTINGS)[-1]
        assert playground.text() == expected["text"]


def test_facts_are_those_of_the_events(playground: Playground, address: str) -> None:
    playground.written("Hello ", 20)
    events = events_of(address, prompt="Hello ", length=20, seed=7, settings=FIRST_SETTINGS)
    nats = -sum(math.log(token["p"]) for token in revealed_in(events).values())
    evaluations, _, likelihood = playground.facts()
    assert evaluations == "20"
    assert likelihood == f"{nats:.1f} {nats / 20:.2f} per token"
    assert playground.places("is-given") == [0, 1, 2, 3, 4, 5]


def test_scrubber_goes_back_and_on(playground: Playground) -> None:
    text = playground.written("ab", 12)
    scrubber = playground.page.locator(".player-scrubber")
    scrubber.focus()
    playground.page.keyboard.press("Home")
    assert playground.masked() == 12
    for _ in range(3):
        playground.page.keyboard.press("ArrowRight")
    assert playground.masked() == 9
    assert scrubber.get_attribute("aria-valuetext") == "step 3 of 12, 9 masked"
    playground.page.get_by_role("button", name="One step back").click()
    assert playground.masked() == 10
    strip = playground.page.locator(".strip").bounding_box()
    assert strip is not None
    playground.page.mouse.click(strip["x"] + strip["width"] / 2, strip["y"] + 20)
    assert playground.masked() == 6
    playground.page.get_by_role("button", name="Play", exact=True).click()
    playground.finished()
    assert playground.text() == text


def test_card_has_what_was_likeliest_when_a_token_was_revealed(playground: Playground, address: str) -> None:
    playground.written("ab", 12)
    revealed = revealed_in(events_of(address, prompt="ab", length=12, seed=7, settings=FIRST_SETTINGS))
    playground.token(7).hover()
    glyphs, percents = playground.card()
    alternatives = revealed[7]["alternatives"]
    assert glyphs[:4] == [shown(one["text"]) for one in alternatives[:4]]
    assert glyphs[4] in (shown(alternatives[4]["text"]), shown(revealed[7]["text"]))
    assert percents[0] == f"{100 * alternatives[0]['p']:.0f}%"
    assert f"step {revealed[7]['step']}," in (playground.page.locator(".player-card-title").text_content() or "")


def test_card_of_a_mask_has_what_the_model_expects_now(playground: Playground, model: llada.Model) -> None:
    playground.written("ab", 12)
    playground.page.get_by_role("button", name="To the start").click()
    playground.token(5).hover()
    glyphs, _ = playground.card()
    logits = model.logits(model.ids("ab<MASK*12>"))[0, 5].clone()
    logits[list(model.tokenizer.forbidden_rows)] = -torch.inf
    likeliest = logits.topk(5).indices.tolist()
    assert glyphs == [shown(model.tokenizer.decode([id_])) for id_ in likeliest]


# -- touching ---------------------------------------------------------------------------------------------------------


def test_click_masks_again_and_the_rest_stays(playground: Playground) -> None:
    before = playground.written("ab", 20)
    playground.page.locator("#words").uncheck()
    playground.token(9).click()
    assert playground.text() == before[:9] + "█" + before[10:]
    playground.finished()
    after = playground.text()
    assert after[:9] + after[10:] == before[:9] + before[10:]
    assert playground.facts()[0] == "1"
    playground.page.get_by_role("button", name="Undo").click()
    assert playground.text() == before


def test_click_masks_a_whole_word_and_dragging_a_passage(playground: Playground) -> None:
    playground.written("one two three ", 6)
    playground.token(5).click()
    assert playground.text().startswith("one ███ three ")
    playground.finished()
    playground.written("one two three ", 6)
    playground.token(1).hover()
    playground.page.mouse.down()
    playground.token(5).hover()
    playground.token(6).hover()
    playground.page.mouse.up()
    assert playground.text().startswith("███████ three ")
    playground.finished()


def test_pinned_and_given_tokens_stay_when_the_rest_is_rewritten(playground: Playground) -> None:
    before = playground.written("ab", 20)
    playground.page.locator("#words").uncheck()
    for place in (5, 11):
        playground.token(place).click(modifiers=["Shift"])
    assert playground.places("is-pinned") == [5, 11]
    playground.token(5).click()
    assert playground.text() == before, "what is pinned is not masked"
    playground.page.get_by_role("button", name="Rewrite").click()
    playground.finished()
    after = playground.text()
    assert after != before
    assert [after[place] for place in (0, 1, 5, 11)] == [before[place] for place in (0, 1, 5, 11)]
    assert playground.facts()[0] == "18"
    playground.token(5).click(modifiers=["Shift"])
    assert playground.places("is-pinned") == [11]


def test_typing_forces_a_token_and_the_rest_is_written_anew(playground: Playground) -> None:
    before = playground.written("ab", 20)
    playground.token(8).focus()
    playground.page.keyboard.type("xyz")
    assert playground.text() == before[:8] + "xyz" + before[11:]
    assert playground.places("is-pinned") == [8, 9, 10]
    playground.page.wait_for_function("() => document.body.classList.contains('is-running')")
    playground.finished()
    after = playground.text()
    assert after[:2] == "ab"
    assert after[8:11] == "xyz"
    assert after != before[:8] + "xyz" + before[11:]
    playground.page.evaluate(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'é', bubbles: true}))"
    )
    playground.page.locator("#error").wait_for()
    assert "“é”" in (playground.page.locator("#error").text_content() or "")


def test_another_token_is_a_branch_of_the_text(playground: Playground, address: str) -> None:
    before = playground.written("ab", 20)
    revealed = revealed_in(events_of(address, prompt="ab", length=20, seed=7, settings=FIRST_SETTINGS))
    place = next(at for at, token in revealed.items() if token["step"] == 10)
    playground.token(place).hover()
    other = next(one for one in revealed[place]["alternatives"] if one["id"] != revealed[place]["id"])
    playground.page.locator(".player-row:not(.is-chosen)").first.click()
    earlier = [at for at, token in revealed.items() if token["step"] < 10]
    kept = {at: before[at] for at in (0, 1, *earlier)} | {place: other["text"]}
    assert playground.text() == "".join(kept.get(at, "█") for at in range(22))
    playground.finished()
    assert all(playground.text()[at] == text for at, text in kept.items())


def test_a_field_takes_what_cannot_be_typed_on_a_token(playground: Playground) -> None:
    playground.written("ab", 20)
    playground.token(4).hover()
    playground.page.get_by_role("button", name="Type…").click()
    playground.page.get_by_label("Write here").fill("Q Q")
    playground.page.keyboard.press("Enter")
    playground.finished()
    assert playground.text()[4:7] == "Q Q"


# -- two settings -----------------------------------------------------------------------------------------------------


def test_two_settings_with_one_seed(playground: Playground, address: str) -> None:
    playground.written("ab", 24)
    playground.page.locator("#compare").select_option(label="random order: 1 or 4 at once")
    playground.page.locator(".pane").nth(1).wait_for()
    playground.finished()
    one = events_of(address, prompt="ab", length=24, seed=7, settings=FIRST_SETTINGS)[-1]
    four = events_of(address, prompt="ab", length=24, seed=7, settings=FIRST_SETTINGS | {"steps": 6})[-1]
    assert [playground.text(0), playground.text(1)] == [one["text"], four["text"]]
    assert [playground.facts(pane)[0] for pane in (0, 1)] == ["24", "6"]
    assert playground.facts(1)[2].startswith(f"{four['nats']:.1f}")
    assert "B took 4.0 times fewer evaluations" in playground.say()
    playground.page.locator(".player-scrubber").first.focus()
    playground.page.keyboard.press("Home")
    for _ in range(4):
        playground.page.keyboard.press("ArrowRight")
    assert playground.masked() == 24 - 4 + 24 - 16, "both are shown after four evaluations"


def test_no_likelihood_is_said_with_its_reason(playground: Playground) -> None:
    playground.page.locator("#compare").select_option(label="LLaDA's remasking")
    playground.page.locator(".pane").nth(1).wait_for()
    playground.finished()
    assert playground.facts(1)[2] == "none no likelihood"
    assert "looks at the tokens that were drawn" in (playground.page.locator(".pane-note").nth(1).text_content() or "")
    playground.page.locator("#compare").select_option(label="nothing")
    assert playground.page.locator(".pane").count() == 1


# -- links ------------------------------------------------------------------------------------------------------------


def test_link_reproduces_the_text_in_a_fresh_context(
    browser: "Browser", address: str, other_address: str, playground: Playground
) -> None:
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.written("Hel\nlo ", 20, seed=12)
    playground.token(12).focus()
    playground.page.keyboard.type("xy")
    playground.page.wait_for_function("() => document.body.classList.contains('is-running')")
    playground.finished()
    playground.page.locator("#share").click()
    link = playground.page.evaluate("navigator.clipboard.readText()")
    assert link == playground.page.url
    fragment = link.removeprefix(f"{address}/")
    with opened(browser, address, fragment) as other:
        assert other.text() == playground.text()
        assert other.places("is-given") == playground.places("is-given")
        assert other.places("is-pinned") == playground.places("is-pinned")
        assert other.page.locator("#notice").is_hidden()
    with opened(browser, other_address, fragment) as other:
        assert "another model" in (other.page.locator("#notice").text_content() or "")


def test_link_has_both_settings(browser: "Browser", address: str, playground: Playground) -> None:
    playground.written("ab", 16)
    playground.page.locator("#compare").select_option(label="left to right")
    playground.page.locator(".pane").nth(1).wait_for()
    playground.finished()
    playground.page.locator("#share").click()
    with opened(browser, address, "#" + playground.page.url.split("#")[1]) as other:
        assert [other.text(0), other.text(1)] == [playground.text(0), playground.text(1)]


def canvas_link(tokens: list[str], given: list[str]) -> str:
    text = {"seed": 1, "settings": {}, "tokens": ".".join(tokens), "given": ".".join(given), "pinned": ""}
    return base64.urlsafe_b64encode(json.dumps({"v": 1, "model": "m", "texts": [text]}).encode()).decode().rstrip("=")


def test_broken_link_is_said_in_a_sentence(playground: Playground) -> None:
    crafted = [(["_99999"] * 5000, ["0"]), (["_60000"], ["0-60000"] * 5000)]  # short links to much work
    for fragment in ("x", "eyJ2IjoxfQ", "A" * 5000, *(canvas_link(*each) for each in crafted)):
        playground.page.evaluate("document.querySelector('#error').hidden = true")
        playground.page.evaluate(f"location.hash = {fragment!r}")
        playground.page.locator("#error").wait_for()
        assert "cannot be read" in (playground.page.locator("#error").text_content() or "")


# -- keyboard, widths, colours, readers -------------------------------------------------------------------------------


def test_keyboard_alone_suffices(playground: Playground) -> None:
    page = playground.page
    focused = "() => document.activeElement"

    def tab_to(condition: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"() => Boolean(document.activeElement.matches({condition!r}))"):
                return
        raise AssertionError(f"no way to {condition}")

    tab_to("#prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("ab ")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelector('.token').textContent === 'a'")
    playground.finished()
    tab_to(".token")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(f"({focused})().dataset.place") == "4"
    outline = page.evaluate(f"getComputedStyle(({focused})()).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    playground.card()
    before = playground.text()
    page.keyboard.press("Shift+Enter")
    assert 4 in playground.places("is-pinned")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Delete")
    assert playground.tokens()[4] == "█"
    playground.finished()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.type("k")
    assert playground.text().count("k") >= 1
    for _ in range(4):
        page.keyboard.press("Control+z")
    assert playground.text() == before
    page.keyboard.press("Control+End")
    playground.card()
    page.keyboard.press("Tab")
    assert page.evaluate(f"({focused})().closest('.player-card') !== null"), "the card is reached"
    page.keyboard.press("Escape")
    assert page.locator(".player-card:visible").count() == 0
    tab_to(".player-scrubber")
    page.keyboard.press("Home")
    assert playground.masked() > 0
    tab_to(".player-main")
    tab_to("summary, .settings-more")
    page.keyboard.press("Enter")
    assert page.get_by_text("Guidance by what is given").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_and_axe_finds_nothing(browser: "Browser", address: str, width: int, scheme: str) -> None:
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with opened(browser, address, **options) as playground:
        assert playground.page.evaluate(HIDDEN) <= 0
        playground.page.locator("#compare").select_option(label="LLaDA's remasking")
        playground.page.locator(".pane").nth(1).wait_for()
        playground.finished()
        playground.page.get_by_role("button", name="More options").first.click()
        playground.token(10).focus()
        playground.page.keyboard.press("ArrowRight")
        playground.card()
        assert playground.page.evaluate(HIDDEN) <= 0
        assert accessibility_problems(playground.page) == []
        playground.page.get_by_label("age", exact=True).check(force=True)
        assert accessibility_problems(playground.page) == []


def test_status_is_announced_politely(playground: Playground) -> None:
    playground.written("ab", 12)
    assert playground.page.locator("#status").get_attribute("role") == "status"
    assert playground.say().startswith("12 tokens in 12 evaluations")
    assert playground.token(0).get_attribute("aria-label") == "a, place 1, given"


# -- what can go wrong ------------------------------------------------------------------------------------------------


def test_unknown_characters_are_named_before_anything_is_sent(playground: Playground) -> None:
    before = playground.text()
    playground.write("naïve €")
    assert playground.page.locator("#prompt-problem").text_content() == "The model's vocabulary does not have “ï”, “€”."
    assert playground.text() == before


def test_a_text_that_is_too_long_is_named_before_anything_is_sent(playground: Playground) -> None:
    playground.page.locator("#prompt").fill("ab<MASK*900>")
    playground.page.locator("#write").click()
    assert "longer than the model's" in (playground.page.locator("#prompt-problem").text_content() or "")


def test_the_servers_sentence_is_shown(playground: Playground) -> None:
    playground.page.get_by_role("button", name="More options").click()
    playground.page.get_by_label("Penalty for repetition").fill("0")
    playground.page.keyboard.press("Enter")
    playground.page.locator("#error").wait_for()
    assert "repetition_penalty" in (playground.page.locator("#error").text_content() or "")


def test_cancel_closes_the_request(browser: "Browser", other_address: str) -> None:
    with opened(browser, other_address) as playground:
        page = playground.page
        page.locator("#length").fill("2000")
        page.locator("#write").click()
        page.wait_for_function("() => document.querySelectorAll('.token.is-masked').length > 0")
        with page.expect_event("requestfailed") as failed:
            page.locator("#write").click()
        assert failed.value.url.endswith("/v1/diffusion")
        assert page.locator("#write").text_content() == "Write"
        assert page.locator("#status").text_content() == "Stopped."
        assert page.locator(".token.is-masked").count() > 0


def test_script_is_never_executed(playground: Playground) -> None:
    page = playground.page
    assert page.locator("#model").text_content() == HOSTILE_NAME
    prompt = SCRIPT.replace("window.", "")
    playground.written(prompt, 8)
    assert playground.text().startswith(prompt)
    page.evaluate(
        """async (script) => {
             const { mountPlayer } = await import('/playground/player.js');
             const token = { id: 1, text: script, p: 0.5 };
             const events = [
               { type: 'start', tokens: [token, null], given: [true, false], limit: 1 },
               { type: 'step', step: 1, evaluations: 1, seconds: 0, remasked: [], entropy: 1, open: 0,
                 revealed: [{ at: 1, ...token, alternatives: [token] }] }];
             const place = document.createElement('div');
             place.id = 'hostile';
             document.querySelector('main').prepend(place);
             mountPlayer(place, events);
           }""",
        SCRIPT + HOSTILE_NAME,
    )
    page.locator("#hostile .token").nth(1).hover()
    page.locator("#hostile .player-row").wait_for()
    assert page.locator("#hostile .token").nth(1).text_content() == SCRIPT + HOSTILE_NAME
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert page.evaluate("typeof window.hacked") == "undefined"


def test_player_works_in_a_file_without_a_server(browser: "Browser", address: str, tmp_path: Path) -> None:
    events = events_of(address, prompt="ab", length=12, seed=7, settings=FIRST_SETTINGS)
    style, script = ((PLAYER / name).read_text(encoding="utf-8") for name in ("player.css", "player.js"))
    film = tmp_path / "film.html"
    film.write_text(
        f"<!doctype html><title>film</title><style>{style}</style><div id=film></div><script type=module>{script}\n"
        f"mountPlayer(document.getElementById('film'), {json.dumps(events)}, {{ step: 5 }});</script>",
        encoding="utf-8",
    )
    with page_in(browser, ("file:",), viewport={"width": 640, "height": 480}) as page:
        page.goto(film.as_uri())
        assert page.locator(".token.is-masked").count() == 7
        page.locator(".token.is-masked").first.hover()
        page.locator(".player-card").wait_for()
        assert "masked until step" in (page.locator(".player-card").text_content() or "")
        page.mouse.move(1, 1)
        page.get_by_role("button", name="One step on").click()
        assert page.locator(".token.is-masked").count() == 6
        assert page.locator(".player-action").count() == 0
