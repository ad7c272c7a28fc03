// The page of `llada watch`: asks what is new every few seconds, and draws what is chosen. It never writes.

import { Chart } from "./charts.js";
import { bytes, clock, count, duration, element, fill, fixed, isNumber, NONE, percent, short, visible, whole, withError } from "./words.js";

const SECONDS = { live: 2, idle: 5, hidden: 20, reading: 0.3, longestRetry: 15 };
const BUCKETS = 400;
const N_COLOURS = 7;
const FIRST_SHOWN = 4;
const MOST_SAMPLES_ABREAST = 4;
const PLAY_SECONDS = 0.9;
const PLACES = {
  step: { name: "step", label: "steps", format: (x) => (x >= 1e4 ? count(x) : whole(x)) },
  seconds: { name: "after", label: "time", format: clock },
  tokens: { name: "tokens", label: "tokens", format: count },
};
const STATES = { training: "training", finished: "finished", stopped: "stopped", failed: "ended by trouble", waiting: "about to begin" };

const at = (id) => document.getElementById(id);
const state = {
  runs: [], // summaries, as /api/runs has them
  shown: null, // ids whose curves are drawn; null until the first answer
  focus: null, // id of the run whose facts, samples and trouble are shown
  place: "step",
  zoom: null, // [low, high] of the x axis
  curves: new Map(), // id -> { version, zoom, data }
  details: new Map(), // id -> { version, data }
  samples: new Map(), // "id/step" -> text
  sampleStep: null, // null follows the newest
  settings: { key: "", rows: [] },
  onlyDifferences: true,
  failures: 0,
};

// -- asking ------------------------------------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path); // the browser keeps answers, and asks by their ETags
  if (!answer.ok) throw Object.assign(new Error(path), { status: answer.status });
  return answer.json();
}

/** Ask for something of a run that may be gone by now; undefined then. */
async function askOfRun(path) {
  try {
    return await ask(path);
  } catch (error) {
    if (error.status === 404) return undefined;
    throw error;
  }
}

async function refresh() {
  const { runs } = await ask("api/runs");
  state.runs = runs;
  const ids = new Set(runs.map((run) => run.id));
  for (const kept of [state.curves, state.details]) for (const id of kept.keys()) if (!ids.has(id)) kept.delete(id);
  choose(ids);
  await Promise.all([...shownRuns().map(loadCurves), loadDetails(), loadSettings()]);
  await loadSamples();
}

/** Keep the choice to runs that are there; choose at first, and when all that were chosen are gone. */
function choose(ids) {
  if (state.shown !== null) state.shown = new Set([...state.shown].filter((id) => ids.has(id)));
  if (!ids.has(state.focus)) state.focus = byNews()[0]?.id ?? null;
  if (state.shown === null || (state.shown.size === 0 && state.focus)) {
    state.shown = new Set(byNews().slice(0, FIRST_SHOWN).map((run) => run.id));
  }
  if (state.focus) state.shown.add(state.focus);
}

/** The runs, those that train first, then those with the newest lines. */
const byNews = () => [...state.runs].sort((a, b) => (b.state === "training") - (a.state === "training") || b.changed - a.changed);
const shownRuns = () => state.runs.filter((run) => state.shown?.has(run.id));
const focused = () => state.runs.find((run) => run.id === state.focus);
const colourOf = (run) => `c${state.runs.indexOf(run) % N_COLOURS}`;
const swatchOf = (run) => `swatch ${colourOf(run)} d${dashOf(run) % 4}`;
const dashOf = (run) => Math.floor(state.runs.indexOf(run) / N_COLOURS);

async function loadCurves(run) {
  const kept = state.curves.get(run.id);
  const range = stepsOfZoom(kept);
  const key = JSON.stringify([run.version, run.is_reading, range]);
  if (kept?.key === key) return;
  const query = new URLSearchParams({ buckets: BUCKETS });
  const full = await askOfRun(`api/runs/${run.id}/curves?${query}`);
  if (!full) return;
  let data = full;
  if (range) {
    query.set("first", range[0]);
    query.set("last", range[1]);
    data = (await askOfRun(`api/runs/${run.id}/curves?${query}`)) ?? full;
  }
  state.curves.set(run.id, { key, full, data });
}

/** The steps of a run that the zoomed range stands for, with one point more on each side; null without zoom. */
function stepsOfZoom(kept) {
  if (!state.zoom || !kept) return null;
  const { step } = kept.full.places;
  const places = kept.full.places[state.place];
  const first = places.findLastIndex((x) => x < state.zoom[0]);
  const last = places.findIndex((x) => x > state.zoom[1]);
  return [Math.floor(step[Math.max(0, first)] ?? 0), Math.ceil(last < 0 ? 2 ** 52 : step[last])];
}

async function loadDetails() {
  const run = focused();
  for (const each of [run, ...samplesOf()].filter(Boolean)) {
    const data = await askOfRun(`api/runs/${each.id}`);
    if (data) state.details.set(each.id, data);
  }
}

async function loadSettings() {
  const runs = shownRuns();
  if (!runs.length) return;
  const query = new URLSearchParams(runs.slice(0, 20).map((run) => ["run", run.id]));
  const found = await askOfRun(`api/compare?${query}`);
  if (found) state.settings = { runs: runs.slice(0, 20), rows: found.settings };
}

// -- samples -----------------------------------------------------------------------------------------------------------

/** The runs whose samples are shown: the one in focus, then the others. */
function samplesOf() {
  const run = focused();
  return run ? [run, ...shownRuns().filter((each) => each !== run)].slice(0, MOST_SAMPLES_ABREAST) : [];
}

const sampleSteps = (id = state.focus) => state.details.get(id)?.samples ?? [];

/** The step that the slider is at: the newest, unless an older one was chosen. */
function sampleStep() {
  const steps = sampleSteps();
  return steps.includes(state.sampleStep) ? state.sampleStep : steps[steps.length - 1];
}

/** The sample of a run that is nearest to the slider's, not after it if there is one. */
function sampleStepOf(run) {
  const wanted = sampleStep();
  const steps = sampleSteps(run.id);
  return steps.findLast((step) => step <= wanted) ?? steps[0];
}

async function loadSamples() {
  for (const run of samplesOf()) {
    const step = sampleStepOf(run);
    const key = `${run.id}/${step}`;
    if (step === undefined || (state.samples.has(key) && run.state !== "training")) continue;
    const found = await askOfRun(`api/runs/${run.id}/samples/${step}`);
    if (state.samples.size > 500) state.samples.clear();
    if (found) state.samples.set(key, found.text);
  }
}

// -- charts ------------------------------------------------------------------------------------------------------------

const charts = {};

function makeCharts() {
  const follow = (x, chart) => {
    for (const other of Object.values(charts)) if (other !== chart && other.onZoom && chart.onZoom) other.showAt(x);
  };
  const make = (host, options) => new Chart(at(host), { onRead: follow, onZoom: zoomTo, ...options });
  charts.bound = make("main-charts", { title: "Bound on validation text", unit: "NELBO, nats per token ± standard error", words: (y) => fixed(y, 3) });
  charts.loss = make("main-charts", { title: "Training loss", unit: "nats per masked token; the band is from least to greatest", words: (y) => fixed(y, 2) });
  charts.byT = make("by-t-charts", { title: "Over the run", unit: "nats per masked token, a line for each t", words: (y) => fixed(y, 2), height: 260 });
  charts.profile = make("by-t-charts", { title: "By t", unit: "nats per masked token", words: (y) => fixed(y, 2), height: 260, fromZero: true, onZoom: null, onRead: () => {} });
  charts.speed = make("machine-charts", { title: "Speed", unit: "tokens per second", words: count, axis: count, height: 150, fromZero: true });
  charts.memory = make("machine-charts", { title: "Memory", unit: "process, or GPU at its peak", words: bytes, axis: bytes, height: 150, fromZero: true });
  charts.norm = make("machine-charts", { title: "Gradient norm", unit: "before clipping", height: 150, fromZero: true, words: (y) => short(y, 3) });
  charts.rate = make("machine-charts", { title: "Learning rate", unit: "share of its peak", height: 150, fromZero: true, words: (y) => short(y, 3) });
}

function zoomTo(range) {
  state.zoom = range;
  saveChoice();
  drawCharts();
  work();
}

function drawCharts() {
  const place = PLACES[state.place];
  const runs = shownRuns().filter((run) => state.curves.has(run.id));
  const isAlone = runs.length === 1;
  const options = { format: place.format, placeName: place.name, domain: state.zoom ?? fullDomain(runs) };
  const named = (run, rest) => ({ name: visible(run.name), colour: colourOf(run), dash: dashOf(run), weight: run.id === state.focus && !isAlone ? "strong" : "", ...rest });
  const lines = (name, hasBand = false) => runs.flatMap((run) => {
    const { places, series } = state.curves.get(run.id).data;
    const found = series[name];
    if (!found) return [];
    return [named(run, { x: places[state.place], y: found.mean, low: hasBand ? found.min : null, high: hasBand ? found.max : null })];
  });
  charts.bound.update(runs.map((run) => {
    const { bounds } = state.curves.get(run.id).data;
    const shifted = (sign) => bounds.nelbo.map((y, i) => (isNumber(y) && isNumber(bounds.stderr[i]) ? y + sign * bounds.stderr[i] : null));
    return named(run, { x: bounds[state.place], y: bounds.nelbo, low: shifted(-1), high: shifted(1), isPoints: true });
  }), options);
  charts.loss.update(lines("nll", true), options);
  charts.speed.update(lines("tokens_per_second"), options);
  charts.memory.update(lines("memory_bytes"), options);
  charts.memory.figure.hidden = !charts.memory.series.length; // older runs did not record it
  charts.norm.update(lines("grad_norm", true), options);
  charts.rate.update(lines("learning_rate_factor"), options);
  drawByT(runs, options, isAlone, named);
}

function drawByT(runs, options, isAlone, named) {
  const run = focused();
  const kept = run && state.curves.get(run.id);
  if (!kept) return;
  const { bins, nll, places } = kept.data.by_t;
  const bin = (i, n) => `${short(i / n, 2)}–${short((i + 1) / n, 2)}`;
  const n_measured = nll.filter((y) => y.some(isNumber)).length;
  at("by-t").hidden = n_measured < 2 && isAlone; // a causal network learns without masks, so there is one bin
  charts.byT.figure.hidden = n_measured < 2;
  charts.byT.update(nll.map((y, i) => ({
    name: `t ${bin(i, bins)}`, label: short((i + 0.5) / bins, 2), colour: `t${Math.round((9 * i) / Math.max(1, bins - 1))}`, x: places[state.place], y,
  })).reverse(), { ...options, domain: state.zoom ?? fullDomain([run]) });
  const series = [];
  if (isAlone) {
    for (const [share, name, colour] of [[0, "at first", "c-past"], [0.25, "after a quarter", "c-past"]]) {
      series.push(profile(kept.data.by_t, share, { name, colour, weight: "faint", dash: share ? 0 : 1 }));
    }
  }
  for (const each of runs) series.push(profile(state.curves.get(each.id).data.by_t, 1, named(each, isAlone ? { name: "now" } : {})));
  charts.profile.update(series.filter((each) => each?.y.filter(isNumber).length > 1), {
    domain: [0, 1], format: (x) => short(x, 2), placeName: "t",
    unit: `nats per masked token${isAlone ? ": at first (dashed), after a quarter (thin), and now" : ""}`,
  });
}

/** The loss by t at a share of the curve, the mean of some of its places. */
function profile({ bins, nll }, share, rest) {
  if (!bins) return null;
  const n = nll[0].length;
  const end = Math.max(1, Math.round(share * n));
  const begin = share === 1 ? Math.max(0, Math.min(n - 1, Math.floor(0.92 * n))) : Math.max(0, end - 1);
  const mean = (values) => {
    const numbers = values.filter(isNumber);
    return numbers.length ? numbers.reduce((a, b) => a + b) / numbers.length : null;
  };
  return { ...rest, x: nll.map((_, i) => (i + 0.5) / bins), y: nll.map((values) => mean(values.slice(begin, end))) };
}

/** The range of the x axis over all runs that are drawn, so that all charts have the same. */
function fullDomain(runs) {
  const ends = runs.flatMap((run) => {
    const { places, bounds } = state.curves.get(run.id).full;
    return [places[state.place].at(-1), bounds[state.place].at(-1)];
  }).filter(isNumber);
  return ends.length ? [0, Math.max(...ends)] : null;
}

// -- the rest of the page ------------------------------------------------------------------------------------------------

function draw() {
  const has = state.runs.length > 0;
  at("empty").hidden = has;
  at("empty").textContent = "No run is here yet. Start one with llada train, and its curves appear.";
  at("content").hidden = !has;
  drawRuns();
  if (!has) return;
  drawFacts();
  drawLegend();
  drawCharts();
  drawSamples();
  drawTrouble();
  drawSettings();
  const run = focused();
  document.title = run ? [run.state === "training" ? percent(run.fraction_done) : null, fixed(run.bound?.nelbo, 3), visible(run.name)].filter((each) => each && each !== NONE).join(" · ") : "Runs";
}

/** Replace the children of an element, with the keyboard's focus where it was. */
function replace(host, children) {
  const key = host.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  host.replaceChildren(...children);
  if (key) [...host.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key)?.focus();
}

function drawRuns() {
  const listed = [...state.runs].sort((a, b) => (b.state === "training") - (a.state === "training"));
  replace(at("runs"), listed.map((run) => {
    const name = visible(run.name);
    const box = element("input", { type: "checkbox", checked: state.shown.has(run.id), "aria-label": `Draw ${name}`, onchange: (event) => show(run.id, event.target.checked) });
    box.dataset.key = `box-${run.id}`;
    const button = element("button", { type: "button", class: "run-name", "aria-current": run.id === state.focus ? "true" : null, onclick: () => focus(run.id) }, name);
    button.dataset.key = `name-${run.id}`;
    const bar = isNumber(run.fraction_done)
      ? element("progress", { max: 1, value: run.fraction_done, "aria-label": `${name}: part that is done` })
      : null;
    const facts = [
      run.is_reading ? `reading, ${percent(run.share_read)}` : STATES[run.state] ?? run.state,
      run.state === "training" ? percent(run.fraction_done) : null,
      run.bound ? fixed(run.bound.nelbo, 3) : null,
      run.state === "training" && isNumber(run.seconds_left) ? `${duration(run.seconds_left)} left` : null,
    ].filter((each) => each && each !== NONE);
    const trouble = run.has_trouble || run.events ? element("span", { class: "warn" }, run.has_trouble ? "trouble" : `${whole(run.events)} event${run.events === 1 ? "" : "s"}`) : null;
    return element("li", { class: `${run.state} ${run.id === state.focus ? "current" : ""}` },
      element("div", { class: "run-head" }, box, element("span", { class: swatchOf(run) }), button, trouble),
      element("p", { class: "quiet" }, facts.join(" · ")), bar);
  }));
}

function drawFacts() {
  const run = focused();
  at("focus-name").textContent = visible(run.name);
  const notes = [STATES[run.state] ?? run.state];
  if (run.is_reading) notes.push(`its metrics are being read: ${percent(run.share_read)}`);
  if (run.bad_lines) notes.push(`${whole(run.bad_lines)} lines of its metrics could not be read`);
  at("focus-state").textContent = notes.join("; ");
  at("focus-state").className = `quiet state ${run.state}`;
  const best = run.best_bound && run.bound && run.best_bound.step !== run.bound.step ? `best ${fixed(run.best_bound.nelbo)} at step ${whole(run.best_bound.step)}` : run.bound ? `at step ${whole(run.bound.step)}` : "not measured yet";
  const facts = [
    ["Bound (NELBO)", withError(run.bound), `nats per token, ${best}`],
    ["Loss", fixed(run.nll, 3), "nats per masked token"],
    ["Step", whole(run.step), run.total_steps ? `of ${whole(run.total_steps)}, ${percent(run.fraction_done)}` : isNumber(run.fraction_done) ? percent(run.fraction_done) : ""],
    run.state === "training" ? ["Time left", duration(run.seconds_left), `${duration(run.seconds)} so far`] : ["Time", duration(run.seconds), "of training"],
    ["Speed", count(run.tokens_per_second), `tokens per second, ${count(run.tokens)} so far`],
    isNumber(run.memory_bytes) ? ["Memory", bytes(run.memory_bytes), "in use"] : null,
  ].filter(Boolean);
  fill(at("facts"), facts, () => facts.map(([name, value, note]) => element("div", {}, element("dt", {}, name), element("dd", {}, element("b", {}, value), " ", element("span", { class: "quiet" }, note)))));
}

function drawLegend() {
  const runs = shownRuns();
  at("legend").replaceChildren(...(runs.length > 1 ? runs.map((run) => element("span", { class: "key" }, element("span", { class: swatchOf(run) }), visible(run.name))) : []));
  at("unzoom").hidden = !state.zoom;
  at("zoom-note").hidden = Boolean(state.zoom);
  const run = focused();
  at("by-t-title").textContent = runs.length > 1 ? `Loss by t: ${visible(run.name)} over its run, all runs as they are now` : "Loss by t";
}

function drawSamples() {
  const steps = sampleSteps();
  at("sample-controls").hidden = !steps.length;
  const slider = at("sample-step");
  const now = sampleStep();
  slider.max = Math.max(0, steps.length - 1);
  slider.value = Math.max(0, steps.indexOf(now));
  slider.setAttribute("aria-valuetext", `step ${whole(now)}`);
  at("play").disabled = steps.length < 2;
  at("sample-label").textContent = steps.length ? `step ${whole(now)}${now === steps.at(-1) ? ", the newest" : ""}` : "";
  const runs = samplesOf().filter((run) => sampleSteps(run.id).length);
  const shown = runs.map((run) => {
    const step = sampleStepOf(run);
    return { run, step, text: state.samples.get(`${run.id}/${step}`) };
  });
  fill(at("samples"), shown.map(({ run, step, text }) => [run.name, colourOf(run), step, text ?? null]), () => (shown.length ? shown.map(({ run, step, text }) => {
    const title = element("h3", {}, element("span", { class: swatchOf(run) }), ` ${visible(run.name)}, step ${whole(step)}`);
    return element("article", {}, title, element("pre", {}, text === undefined ? "…" : visible(text)));
  }) : [element("p", { class: "quiet" }, "A sample appears with the first evaluation.")]));
}

const EVENTS = {
  spike: (e) => `The cross-entropy leapt from ${fixed(e.from, 2)} to ${fixed(e.to, 2)} nats.`,
  skipped: (e) => `${whole(e.count)} step${e.count === 1 ? " was" : "s were"} left out, since the loss or gradient was not a finite number.`,
  return: (e) => `The run went back here from step ${whole(e.from)}, and on with the data in another order.`,
};

function drawTrouble() {
  const details = state.details.get(state.focus);
  const found = [];
  if (details?.trouble) {
    const { step, loss, gradients } = details.trouble;
    const largest = gradients[0] ? ` Its largest gradient was that of ${visible(gradients[0].layer)}: ${gradients[0].norm}.` : "";
    found.push(element("p", { class: "alarm" }, `Step ${whole(step)} had a loss of ${visible(loss)}, and is described in trouble.json.${largest}`));
  }
  const events = [...(details?.events ?? [])].reverse();
  if (events.length) {
    found.push(element("ol", { class: "events" }, ...events.slice(0, 30).map((event) => element("li", {}, element("b", {}, `Step ${whole(event.step)}`), ` ${EVENTS[event.kind]?.(event) ?? ""}`))));
    if (details.n_events > 30) found.push(element("p", { class: "quiet" }, `The latest 30 of ${whole(details.n_events)}.`));
  }
  if (!found.length) found.push(element("p", { class: "quiet" }, "None: no step was left out, no loss leapt, and the run never went back."));
  fill(at("trouble"), [details?.trouble, events, details?.n_events], () => found);
}

function drawSettings() {
  const { runs = [], rows } = state.settings;
  const isAlone = runs.length < 2;
  at("differences-label").hidden = isAlone;
  const chosen = rows.filter((row) => isAlone || row.differs || !state.onlyDifferences);
  const names = runs.map((run) => [visible(run.name), swatchOf(run)]);
  fill(at("settings"), [names, chosen, state.onlyDifferences, rows.length], () => [settingsTable(names, chosen, rows.length)]);
}

function settingsTable(names, chosen, n) {
  if (!chosen.length) return element("p", { class: "quiet" }, n ? "These runs have the same settings." : "The settings of this run cannot be read.");
  const head = element("tr", {}, element("th", { scope: "col" }, "setting"), ...names.map(([name, swatch]) => element("th", { scope: "col" }, element("span", { class: swatch }), name)));
  const body = chosen.map((row) => element("tr", { class: row.differs && !state.onlyDifferences ? "differs" : null },
    element("th", { scope: "row" }, visible(row.name)), ...row.values.map((value) => element("td", {}, visible(value ?? NONE)))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

// -- choosing ------------------------------------------------------------------------------------------------------------

function show(id, isShown) {
  if (isShown) state.shown.add(id);
  else state.shown.delete(id);
  if (!isShown && id === state.focus) state.focus = [...state.shown][0] ?? null;
  changed();
}

function focus(id) {
  state.focus = id;
  state.shown.add(id);
  state.sampleStep = null;
  changed();
}

/** Draw what is known of a new choice at once, then ask for the rest. */
function changed() {
  choose(new Set(state.runs.map((run) => run.id)));
  saveChoice();
  draw();
  work();
}

/** The choice is in the address, so that a reload or a link shows the same. */
function saveChoice() {
  const choice = new URLSearchParams({ show: [...(state.shown ?? [])].join(","), run: state.focus ?? "", over: state.place });
  if (state.zoom) choice.set("from", state.zoom[0].toPrecision(6)), choice.set("to", state.zoom[1].toPrecision(6));
  history.replaceState(null, "", `#${choice}`);
}

function readChoice() {
  const choice = new URLSearchParams(location.hash.slice(1));
  const shown = (choice.get("show") ?? "").split(",").filter((id) => /^[0-9a-f]{16}$/.test(id));
  if (shown.length) state.shown = new Set(shown);
  if (/^[0-9a-f]{16}$/.test(choice.get("run") ?? "")) state.focus = choice.get("run");
  if (choice.get("over") in PLACES) state.place = choice.get("over");
  const zoom = [Number(choice.get("from")), Number(choice.get("to"))];
  if (choice.has("from") && zoom.every(isNumber) && zoom[0] < zoom[1]) state.zoom = zoom;
  at("place").value = state.place;
}

let playing = null;

function play(isOn) {
  clearInterval(playing);
  playing = null;
  at("play").setAttribute("aria-pressed", String(isOn));
  at("play").textContent = isOn ? "Pause" : "Play";
  if (!isOn) return;
  if (sampleStep() === sampleSteps().at(-1)) goToSample(0);
  playing = setInterval(() => {
    const next = sampleSteps().indexOf(sampleStep()) + 1;
    if (next < sampleSteps().length) goToSample(next);
    if (next >= sampleSteps().length - 1) play(false);
  }, 1000 * PLAY_SECONDS);
}

async function goToSample(index) {
  const steps = sampleSteps();
  state.sampleStep = index >= steps.length - 1 ? null : steps[index];
  drawSamples();
  await loadSamples().catch(() => {});
  drawSamples();
}

function setTheme(theme) {
  document.documentElement.className = theme;
  try {
    localStorage.setItem("llada-theme", theme);
  } catch { /* a browser that keeps nothing */ }
}

function listen() {
  at("place").addEventListener("change", (event) => {
    state.place = event.target.value;
    state.zoom = null;
    changed();
  });
  at("theme").addEventListener("change", (event) => setTheme(event.target.value));
  at("unzoom").addEventListener("click", () => zoomTo(null));
  at("differences").addEventListener("change", (event) => {
    state.onlyDifferences = event.target.checked;
    drawSettings();
  });
  at("sample-step").addEventListener("input", (event) => {
    play(false);
    goToSample(Number(event.target.value));
  });
  at("play").addEventListener("click", () => play(playing === null));
  document.addEventListener("visibilitychange", () => document.hidden || work());
  window.addEventListener("online", () => work());
}

// -- the loop ------------------------------------------------------------------------------------------------------------

let timer = null;
let isWorking = false;
let isAskedAgain = false;

/** Ask and draw now, then again after a while. */
async function work() {
  if (isWorking) {
    isAskedAgain = true;
    return;
  }
  clearTimeout(timer);
  isWorking = true;
  try {
    const isFirst = state.shown === null || !state.runs.length;
    await refresh();
    state.failures = 0;
    draw();
    if (isFirst) document.querySelector("#runs .current")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  } catch (error) {
    state.failures += 1;
    if (!("status" in error) && !(error instanceof TypeError)) console.error(error);
  }
  isWorking = false;
  say();
  const wait = isAskedAgain ? 0 : secondsToWait();
  isAskedAgain = false;
  timer = setTimeout(work, 1000 * wait);
}

function secondsToWait() {
  if (state.failures) return Math.min(SECONDS.longestRetry, 2 ** state.failures);
  if (state.runs.some((run) => run.is_reading)) return SECONDS.reading;
  if (document.hidden) return SECONDS.hidden;
  return !state.runs.length || state.runs.some((run) => run.state === "training" || run.state === "waiting") ? SECONDS.live : SECONDS.idle;
}

function say() {
  const training = state.runs.filter((run) => run.state === "training").length;
  const words = state.failures
    ? "Connection lost: trying again"
    : training ? `${training === 1 ? "1 run trains" : `${training} runs train`}` : state.runs.length ? "No run trains now" : "Waiting for a run";
  const line = at("connection");
  line.className = state.failures ? "lost" : training ? "live" : "";
  if (line.textContent !== words) line.textContent = words; // a screen reader says each change
}

try {
  const theme = localStorage.getItem("llada-theme") ?? "";
  if (["", "light", "dark"].includes(theme)) {
    setTheme(theme);
    at("theme").value = theme;
  }
} catch { /* a browser that keeps nothing */ }
readChoice();
makeCharts();
listen();
work();
