/** The page: what to write, one or two panes, what is common to them, and links. */

import { fetchModel, useKey } from "./api.js";
import { PAIRS, examplesFor, readTemplate } from "./examples.js";
import { Pane } from "./pane.js";
import { make, visible } from "./player.js";
import { decodeLink, encodeLink } from "./share.js";

const $ = (id) => document.getElementById(id);
const FIRST = { policy: "random", temperature: 0.7, per_step: 1, block_length: null, order: null }; // shows the idea best
const LARGEST_SEED = 1_000_000;
const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

class Page {
  constructor(model) {
    this.model = model;
    this.isCharacters = model.tokens !== null && Object.keys(model.tokens).every((text) => [...text].length <= 1);
    this.panes = [new Pane(this, "A")];
    this.panes[0].form.set(model.is_causal ? {} : { ...model.default_settings, ...FIRST, steps: null });
    $("panes").append(this.panes[0].element);
    this.describe();
    this.offer();
    this.listen();
    this.layOut();
  }

  describe() {
    const { name, parameters, max_length: length, is_causal: isCausal } = this.model;
    const kind = isCausal ? "autoregressive" : "diffusion";
    $("model").textContent = name;
    $("model-facts").textContent = `${kind}, ${short(parameters)} parameters, up to ${length} tokens`;
    document.title = `${name}: playground`;
    $("unit-name").textContent = this.isCharacters ? "characters" : "tokens";
    $("length").max = length;
    $("length").value = Math.min(Number($("length").value), length - 16 > 0 ? length - 16 : length);
    $("words").parentElement.hidden = !this.isCharacters;
  }

  /** Put the examples and the pairs in their places. */
  offer() {
    const examples = examplesFor(this.model, this.isCharacters);
    const chip = (text, onclick, attributes = {}) => make("button", { type: "button", class: "chip", text, onclick, ...attributes });
    $("examples").append(...examples.map((example) => chip(example.name, () => {
      this.setPrompt(example.text);
      this.write();
    })));
    $("prompt").value = examples[0]?.text ?? "";
    const usable = PAIRS.filter((pair) => [pair.a, pair.b].every(({ policy }) => !policy || this.model.policies.includes(policy)));
    this.pairs = this.model.is_causal ? usable.filter((pair) => pair.name.startsWith("temperature")) : usable;
    for (const [k, pair] of this.pairs.entries()) $("compare").append(make("option", { value: k, text: pair.name }));
  }

  listen() {
    $("compose").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isRunning()) this.cancel();
      else this.write();
    });
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.write();
    });
    $("prompt").addEventListener("input", () => this.check());
    $("length").addEventListener("input", () => this.check());
    $("gap").addEventListener("click", () => this.insertGap());
    $("dice").addEventListener("click", () => {
      $("seed").value = Math.floor(Math.random() * LARGEST_SEED);
      this.write();
    });
    $("compare").addEventListener("change", () => this.compare($("compare").value));
    for (const input of document.querySelectorAll("input[name=colour]")) {
      input.addEventListener("change", () => this.showColour());
    }
    $("share").addEventListener("click", () => this.share());
    window.addEventListener("hashchange", () => this.open());
    $("theme").addEventListener("click", () => this.nextTheme());
  }

  // -- what is to be written

  setPrompt(text) {
    $("prompt").value = text;
    this.check();
  }

  seed() {
    const seed = Math.floor(Number($("seed").value));
    return Number.isSafeInteger(seed) && seed >= 0 ? seed : 0;
  }

  insertGap() {
    const field = $("prompt");
    field.setRangeText("<MASK*20>", field.selectionStart, field.selectionEnd, "end");
    field.focus();
    this.check();
  }

  /** Say what is wrong with the prompt, if it can be seen here; whether it may be sent. */
  check() {
    const { characters, masks, hasGap } = readTemplate($("prompt").value);
    const room = this.model.max_length - (this.isCharacters ? characters.length : 0);
    $("length").disabled = hasGap;
    $("length").max = Math.max(1, room);
    $("length-value").textContent = hasGap ? masks : $("length").value;
    const problem = this.problemWith(characters, hasGap ? masks : 1, room);
    $("prompt-problem").textContent = problem;
    $("prompt").setAttribute("aria-invalid", problem !== "");
    return problem === "";
  }

  problemWith(characters, masks, room) {
    if (!this.isCharacters) return "";
    const unknown = [...new Set(characters.filter((one) => !(one in this.model.tokens)))];
    if (unknown.length) return `The model's vocabulary does not have ${unknown.map((one) => `“${visible(one)}”`).join(", ")}.`;
    return masks > room ? `This is longer than the model's ${this.model.max_length} characters: shorten it.` : "";
  }

  /** Write the text in these panes, all of them at first, with the same seed. */
  write(panes = this.panes) {
    if (!this.check()) {
      $("prompt").focus();
      return;
    }
    this.clearMessages();
    const text = $("prompt").value;
    const { masks, hasGap } = readTemplate(text);
    const length = Number($("length").value);
    const what = hasGap ? { template: text } : { prompt: text, length };
    for (const pane of panes) {
      pane.write({ ...what, seed: this.seed(), settings: pane.form.settings(hasGap ? masks : length) });
    }
  }

  isRunning() {
    return this.panes.some((pane) => pane.running);
  }

  cancel() {
    for (const pane of this.panes) pane.stop();
    this.say("Stopped.");
    this.changed();
  }

  // -- what the panes report

  isWords() {
    return this.isCharacters && $("words").checked;
  }

  /** A pane has begun to run, or has stopped. */
  changed() {
    const isRunning = this.isRunning();
    $("write").textContent = isRunning ? "Stop" : "Write";
    document.body.classList.toggle("is-running", isRunning);
  }

  started() {
    this.shareScale();
  }

  finished(pane, { evaluations, nats, tokens_written: written }) {
    this.shareScale();
    if (this.isRunning() && this.panes.some((other) => other !== pane && other.running)) return;
    const likelihood = nats === null ? "no likelihood" : `${nats.toFixed(1)} nats`;
    this.say(this.comparison() ?? `${written} tokens in ${evaluations} evaluations, ${likelihood}.`);
  }

  /** Write the text again with the changed setting, unless that would undo changes by hand. */
  settingChanged(pane) {
    if (this.panes.length > 1) $("compare").value = "own";
    if (pane.isTouched) this.say("Press Write, or Rewrite, to use the new setting.");
    else this.write([pane]);
  }

  /** Let strips that are next to each other have one scale. */
  shareScale() {
    const longest = Math.max(...this.panes.map((pane) => pane.player.extent()));
    for (const { player } of this.panes) player.setDomain(this.panes.length > 1 ? longest : null);
  }

  /** The reader has played, paused or sought in a pane: the other one follows, at the same evaluation. */
  moved(pane) {
    for (const other of this.panes) {
      if (other === pane) continue;
      const { player } = other;
      player.pause();
      player.setSpeed(pane.player.speedFactor);
      player.seekEvaluations(pane.player.evaluations);
      if (pane.player.isPlaying && (player.step < player.steps || !player.tape.isOver)) player.play();
    }
  }

  // -- two settings

  compare(choice) {
    const pair = choice === "own" ? { a: {}, b: {} } : this.pairs[choice];
    if (!pair) {
      while (this.panes.length > 1) this.panes.pop().destroy();
      this.layOut();
      this.changed();
      return;
    }
    const shown = this.panes[0].form.value();
    this.addPane();
    this.panes[0].form.set({ ...shown, ...pair.a });
    this.panes[1].form.set({ ...shown, ...pair.a, ...pair.b });
    this.layOut();
    this.write();
  }

  addPane() {
    if (this.panes.length > 1) return;
    this.panes.push(new Pane(this, "B"));
    $("panes").append(this.panes[1].element);
    this.panes[1].player.setSpeed(this.panes[0].player.speedFactor);
    this.showColour();
  }

  layOut() {
    const isPair = this.panes.length > 1;
    document.body.classList.toggle("is-pair", isPair);
    if (!isPair) $("compare").value = "";
    this.shareScale();
  }

  /** How the two texts differ in cost, as a sentence; null unless both are there. */
  comparison() {
    const ends = this.panes.map((pane) => pane.player.tape.end);
    if (ends.length < 2 || ends.includes(null)) return null;
    const [a, b] = ends.map((end) => end.evaluations);
    const [fewer, ratio] = a > b ? ["B", a / b] : ["A", b / a];
    const cost = a === b ? "Both took the same number of evaluations." : `${fewer} took ${ratio.toFixed(1)} times fewer evaluations.`;
    return `${cost} Nats are those of each text under its own order, at temperature 1.`;
  }

  showColour() {
    const colour = document.querySelector("input[name=colour]:checked").value;
    for (const { player } of this.panes) player.setColour(colour);
    for (const legend of document.querySelectorAll("[data-legend]")) legend.hidden = legend.dataset.legend !== colour;
  }

  // -- links

  async share() {
    const requests = this.panes.map((pane) => pane.request);
    if (requests.some((request) => request === null)) return;
    const fragment = encodeLink(this.model.fingerprint, requests);
    history.replaceState(null, "", `#${fragment}`);
    await this.copy(location.href, "The link is copied: it writes the same text again.");
  }

  /** Write what the link in the address says; whether there was one. */
  open() {
    let link;
    try {
      link = decodeLink(location.hash);
    } catch (error) {
      this.fail(error.message);
      return false;
    }
    if (!link) return false;
    this.clearMessages();
    const { requests } = link;
    if (link.model !== this.model.fingerprint) {
      $("notice").textContent = "This link was made with another model, so the text is not the one that was shared.";
      $("notice").hidden = false;
    }
    if (requests.length > 1) this.addPane();
    while (this.panes.length > requests.length) this.panes.pop().destroy();
    this.layOut();
    if (requests.length > 1) $("compare").value = "own";
    this.fillIn(requests[0]);
    requests.forEach((request, k) => {
      this.panes[k].form.set(request.settings, masksOf(request));
      this.panes[k].write(request);
    });
    return true;
  }

  fillIn(request) {
    $("seed").value = request.seed;
    if (request.tokens) return;
    if (request.length) $("length").value = request.length;
    this.setPrompt(request.template ?? request.prompt);
  }

  // -- messages

  say(sentence) {
    $("status").textContent = sentence;
  }

  fail(sentence) {
    $("error").textContent = sentence;
    $("error").hidden = false;
  }

  clearMessages() {
    $("error").hidden = $("notice").hidden = true;
    this.say("");
  }

  async copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
      this.say(done);
    } catch {
      this.say("The browser does not let the page copy: the link is in the address bar, the text can be selected.");
    }
  }

  nextTheme() {
    const names = Object.keys(THEMES);
    const now = document.documentElement.dataset.theme ?? "auto";
    setTheme(names[(names.indexOf(now) + 1) % names.length]);
  }
}

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-label", THEMES[name]);
  $("theme").title = THEMES[name];
}

function masksOf(request) {
  if (request.tokens) return request.tokens.filter((id) => id === null).length;
  return request.length ?? readTemplate(request.template).masks;
}

function short(n) {
  for (const [size, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (n >= size) return `${(n / size).toPrecision(2)}${letter}`;
  return String(n);
}

/** Ask the server what it serves, for its key if it needs one, and write the first text. */
async function begin() {
  try {
    const page = new Page(await fetchModel());
    $("key-form").hidden = $("error").hidden = true;
    page.check();
    page.showColour();
    if (!page.open()) page.write();
  } catch (error) {
    const needsKey = error.status === 401;
    $("key-form").hidden = !needsKey;
    $("error").textContent = needsKey && !$("key").value ? "" : error.message;
    $("error").hidden = $("error").textContent === "";
    if (needsKey) $("key").focus();
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  begin();
});
setTheme("auto");
begin();
