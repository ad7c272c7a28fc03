/** One text with its setting: it is written, looked at, changed by hand and filled in anew. */

import { diffuse, expectations, tokenize } from "./api.js";
import { icon, make, mountPlayer, visible } from "./player.js";
import { SettingsForm } from "./settings.js";

const FILL_DELAY = 800; // milliseconds after the last change by hand, in which another one may follow
const MOST_UNDONE = 100;

const ICONS = {
  undo: "M8 4 3.5 8.5 8 13v-3h4a2.75 2.75 0 0 1 0 5.5H7v1.5h5a4.25 4.25 0 0 0 0-8.5H8z",
  rewrite: "M10 4a6 6 0 0 1 4.6 2.15V4H16v5h-5V7.5h2.8A4.5 4.5 0 1 0 14.4 11H16a6 6 0 1 1-6-7z",
  copy: "M7 3h9v11h-3v3H4V6h3zm1.5 3H13v6.5h1.5v-8h-6zM5.5 7.5v8h6v-8z",
};

/**
 * A pane; `page` has model, isWords(), say(sentence), fail(sentence), changed(pane) and settingChanged(pane).
 */
export class Pane {
  constructor(page, name) {
    this.page = page;
    this.name = name;
    this.form = new SettingsForm(page.model, name, () => page.settingChanged(this));
    this.request = null; // the last one, which reproduces the text
    this.given = new Set(); // places of the prompt or template
    this.pinned = new Set();
    this.past = []; // states that can be brought back
    this.isTouched = false; // whether the text was changed by hand
    this.turn = 0; // how often it was filled in anew, each time with another seed
    this.running = null;
    this.build();
  }

  build() {
    const holder = make("div", { class: "pane-text" });
    this.facts = make("dl", { class: "facts" });
    this.note = make("p", { class: "pane-note" });
    this.undoButton = this.action("Undo", "Undo the last change (Ctrl+Z)", ICONS.undo, () => this.undo());
    this.rewriteButton = this.action("Rewrite", "Write everything anew that is neither given nor pinned", ICONS.rewrite, () => this.rewrite());
    this.copyButton = this.action("Copy", "Copy the text", ICONS.copy, () => this.copy());
    this.summary = make("span", { class: "pane-summary" });
    this.element = make("section", { class: "pane", "aria-label": `Text ${this.name}` },
      make("h2", { class: "pane-head" }, make("span", { class: "pane-letter", text: this.name }), " ", this.summary),
      holder,
      make("div", { class: "pane-foot" }, this.facts,
        make("div", { class: "pane-actions" }, this.undoButton, this.rewriteButton, this.copyButton)),
      this.note,
      this.form.element);
    this.element.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.target.closest("input")) {
        event.preventDefault();
        this.undo();
      }
    });
    this.player = mountPlayer(holder, [], {
      label: `Text ${this.name}: arrow keys move, typing writes, Enter masks, Shift and Enter pins`,
      quiet: true,
      oncommand: () => this.page.moved(this),
      peek: (tokens) => expectations(tokens, this.page.model),
      edit: {
        mask: (places) => this.mask(places),
        pin: (places) => this.pin(places),
        force: (place, text) => this.force(place, text),
        choose: (place, token) => this.choose(place, token),
        isPinned: (place) => this.pinned.has(place),
        wholeWords: () => this.page.isWords(),
      },
    });
    this.showState();
  }

  action(text, title, path, onclick) {
    return make("button", { type: "button", class: "quiet-button", title, onclick }, icon(path), make("span", { text }));
  }

  destroy() {
    this.stop();
    this.player.destroy();
    this.element.remove();
  }

  // -- writing

  /** Write a text from a prompt, a template, or a canvas of a link. */
  async write(request) {
    this.remember();
    this.player.closeCard();
    this.turn = 0;
    this.isTouched = false;
    this.pinned = new Set(request.pinned ?? []);
    this.given = new Set(request.given ?? []);
    await this.run(request, null);
  }

  /** Run a request; `kept` are the tokens of its canvas with what is known of them. Whether it came to its end. */
  async run(request, kept) {
    this.stop();
    this.request = request;
    const running = (this.running = new AbortController());
    this.clearFacts();
    this.showState();
    this.page.changed(this);
    try {
      const { given, pinned, ...asked } = request;
      for await (const event of diffuse(asked, running.signal)) {
        if (this.running !== running) return false;
        this.take(event, kept);
      }
      if (!this.player.tape.isOver) throw new Error("The server stopped before the text was finished: write it again.");
      return true;
    } catch (error) {
      if (error.name !== "AbortError") this.page.fail(error.message);
      return false;
    } finally {
      if (this.running === running) this.running = null;
      this.page.changed(this);
      this.showState();
    }
  }

  take(event, kept) {
    if (event.type === "start") {
      const tokens = kept ?? event.tokens;
      if (!kept && !this.request.tokens) {
        this.given = new Set(event.tokens.flatMap((token, place) => (token ? [place] : [])));
      }
      this.request = { ...this.request, settings: event.settings };
      this.fingerprint = event.fingerprint;
      this.player.add({ ...event, tokens, given: this.givenList(tokens.length) });
      if (!this.prefersStill()) this.player.play();
      this.page.started(this);
      return;
    }
    this.player.add(event);
    if (event.type !== "end") return;
    this.showFacts(event);
    if (this.prefersStill()) this.player.seek(Infinity);
    this.page.finished(this, event);
  }

  prefersStill() {
    return window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  }

  givenList(size) {
    return Array.from({ length: size }, (_, place) => this.given.has(place));
  }

  /** Close the request, and forget changes that were not filled in yet. */
  stop() {
    clearTimeout(this.waiting);
    this.isWaiting = false;
    this.running?.abort();
    this.running = null;
  }

  // -- changes by hand

  mask(places) {
    const tokens = this.player.tokens();
    const masked = places.filter((place) => tokens[place] && !this.pinned.has(place));
    if (!masked.length) {
      if (places.some((place) => this.pinned.has(place))) this.page.say("This is pinned: shift-click releases it.");
      return;
    }
    this.change((canvas) => {
      for (const place of masked) {
        canvas[place] = null;
        this.given.delete(place);
      }
    });
  }

  pin(places) {
    const tokens = this.player.tokens();
    const written = places.filter((place) => tokens[place]);
    if (!written.length) return;
    this.remember();
    this.isTouched = true;
    const isRelease = written.every((place) => this.pinned.has(place));
    for (const place of written) {
      if (isRelease) this.pinned.delete(place);
      else this.pinned.add(place);
    }
    this.player.refresh();
    this.page.say(isRelease ? "Released." : "Pinned: it stays when the rest is written anew.");
    this.showState();
  }

  /** Write a text at a place by hand, whatever the model thinks of it; then the rest is written anew. */
  async force(place, text) {
    let tokens;
    try {
      tokens = await this.tokensOf(text);
    } catch (error) {
      this.page.fail(error.message);
      return;
    }
    const size = this.player.tape.size;
    tokens = tokens.slice(0, size - place);
    if (!tokens.length) return;
    this.change((canvas) => {
      tokens.forEach((token, k) => this.put(canvas, place + k, token));
    }, true);
    this.player.focus(place + tokens.length, false);
  }

  /** Take another token at a place: what was revealed before it stays, what came later is written anew. */
  choose(place, token) {
    const born = this.player.tokens()[place]?.born ?? 0;
    this.change((canvas) => {
      canvas.forEach((other, k) => {
        if (born && other && other.born >= born && !this.isHeld(k)) canvas[k] = null;
      });
      this.put(canvas, place, token);
    }, born === 0 && this.player.tokens()[place] !== null);
  }

  put(canvas, place, { id, text }) {
    canvas[place] = { id, text, born: 0, forced: true };
    this.pinned.add(place);
    this.given.delete(place);
  }

  async tokensOf(text) {
    const known = this.page.model.tokens;
    const typed = text.replaceAll("↵", "\n");
    if (!known || !this.page.isCharacters) return tokenize(typed);
    return [...typed].map((character) => {
      if (!(character in known)) throw new Error(`The model's vocabulary does not have “${visible(character)}”.`);
      return { id: known[character], text: character };
    });
  }

  isHeld(place) {
    return this.given.has(place) || this.pinned.has(place);
  }

  /** Change the canvas that is shown, and let the model fill it in shortly after; with `isRewrite`, all that is not held. */
  change(edit, isRewrite = false) {
    this.remember();
    this.isTouched = true;
    const wasWaiting = this.isWaiting;
    this.stop();
    const canvas = this.player.tokens();
    edit(canvas);
    this.showCanvas(canvas);
    this.rewrites = isRewrite || (wasWaiting && this.rewrites);
    this.isWaiting = true;
    this.waiting = setTimeout(() => this.fill(this.rewrites), FILL_DELAY);
    this.showState();
  }

  showCanvas(canvas) {
    const { seed, settings, model, fingerprint } = this.player.tape.start;
    const tokens = canvas.map((token) => token && { ...token, born: 0 });
    const start = { type: "start", seed, settings, model, fingerprint, limit: 0 };
    this.player.load([{ ...start, tokens, given: this.givenList(tokens.length) }]);
    this.clearFacts();
  }

  /** Write everything anew that is neither given nor pinned. */
  rewrite() {
    if (!this.player.tape.start) return;
    this.remember();
    this.isTouched = true;
    this.fill(true);
  }

  async fill(isRewrite) {
    this.stop();
    const canvas = this.player.tokens().map((token, place) => (isRewrite && !this.isHeld(place) ? null : token));
    const masks = canvas.filter((token) => token === null).length;
    if (!masks) {
      this.page.say("Nothing is masked: click a word first.");
      this.showState();
      return;
    }
    this.turn += 1;
    const kept = canvas.map((token) => token && { ...token, born: 0 });
    await this.run({
      tokens: canvas.map((token) => token && token.id),
      seed: this.page.seed() + this.turn,
      settings: this.form.settings(masks),
      given: new Set(this.given),
      pinned: new Set(this.pinned),
    }, kept);
  }

  // -- undo

  remember() {
    const { tape, step } = this.player;
    if (!tape.start) return;
    this.past.push({ events: tape.events, step, given: new Set(this.given), pinned: new Set(this.pinned),
      request: this.request, isTouched: this.isTouched });
    if (this.past.length > MOST_UNDONE) this.past.shift();
  }

  undo() {
    const state = this.past.pop();
    if (!state) return;
    this.stop();
    ({ given: this.given, pinned: this.pinned, request: this.request, isTouched: this.isTouched } = state);
    this.player.load(state.events);
    this.player.seek(state.step);
    this.clearFacts();
    if (this.player.tape.end) this.showFacts(this.player.tape.end);
    this.page.say("Undone.");
    this.page.changed(this);
    this.showState();
  }

  // -- what is shown around the text

  showState() {
    this.summary.textContent = this.form.summary();
    this.undoButton.disabled = this.past.length === 0;
    this.rewriteButton.disabled = this.copyButton.disabled = !this.player.tape.start;
  }

  /** Show that cost and likelihood are not known yet. */
  clearFacts() {
    this.facts.replaceChildren(fact("Evaluations", "–"), fact("Seconds", "–"), fact("Nats, exact", "–"));
    this.note.textContent = "";
  }

  showFacts({ evaluations, seconds, nats, tokens_written: written }) {
    this.facts.replaceChildren(
      fact("Evaluations", evaluations),
      fact("Seconds", seconds < 9.995 ? seconds.toFixed(2) : seconds.toFixed(0)),
      nats === null ? fact("Nats", "none", " no likelihood")
        : fact("Nats, exact", nats.toFixed(1), written ? ` ${(nats / written).toFixed(2)} per token` : ""));
    this.note.textContent = nats === null ? whyNone(this.request.settings)
      : this.request.tokens ? `The likelihood is that of the ${written} tokens that were filled in, given the others.` : "";
  }

  async copy() {
    const text = this.player.tokens().map((token) => (token ? token.text : "░")).join("");
    await this.page.copy(text, "The text is copied.");
  }
}

function fact(name, value, more = "") {
  return make("div", {}, make("dt", { text: name }),
    make("dd", {}, make("span", { class: "fact-value", text: value }), make("span", { class: "fact-more", text: more })));
}

/** Why a text has no exact likelihood. */
function whyNone(settings) {
  if (settings.stable_entropy) return "No likelihood: filling in the rest at once looks at what is likeliest there.";
  if (settings.policy === null && settings.remasking === "low_confidence") {
    return "No likelihood: LLaDA's choice of what stays looks at the tokens that were drawn.";
  }
  return "No likelihood: tokens that are masked again have been drawn and thrown away.";
}
