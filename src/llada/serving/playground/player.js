/**
 * A player of a text that is un-masked: its tokens, a scrubber over the steps, a strip with the entropy of each step,
 * and, for every token, what else could have stood there.
 *
 *     const player = mountPlayer(element, events, { autoplay: true });
 *
 * It reads the list of diffusion events ("start", "step", "end", "error") and needs neither a server nor another file,
 * so that a self-contained page can hold it inline, next to player.css. Whatever comes from a model is written as text,
 * never as HTML.
 */

export const SPEEDS = [
  [0.25, "¼ speed"],
  [0.5, "½ speed"],
  [1, "Normal speed"],
  [2, "2 × speed"],
  [4, "4 × speed"],
  [Infinity, "As it comes"],
];
export const COLOURS = ["confidence", "age", "none"];

const PLAY_SECONDS = 6; // for a whole text at normal speed, as far as these rates allow
const LEAST_RATE = 8; // evaluations a second
const MOST_RATE = 60;
const CONFIDENCE_BOUNDS = [0.1, 0.3, 0.6, 0.85]; // probabilities at which the tint becomes weaker
const AGE_BOUNDS = [0.01, 0.03, 0.07, 0.15]; // the same for age, in parts of all evaluations
const SHOW_DELAY = 120; // milliseconds that the pointer rests on a token before its card opens
const HIDE_DELAY = 180; // milliseconds in which the pointer can get from a token to its card
const PEEK_DELAY = 140; // milliseconds on a mask before the model is asked
const LETTER = /^[\p{L}\p{N}\p{M}'’-]+$/u;

// -- what the events say ----------------------------------------------------------------------------------------------

/** The recorded events of one text, and what the text is after any step. */
export class Tape {
  constructor(events = []) {
    this.start = null;
    this.steps = [];
    this.end = null;
    this.error = null;
    events.forEach((event) => this.add(event));
  }

  add(event) {
    if (event.type === "start") this.start = event;
    else if (event.type === "step") this.steps.push(event);
    else if (event.type === "end") this.end = event;
    else if (event.type === "error") this.error = event;
  }

  /** The events again, as a list. */
  get events() {
    return [this.start, ...this.steps, this.end, this.error].filter((event) => event !== null);
  }

  /** How many tokens the text has. */
  get size() {
    return this.start ? this.start.tokens.length : 0;
  }

  get isOver() {
    return this.end !== null || this.error !== null;
  }

  /** Evaluations of the network after a step; 0 is before the first. */
  evaluationsAt(step) {
    return step === 0 ? 0 : this.steps[step - 1].evaluations;
  }

  /** The last step that had needed at most so many evaluations. */
  stepAt(evaluations) {
    let step = this.steps.length;
    while (step > 0 && this.steps[step - 1].evaluations > evaluations) step -= 1;
    return step;
  }

  /** The token at each place after a step, null where it is masked; `born` is the step that revealed it. */
  tokensAt(step) {
    if (!this.start) return [];
    const tokens = this.start.tokens.map((token) => token && { born: 0, ...token });
    for (let k = 0; k < step; k += 1) {
      for (const place of this.steps[k].remasked ?? []) tokens[place] = null;
      for (const token of this.steps[k].revealed) tokens[token.at] = { ...token, born: k + 1 };
    }
    return tokens;
  }
}

/** The places of the word around a place: a run of tokens of letters, or the place alone. */
export function wordAround(tokens, place) {
  const isLetter = (k) => tokens[k] && LETTER.test(tokens[k].text);
  if (!isLetter(place)) return [place];
  let [first, last] = [place, place];
  while (isLetter(first - 1)) first -= 1;
  while (isLetter(last + 1)) last += 1;
  return range(first, last);
}

function range(first, last) {
  return Array.from({ length: last - first + 1 }, (_, k) => first + k);
}

// -- small helpers ----------------------------------------------------------------------------------------------------

/** Make an element; `on…` are listeners, `text` is its text, what is false or null is left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Make an icon of 20 x 20 from the path of an SVG. */
export function icon(path) {
  const svg = vector("svg", { viewBox: "0 0 20 20", "aria-hidden": "true", class: "icon" });
  svg.append(vector("path", { d: path }));
  return svg;
}

function vector(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A token as it is shown: line breaks, tabs and control characters as signs. */
export function visible(text) {
  if (text === "") return "∅";
  return text
    .replace(/\r/g, "␍")
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, "�");
}

/** A token as a screen reader says it. */
export function spoken(text) {
  const names = { " ": "space", "\n": "line break", "\t": "tab", "": "nothing", ".": "full stop", ",": "comma" };
  return names[text] ?? visible(text);
}

export function percent(p) {
  if (p >= 0.995) return p > 0.9995 ? "100%" : "99%";
  if (p < 0.01) return p < 0.0005 ? "0%" : "<1%";
  return `${Math.round(100 * p)}%`;
}

const bucket = (value, bounds) => bounds.findIndex((bound) => value < bound);

const ICONS = {
  play: "M6 3.5v13l11-6.5z",
  pause: "M5 3.5h3.5v13H5zM11.5 3.5H15v13h-3.5z",
  first: "M4 4h2v12H4zM16 4v12l-9-6z",
  back: "M13.5 3.5v13L5 10z",
  forward: "M6.5 3.5v13L15 10z",
};

// -- the player -------------------------------------------------------------------------------------------------------

/**
 * Put a player into an element.
 *
 * Options, all of which may be left out:
 * - label: name of the text, for screen readers;
 * - colour: "confidence" (of the revealed token), "age" or "none";
 * - speed: a factor of SPEEDS; autoplay: whether to play at once (never if the reader prefers reduced motion);
 * - step: the step that is shown first; the last one if neither it nor autoplay is given;
 * - loop: play again after a pause when the end is reached;
 * - onstep(step): called whenever another step is shown;
 * - oncommand(): called when the reader plays, pauses, seeks or changes the speed, after it has been done;
 * - peek(tokens): a promise of what the model expects where `tokens` has null, a Map of place to alternatives;
 * - edit: { mask(places), pin(places), force(place, text), choose(place, token), isPinned(place), wholeWords() }.
 *   Without it the text can be looked at, not changed.
 *
 * The returned object has load(events), add(event), play(), pause(), seek(step), step, steps, isPlaying, tokens(),
 * evaluations, seekEvaluations(n), setDomain(evaluations), setColour(name), setSpeed(factor), speedFactor, setTransport(isShown),
 * refresh(), focus(place), closeCard(), extent(), tape and destroy().
 */
export function mountPlayer(element, events = [], options = {}) {
  return new Player(element, events, options);
}

class Player {
  constructor(element, events, options) {
    this.options = { label: "Text", colour: "confidence", speed: 1, onstep: () => {}, oncommand: () => {}, ...options };
    this.places = []; // for each place: its element, the line break after it, and what is shown there
    this.cursor = 0; // in evaluations, and fractions of them
    this.step = 0;
    this.current = 0; // the place that the keyboard reaches
    this.domain = null;
    this.isPlaying = false;
    this.pointedAt = null;
    this.motion = window.matchMedia("(prefers-reduced-motion: reduce)");
    this.build(element);
    this.load(events);
    if (this.options.autoplay && !this.motion.matches) this.play();
    else this.seek(this.options.step ?? Infinity);
  }

  // -- its elements

  build(element) {
    this.canvas = make("div", { class: "player-text", role: "group", "aria-label": this.options.label });
    this.card = new Card(this);
    this.strip = new Strip((part) => this.seekEvaluations(part * this.extent(), true));
    this.scrubber = make("input", {
      class: "player-scrubber", type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Step",
      oninput: () => {
        this.pause();
        this.seek(Number(this.scrubber.value));
        this.options.oncommand();
      },
    });
    this.timeline = make("div", { class: "player-timeline" }, this.strip.element, this.scrubber);
    this.track = make("div", { class: "player-track" }, this.strip.scale, this.timeline);
    this.button = this.tool("Play", ICONS.play, () => this.toggle());
    this.button.classList.add("player-main");
    this.speed = make("select", { class: "player-speed", "aria-label": "Speed" });
    for (const [factor, name] of SPEEDS) this.speed.append(make("option", { value: factor, text: name }));
    this.speed.value = this.options.speed;
    this.speed.addEventListener("change", () => {
      this.setSpeed(Number(this.speed.value));
      this.options.oncommand();
    });
    this.transport = make("div", { class: "player-transport" },
      this.tool("To the start", ICONS.first, () => this.nudge(-Infinity)),
      this.tool("One step back", ICONS.back, () => this.nudge(-1)),
      this.button,
      this.tool("One step on", ICONS.forward, () => this.nudge(1)),
      this.speed);
    this.readout = make("p", { class: "player-readout" });
    this.status = make("p", { class: "player-status", role: "status" });
    this.root = make("div", { class: "player" },
      this.canvas,
      this.card.element,
      this.track,
      make("div", { class: "player-foot" }, this.transport, this.readout),
      this.status);
    this.root.dataset.colour = this.options.colour;
    if (this.options.edit) this.root.classList.add("is-editable");
    this.listen();
    element.replaceChildren(this.root);
  }

  tool(name, path, onclick) {
    return make("button", { type: "button", class: "player-tool", "aria-label": name, title: name, onclick }, icon(path));
  }

  /** The elements of a place, made when they are needed first. */
  placeElement(k) {
    const element = make("span", { class: "token", role: "button", tabindex: k === this.current ? 0 : -1 });
    element.dataset.place = k;
    const place = { element, lineBreak: make("br", { hidden: true }), key: null };
    this.canvas.append(place.element, place.lineBreak);
    return place;
  }

  destroy() {
    this.pause();
    this.card.close();
    window.removeEventListener("pointerup", this.released);
    this.root.remove();
  }

  // -- events

  /** Show another list of events, from its start. */
  load(events) {
    this.pause();
    this.tape = new Tape(events);
    this.peeks = new Map();
    this.cursor = this.step = 0;
    while (this.places.length > this.tape.size) {
      const place = this.places.pop();
      place.element.remove();
      place.lineBreak.remove();
    }
    while (this.places.length < this.tape.size) this.places.push(this.placeElement(this.places.length));
    const isMono = this.tape.events.every((event) =>
      (event.tokens ?? event.revealed ?? []).every((token) => !token || [...token.text].length < 2));
    this.root.classList.toggle("is-mono", isMono);
    this.setCurrent(Math.min(this.current, Math.max(0, this.tape.size - 1)));
    this.status.textContent = "";
    this.arrived();
  }

  /** Take one more event of a text that is being written. */
  add(event) {
    if (event.type === "start") {
      this.load([event]);
      return;
    }
    this.tape.add(event);
    if (this.root.classList.contains("is-mono") && (event.revealed ?? []).some((token) => [...token.text].length > 1)) {
      this.root.classList.remove("is-mono");
    }
    this.arrived();
    if (event.type === "end" && !this.options.quiet) {
      this.status.textContent = `Finished after ${plural(event.evaluations, "evaluation")}.`;
    }
  }

  arrived() {
    const all = this.tape.steps.length;
    this.latest = this.tape.tokensAt(all);
    this.scrubber.max = Math.max(all, this.tape.isOver ? 0 : (this.tape.start?.limit ?? 0));
    this.scrubber.disabled = this.scrubber.max === "0";
    this.strip.draw(this.tape, this.extent());
    this.fitTimeline();
    this.refresh();
  }

  /** How many evaluations the whole strip stands for. */
  extent() {
    const { start, steps } = this.tape;
    const sofar = this.tape.evaluationsAt(steps.length);
    if (this.tape.isOver || !start) return Math.max(1, sofar);
    const each = steps.length ? Math.max(1, Math.round(sofar / steps.length)) : 1;
    return Math.max(1, sofar, (start.limit ?? 0) * each);
  }

  /** Let the whole width stand for so many evaluations, so that players next to each other have one scale. */
  setDomain(evaluations) {
    this.domain = evaluations;
    this.fitTimeline();
  }

  fitTimeline() {
    const part = this.domain ? Math.min(1, this.extent() / this.domain) : 1;
    this.timeline.style.width = `${100 * part}%`;
  }

  // -- playing

  get speedFactor() {
    return this.options.speed;
  }

  get steps() {
    return this.tape.steps.length;
  }

  get evaluations() {
    return this.tape.evaluationsAt(this.step);
  }

  /** The token at each place at the shown step, null where it is masked. */
  tokens() {
    return this.tape.tokensAt(this.step);
  }

  play() {
    if (this.isPlaying) return;
    if (this.tape.isOver && this.step >= this.steps) this.seek(0);
    this.isPlaying = true;
    this.showPlaying();
    let before = null;
    const frame = (now) => {
      if (!this.isPlaying) return;
      const seconds = before === null ? 0 : Math.min(0.25, (now - before) / 1000);
      before = now;
      this.advance(seconds);
      this.frame = requestAnimationFrame(frame);
    };
    this.frame = requestAnimationFrame(frame);
  }

  advance(seconds) {
    const arrived = this.tape.evaluationsAt(this.steps);
    this.cursor = Math.min(arrived, this.options.speed === Infinity ? arrived : this.cursor + seconds * this.rate());
    this.show(this.tape.stepAt(this.cursor));
    if (this.cursor < arrived || !this.tape.isOver) return;
    this.pause();
    if (this.options.loop) this.again = setTimeout(() => this.play(), 1000 * this.options.loop);
  }

  /** Evaluations a second. */
  rate() {
    const all = Math.max(this.domain ?? 0, this.extent());
    return this.options.speed * Math.min(MOST_RATE, Math.max(LEAST_RATE, all / PLAY_SECONDS));
  }

  pause() {
    clearTimeout(this.again);
    cancelAnimationFrame(this.frame);
    this.isPlaying = false;
    if (this.button) this.showPlaying();
  }

  showPlaying() {
    const name = this.isPlaying ? "Pause" : "Play";
    this.button.replaceChildren(icon(this.isPlaying ? ICONS.pause : ICONS.play));
    this.button.setAttribute("aria-label", name);
    this.button.title = name;
  }

  toggle() {
    if (this.isPlaying) this.pause();
    else this.play();
    this.options.oncommand();
  }

  nudge(by) {
    this.pause();
    this.seek(this.step + by);
    this.options.oncommand();
  }

  seek(step) {
    this.show(Math.max(0, Math.min(this.steps, step)));
    this.cursor = this.evaluations;
  }

  /** Show the state after so many evaluations. */
  seekEvaluations(evaluations, pausing = false) {
    if (pausing) this.pause();
    this.seek(this.tape.stepAt(Math.round(evaluations)));
    if (pausing) this.options.oncommand();
  }

  show(step) {
    if (step === this.step) return;
    this.step = step;
    this.refresh();
    this.options.onstep(step);
  }

  setSpeed(factor) {
    this.options.speed = factor;
    this.speed.value = factor;
  }

  setColour(name) {
    this.options.colour = this.root.dataset.colour = name;
    this.refresh();
  }

  setTransport(isShown) {
    this.transport.hidden = !isShown;
  }

  // -- drawing

  /** Draw the shown step. */
  refresh() {
    this.shown = this.tokens();
    this.shown.forEach((token, k) => this.drawPlace(k, token));
    this.scrubber.value = this.step;
    const open = this.shown.filter((token) => token === null).length;
    const entropy = this.tape.steps[this.step - 1]?.entropy ?? null;
    this.scrubber.setAttribute("aria-valuetext", `step ${this.step} of ${this.scrubber.max}, ${open} masked`);
    this.strip.point(this.evaluations);
    const facts = [...(this.steps ? [`step ${this.step} of ${this.steps}`] : []), `${open} masked`];
    if (entropy !== null) facts.push(`entropy ${entropy.toFixed(2)} nats`);
    this.readout.replaceChildren(...facts.map((fact) => make("span", { text: fact })));
    this.card.update();
  }

  drawPlace(k, token) {
    const place = this.places[k];
    const isGiven = Boolean(token && this.tape.start.given?.[k]);
    const isPinned = Boolean(token && this.options.edit?.isPinned(k));
    const tint = token && !isGiven ? this.tintOf(token) : -1;
    // Lines break where the newest text has its breaks, so that the layout is quiet while it is played.
    const breaks = ((token ?? this.latest[k])?.text.match(/\n/g) ?? []).length > 0;
    const isNew = token && token.born === this.step && this.step > 0;
    const key = `${token ? token.id : "mask"} ${token?.born} ${isGiven} ${isPinned} ${tint} ${breaks} ${isNew}`;
    if (place.key === key) return;
    place.key = key;
    const { element } = place;
    element.textContent = token ? visible(token.text) : "\u00a0";
    element.className = ["token", !token && "is-masked", isGiven && "is-given", isPinned && "is-pinned",
      isNew && "is-new", token && /^[\n\r\t]*$/.test(token.text) && "is-sign", tint >= 0 && `tint-${tint}`]
      .filter(Boolean).join(" ");
    element.setAttribute("aria-label", this.nameOf(k, token, isGiven, isPinned));
    place.lineBreak.hidden = !breaks;
  }

  /** How strong the colour is, 0 the strongest; -1 for none. */
  tintOf(token) {
    if (this.options.colour === "age") {
      if (!token.born) return -1;
      const age = this.evaluations - this.tape.evaluationsAt(token.born);
      return bucket(age / Math.max(60, this.extent()), AGE_BOUNDS);
    }
    if (this.options.colour === "confidence" && typeof token.p === "number") return bucket(token.p, CONFIDENCE_BOUNDS);
    return -1;
  }

  nameOf(k, token, isGiven, isPinned) {
    const where = `place ${k + 1}`;
    if (!token) return `masked, ${where}`;
    const facts = [spoken(token.text), where];
    if (isGiven) facts.push("given");
    else if (typeof token.p === "number") facts.push(percent(token.p));
    if (isPinned) facts.push("pinned");
    return facts.join(", ");
  }

  // -- pointing, clicking and typing

  listen() {
    const placeOf = (event) => {
      const element = event.target.closest?.(".token");
      return element && this.canvas.contains(element) ? Number(element.dataset.place) : null;
    };
    this.canvas.addEventListener("pointerover", (event) => {
      const place = placeOf(event);
      if (event.pointerType === "touch" || place === null || !this.hasMoved(event)) return;
      this.pointAt(place);
      if (this.dragged) this.drag(place);
    });
    this.canvas.addEventListener("pointerleave", () => this.pointAt(null));
    this.canvas.addEventListener("focusin", (event) => {
      const place = placeOf(event);
      if (place !== null) this.setCurrent(place);
      if (place !== null && event.target.matches(":focus-visible") && !this.isQuiet) this.pointAt(place, true);
    });
    this.canvas.addEventListener("focusout", (event) => {
      if (!this.root.contains(event.relatedTarget)) this.card.close();
    });
    this.canvas.addEventListener("pointerdown", (event) => {
      const place = placeOf(event);
      if (place === null || event.button !== 0 || event.pointerType === "touch") return;
      if (this.options.edit) this.dragged = { from: place, to: place };
    });
    this.canvas.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place === null) return;
      this.setCurrent(place);
      if (event.pointerType === "touch" || !this.options.edit) this.pointAt(place, true);
      else if (event.detail === 0) this.act(this.reach(place), event.shiftKey); // a screen reader's click
    });
    this.released = (event) => this.release(event);
    window.addEventListener("pointerup", this.released);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.card.close(true);
    });
  }

  /** Whether the pointer itself has moved, not the text under it. */
  hasMoved({ clientX, clientY }) {
    const before = this.pointer;
    this.pointer = { x: clientX, y: clientY };
    return !before || before.x !== clientX || before.y !== clientY;
  }

  /** The places on which a click acts. */
  reach(place) {
    return this.options.edit?.wholeWords() ? wordAround(this.shown, place) : [place];
  }

  pointAt(place, stays = false) {
    this.pointedAt = place;
    this.underline(place === null ? [] : this.reach(place));
    if (place === null) this.card.closeSoon();
    else if (stays) this.card.open(place, true);
    else this.card.openSoon(place);
  }

  underline(places) {
    for (const element of this.canvas.querySelectorAll(".is-reached")) element.classList.remove("is-reached");
    if (this.options.edit) for (const place of places) this.places[place]?.element.classList.add("is-reached");
  }

  drag(place) {
    this.dragged.to = place;
    if (place !== this.dragged.from) this.dragged.isLong = true;
    if (this.dragged.isLong) this.card.close();
    this.underline(this.draggedPlaces());
  }

  draggedPlaces() {
    const ends = [...this.reach(this.dragged.from), ...this.reach(this.dragged.to)];
    return range(Math.min(...ends), Math.max(...ends));
  }

  release(event) {
    if (!this.dragged) return;
    const places = this.draggedPlaces();
    const isInside = this.canvas.contains(event.target);
    this.dragged = null;
    this.underline([]);
    if (isInside) this.act(places, event.shiftKey);
  }

  act(places, isPin) {
    if (isPin) this.options.edit.pin(places);
    else this.options.edit.mask(places);
  }

  key(event) {
    const place = this.current;
    const moves = {
      ArrowLeft: () => place - 1,
      ArrowRight: () => place + 1,
      ArrowUp: () => this.neighbour(-1),
      ArrowDown: () => this.neighbour(1),
      Home: () => (event.ctrlKey ? 0 : this.lineOf(place)[0]),
      End: () => (event.ctrlKey ? this.places.length - 1 : this.lineOf(place).at(-1)),
    };
    if (moves[event.key] && !event.altKey && !event.metaKey) {
      event.preventDefault();
      this.focus(moves[event.key]());
      return;
    }
    if (this.options.edit && this.editKey(event, place)) event.preventDefault();
  }

  /** Whether the key changes the text: then it does. */
  editKey(event, place) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    if (event.key === "Enter") this.act(this.reach(place), event.shiftKey);
    else if (event.key === "Delete") this.options.edit.mask([place]);
    else if (event.key === "Backspace") {
      this.options.edit.mask([place]);
      this.focus(place - 1);
    } else if ([...event.key].length === 1) this.options.edit.force(place, event.key);
    else return false;
    return true;
  }

  /** The places on the line of a place. */
  lineOf(place) {
    const top = (k) => this.places[k].element.offsetTop;
    let [first, last] = [place, place];
    while (first > 0 && top(first - 1) === top(place)) first -= 1;
    while (last < this.places.length - 1 && top(last + 1) === top(place)) last += 1;
    return range(first, last);
  }

  /** The place above (-1) or below (1). */
  neighbour(direction) {
    const line = this.lineOf(this.current);
    const next = direction < 0 ? line[0] - 1 : line.at(-1) + 1;
    if (next < 0 || next >= this.places.length) return this.current;
    const left = (k) => this.places[k].element.offsetLeft;
    const distance = (k) => Math.abs(left(k) - left(this.current));
    return this.lineOf(next).reduce((best, k) => (distance(k) < distance(best) ? k : best));
  }

  setCurrent(place) {
    this.places[this.current]?.element.setAttribute("tabindex", -1);
    this.current = place;
    this.places[place]?.element.setAttribute("tabindex", 0);
  }

  /** Move the keyboard's focus to a place, and show its card unless it would only be in the way. */
  focus(place, showsCard = true) {
    const reached = Math.max(0, Math.min(this.places.length - 1, place));
    this.setCurrent(reached);
    this.focusQuietly(reached);
    if (showsCard) this.pointAt(reached, true);
    else this.card.close();
  }

  focusQuietly(place) {
    this.isQuiet = true;
    this.places[place]?.element.focus();
    this.isQuiet = false;
  }

  closeCard() {
    this.card.close();
  }

  /** What the model expects at the masked places of the shown step: a promise, or null if it cannot be asked. */
  peek() {
    if (!this.options.peek) return null;
    if (!this.peeks.has(this.step)) {
      const asked = this.options.peek(this.shown);
      asked.catch(() => this.peeks.delete(this.step));
      this.peeks.set(this.step, asked);
    }
    return this.peeks.get(this.step);
  }

  /** The step that reveals a place which is masked now, if it is known. */
  revealOf(place) {
    for (let k = this.step; k < this.steps; k += 1) {
      const found = this.tape.steps[k].revealed.find((token) => token.at === place);
      if (found) return { step: k + 1, token: found };
    }
    return null;
  }
}

function plural(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

// -- the card of a token ----------------------------------------------------------------------------------------------

/** What could stand at a place: the likeliest tokens with their probabilities, and what can be done there. */
class Card {
  constructor(player) {
    this.player = player;
    this.place = null;
    this.element = make("div", {
      class: "player-card", role: "group", "aria-label": "What could stand here", hidden: true,
      onpointerenter: () => clearTimeout(this.closing),
      onpointerleave: () => this.closeSoon(),
      onfocusout: (event) => {
        if (!player.root.contains(event.relatedTarget)) this.close();
      },
    });
  }

  /** Open when the pointer has rested for a moment; at once, if the card of another token is open. */
  openSoon(place) {
    clearTimeout(this.opening);
    if (this.element.hidden) this.opening = setTimeout(() => this.open(place), SHOW_DELAY);
    else this.open(place);
  }

  open(place, stays = false) {
    clearTimeout(this.opening);
    clearTimeout(this.closing);
    if (this.player.dragged?.isLong) return;
    this.stays = stays;
    this.place = place;
    this.key = null;
    this.update();
  }

  close(returns = false) {
    clearTimeout(this.opening);
    clearTimeout(this.closing);
    clearTimeout(this.asking);
    const hadFocus = this.element.contains(document.activeElement);
    this.place = null;
    this.element.hidden = true;
    this.player.underline([]);
    if (returns && hadFocus) this.player.focusQuietly(this.player.current);
  }

  closeSoon() {
    clearTimeout(this.opening);
    clearTimeout(this.closing);
    this.closing = setTimeout(() => {
      const focused = document.activeElement;
      if (this.element.contains(focused)) return;
      const isAtToken = this.player.canvas.contains(focused) && focused.matches(":focus-visible");
      if (isAtToken) this.player.pointAt(this.player.current, true);
      else if (!this.stays) this.close();
    }, HIDE_DELAY);
  }

  /** Show what holds at the step that is shown. */
  update() {
    const { player, place } = this;
    if (place === null) return;
    if (place >= player.shown.length) {
      this.close();
      return;
    }
    const token = player.shown[place];
    const key = `${place} ${token?.id} ${token?.born} ${token ? "" : player.step} ${player.options.edit?.isPinned(place)}`;
    if (this.key === key && !this.element.hidden) return;
    this.key = key;
    clearTimeout(this.asking);
    this.fill(token);
    if (!token) this.ask(place, key);
  }

  fill(token) {
    const { player, place } = this;
    if (this.element.contains(document.activeElement)) player.focusQuietly(place); // what has the focus is replaced
    const isGiven = Boolean(token && player.tape.start.given?.[place]);
    this.title = make("p", { class: "player-card-title" });
    this.list = make("ul", { class: "player-bars" });
    if (token) {
      this.title.append(make("span", { class: "player-glyph", text: shownAs(token.text) }), make("span", {
        text: isGiven ? "given" : this.story(token) }));
      this.showBars(token.alternatives ?? [], token);
    } else {
      const reveal = player.revealOf(place);
      this.title.append(make("span", { class: "player-glyph is-masked", text: "\u00a0" }), make("span", {
        text: player.options.peek ? "masked; likeliest now" : reveal ? `masked until step ${reveal.step}` : "masked" }));
      if (!player.options.peek && reveal) this.showBars(reveal.token.alternatives ?? [], null);
    }
    this.element.replaceChildren(this.title, this.list, ...(player.options.edit ? [this.actions(token)] : []));
    this.element.hidden = false;
    this.position();
  }

  story(token) {
    const when = token.born ? `step ${token.born}` : token.forced ? "yours" : "kept";
    return typeof token.p === "number" ? `${when}, ${percent(token.p)}` : when;
  }

  showBars(alternatives, chosen) {
    const rows = alternatives.slice(0, 5);
    if (chosen && typeof chosen.p === "number" && rows.length && !rows.some((one) => one.id === chosen.id)) {
      rows.splice(4, 1, chosen); // it was drawn though it is not among the likeliest
    }
    this.list.replaceChildren(...rows.map((one) => this.bar(one, chosen)));
    this.list.hidden = rows.length === 0;
  }

  bar(one, chosen) {
    const { player, place } = this;
    const fill = make("span", { class: "player-bar-fill" });
    fill.style.width = `${Math.max(1, 100 * one.p)}%`;
    const row = [
      make("span", { class: "player-glyph", text: shownAs(one.text), "aria-hidden": "true" }),
      make("span", { class: "player-bar", "aria-hidden": "true" }, fill),
      make("span", { class: "player-percent", text: percent(one.p), "aria-hidden": "true" }),
    ];
    const name = `${spoken(one.text)}, ${percent(one.p)}`;
    const isChosen = chosen !== null && one.id === chosen.id;
    const state = `player-row${isChosen ? " is-chosen" : ""}`;
    if (!player.options.edit) {
      return make("li", { class: state }, make("span", { class: "player-status", text: name }), ...row);
    }
    return make("li", {}, make("button", {
      type: "button", class: state, title: `Write ${spoken(one.text)} here`, "aria-label": `Write ${name}`,
      onclick: () => player.options.edit.choose(place, one),
    }, ...row));
  }

  actions(token) {
    const { player, place } = this;
    const { edit } = player.options;
    const isPinned = Boolean(token && edit.isPinned(place));
    const button = (text, hint, onclick) => make("button", { type: "button", class: "player-action", title: hint, text, onclick });
    return make("div", { class: "player-actions" },
      token ? button("Mask", "Click a token, or Enter", () => edit.mask(player.reach(place))) : null,
      token ? button(isPinned ? "Unpin" : "Pin", "Shift-click a token, or Shift+Enter", () => edit.pin(player.reach(place))) : null,
      button("Type…", "Type on a token", () => this.type()));
  }

  /** Offer a field to type into: for keyboards on a screen, and for tokens of several characters. */
  type(text = "") {
    const { player, place } = this;
    const field = make("input", { type: "text", class: "player-field", "aria-label": "Write here", autocomplete: "off",
      autocapitalize: "off", spellcheck: "false" });
    field.value = text;
    const form = make("form", { class: "player-actions", onsubmit: (event) => {
      event.preventDefault();
      if (field.value) player.options.edit.force(place, field.value);
      this.close(true);
    } }, field, make("button", { type: "submit", class: "player-action", text: "Write" }));
    const actions = this.element.querySelector(".player-actions");
    actions.after(form);
    field.focus();
    actions.remove();
    this.position();
  }

  /** Ask the model about a mask, if it can be asked. */
  ask(place, key) {
    const { player } = this;
    if (!player.options.peek) return;
    this.asking = setTimeout(async () => {
      const is = () => this.place === place && this.key === key;
      try {
        const expected = await player.peek();
        if (!is()) return;
        this.showBars(expected.get(place) ?? [], null);
        if (!expected.has(place)) this.title.lastChild.textContent = "masked";
      } catch {
        if (is()) this.title.lastChild.textContent = "masked; the model cannot be asked now";
      }
      if (is()) this.position();
    }, PEEK_DELAY);
  }

  /** Put the card under its token, or above it where there is no room below. */
  position() {
    const token = this.player.places[this.place].element.getBoundingClientRect();
    const root = this.player.root.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const left = Math.max(0, Math.min(root.width - width, token.left - root.left + token.width / 2 - width / 2));
    const isAbove = token.bottom + height + 12 > window.innerHeight && token.top - height - 12 > 0;
    this.element.style.left = `${left}px`;
    this.element.style.top = `${isAbove ? token.top - root.top - height - 8 : token.bottom - root.top + 8}px`;
  }
}

/** A token in a list: spaces can be seen. */
function shownAs(text) {
  return visible(text).replace(/ /g, "␣");
}

// -- the strip of entropy ---------------------------------------------------------------------------------------------

/** The mean entropy of the masked places at each step, over the evaluations; a click seeks. */
class Strip {
  constructor(onseek) {
    this.area = vector("path", { class: "strip-area" });
    this.future = vector("rect", { class: "strip-future", y: 0, height: 100 });
    this.line = vector("line", { class: "strip-line", y1: 0, y2: 100 });
    this.svg = vector("svg", { class: "strip", preserveAspectRatio: "none", role: "img" });
    this.svg.append(this.area, this.future, this.line);
    this.scale = make("p", { class: "strip-scale", "aria-hidden": "true" });
    this.element = make("div", { class: "player-strip" }, this.svg);
    const seek = (event) => {
      if (event.buttons !== 1) return;
      const box = this.svg.getBoundingClientRect();
      onseek(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
    };
    this.element.addEventListener("pointerdown", seek);
    this.element.addEventListener("pointermove", seek);
  }

  draw(tape, extent) {
    this.extent = extent;
    this.svg.setAttribute("viewBox", `0 0 ${extent} 100`);
    const known = tape.steps.map((step) => step.entropy).filter((value) => value !== null);
    const most = Math.max(0.1, ...known);
    let path = "";
    tape.steps.forEach((step, k) => {
      if (step.entropy === null) return;
      path += `M${tape.evaluationsAt(k)} 100V${(100 - 92 * (step.entropy / most)).toFixed(2)}H${step.evaluations}V100Z`;
    });
    this.area.setAttribute("d", path);
    this.scale.textContent = known.length ? `Entropy of the open places, 0 to ${most.toFixed(1)} nats` : "Entropy of the open places";
    this.svg.setAttribute("aria-label", known.length
      ? `Mean entropy of the masked places: ${known[0].toFixed(2)} nats at first, ${known.at(-1).toFixed(2)} at last`
      : "Mean entropy of the masked places: not known yet");
  }

  point(evaluations) {
    this.future.setAttribute("x", evaluations);
    this.future.setAttribute("width", Math.max(0, this.extent - evaluations));
    this.line.setAttribute("x1", evaluations);
    this.line.setAttribute("x2", evaluations);
  }
}
