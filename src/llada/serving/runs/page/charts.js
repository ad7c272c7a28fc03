// A chart in SVG: lines with the band between their least and greatest values, points with error bars, a reading line
// that the mouse and the arrow keys move, a range to look at closer, and the same numbers as a table.

import { NONE, element, fill, isNumber, short } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 10, right: 14, bottom: 26, left: 44, leftOfWords: 56 };
const MOST_TABLE_ROWS = 40;
const DASHES = ["", "7 4", "2 4", "9 3 2 3"];
const SMALLEST_DRAG = 6; // pixels
const LATE = 0.03; // the part of the x axis at whose end the steep beginning is over
const HEADROOM = 0.4;
const NEAR = 0.02; // the part of the x axis within which a value stands for a place

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** About `n` round numbers in a range. */
export function ticks(low, high, n) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(1, n);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Index of the value of a sorted list that is nearest to x. */
export function nearest(sorted, x) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - x) <= Math.abs(sorted[high] - x) ? low : high;
}

/** The least and greatest of a list; null if it has no number. */
function rangeOf(values) {
  const numbers = values.filter(isNumber);
  return numbers.length ? [numbers.reduce((a, b) => Math.min(a, b)), numbers.reduce((a, b) => Math.max(a, b))] : null;
}

export class Chart {
  /**
   * Args:
   *   host: the element to draw into.
   *   title, unit: what is drawn.
   *   words: a function that writes a value; `format` of `update` writes a place of the x axis.
   *   axis: a function that writes a value at the y axis; numbers with as many places as they need if left out.
   *   onRead: called with a place that is read here, or null, so that other charts follow.
   *   onZoom: called with a range [low, high] of the x axis that was dragged; left out, there is no dragging.
   */
  constructor(host, { title, unit = "", words = short, axis = null, height = 230, fromZero = false, onRead = () => {}, onZoom = null }) {
    Object.assign(this, { host, title, unit, words, axis, height, fromZero, onRead, onZoom });
    this.left = axis ? MARGIN.leftOfWords : MARGIN.left;
    this.series = [];
    this.format = short;
    this.placeName = "";
    this.domain = null;
    this.at = null;
    this.svg = svg("svg", { class: "plot", "aria-hidden": "true" });
    this.tip = element("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.area = element("div", { class: "plot-area", tabIndex: 0, role: "slider", "aria-label": title }, this.svg, this.tip);
    this.none = element("p", { class: "quiet none", hidden: true }, "Not measured yet.");
    this.table = element("div", { class: "scroll" });
    this.details = element("details", {}, element("summary", {}, "As a table"), this.table);
    const caption = element("figcaption", {}, element("span", { class: "chart-title" }, title), " ", (this.note = element("span", { class: "quiet" }, unit)));
    this.figure = element("figure", {}, caption, this.area, this.none, this.details);
    host.append(this.figure);
    this.details.addEventListener("toggle", () => this.fillTable());
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.area);
  }

  /**
   * Show series: lists x and y of one length, with low and high for a band or error bars.
   * Each has name, colour (a class), dash (a number), and isPoints for points that are joined by a line; weight is "strong" or "faint".
   */
  update(series, { domain = null, format = this.format, placeName = this.placeName, unit = this.unit } = {}) {
    this.series = series.filter((each) => each.x.length && each.y.some(isNumber));
    Object.assign(this, { format, placeName, unit });
    this.note.textContent = unit;
    const places = this.series.flatMap((each) => [each.x[0], each.x[each.x.length - 1]]).filter(isNumber);
    this.domain = domain ?? (places.length ? [Math.min(...places), Math.max(...places)] : null);
    const isEmpty = !this.series.length || !this.domain;
    this.none.hidden = !isEmpty;
    this.area.hidden = isEmpty;
    this.details.hidden = isEmpty;
    this.draw();
    this.fillTable();
  }

  // -- drawing ---------------------------------------------------------------------------------------------------------

  draw() {
    const width = this.area.clientWidth;
    if (!width || !this.domain || !this.series.length) return;
    const { height } = this;
    this.scaleFor(width, height);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    const clip = `clip-${(this.number ??= Chart.made = (Chart.made ?? 0) + 1)}`;
    const clipping = svg("clipPath", { id: clip }, svg("rect", {
      x: this.left, y: MARGIN.top - 4, width: Math.max(0, this.right - this.left + 6), height: this.bottom - MARGIN.top + 8,
    }));
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    for (const each of this.series) inside.append(...this.drawBand(each));
    for (const each of this.series) inside.append(...this.drawLine(each));
    this.marks = svg("g", { class: "marks" });
    this.band = svg("rect", { class: "dragged", y: MARGIN.top, height: this.bottom - MARGIN.top, width: 0 });
    this.svg.replaceChildren(clipping, this.drawAxes(width), inside, this.drawLabels(), this.band, this.marks);
    this.describe();
    if (this.at !== null) this.showAt(this.at);
  }

  scaleFor(width, height) {
    const [low, high] = this.domain;
    const within = (each, i) => each.x[i] >= low && each.x[i] <= high;
    const [values, late] = [[], []];
    for (const each of this.series) {
      each.y.forEach((value, i) => {
        if (!within(each, i)) return;
        values.push(value);
        if (each.isPoints || each.x[i] >= low + LATE * (high - low)) late.push(value);
        if (each.isPoints && each.low) values.push(each.low[i], each.high[i]);
      });
    }
    let [least, most] = rangeOf(values) ?? [0, 1];
    const [leastLate, mostLate] = rangeOf(late) ?? [least, most];
    // A loss falls steeply at first: the line may leave the chart at the top there, so that the rest can be read.
    if (mostLate > leastLate) most = Math.min(most, mostLate + HEADROOM * (mostLate - Math.min(least, leastLate)));
    if (this.fromZero) least = Math.min(0, least);
    const room = (most - least || Math.abs(most) || 1) * 0.06;
    [least, most] = [this.fromZero && least === 0 ? 0 : least - room, most + room];
    this.hasLabels = width > 380 && this.series.length > 1 && this.series.some((each) => each.label);
    this.right = width - MARGIN.right - (this.hasLabels ? 34 : 0);
    this.bottom = height - MARGIN.bottom;
    const span = high - low || 1;
    this.toX = (x) => this.left + ((x - low) / span) * (this.right - this.left);
    this.fromX = (pixel) => low + ((pixel - this.left) / (this.right - this.left)) * span;
    this.toY = (y) => this.bottom - ((y - least) / (most - least)) * (this.bottom - MARGIN.top);
    this.yRange = [least, most];
  }

  drawAxes(width) {
    const axes = svg("g", { class: "axes" });
    const values = ticks(...this.yRange, Math.max(3, Math.floor(this.height / 50)));
    const places = values.length > 1 ? Math.max(0, -Math.floor(Math.log10(values[1] - values[0]) + 1e-9)) : 2;
    for (const value of values) {
      const y = this.toY(value);
      axes.append(svg("line", { class: "grid", x1: this.left, x2: this.right, y1: y, y2: y }));
      axes.append(svg("text", { x: this.left - 7, y: y + 4, "text-anchor": "end" }, this.axis ? this.axis(value) : value.toFixed(Math.min(6, places))));
    }
    for (const value of ticks(...this.domain, Math.max(2, Math.floor(width / 110)))) {
      const x = this.toX(value);
      const anchor = x > this.right - 16 ? "end" : "middle";
      axes.append(svg("text", { x: anchor === "end" ? this.right + 4 : x, y: this.height - 8, "text-anchor": anchor }, this.format(value)));
    }
    axes.append(svg("line", { class: "axis", x1: this.left, x2: this.right, y1: this.bottom, y2: this.bottom }));
    return axes;
  }

  /** The pieces of a list between places where nothing was measured. */
  *pieces(each, ...lists) {
    let piece = [];
    for (let i = 0; i < each.x.length; i++) {
      if (isNumber(each.x[i]) && lists.every((list) => isNumber(list[i]))) piece.push(i);
      else if (piece.length) {
        yield piece;
        piece = [];
      }
    }
    if (piece.length) yield piece;
  }

  drawBand(each) {
    if (!each.low || each.isPoints) return [];
    const found = [];
    for (const piece of this.pieces(each, each.low, each.high)) {
      if (!piece.some((i) => each.low[i] < each.high[i])) continue;
      const above = piece.map((i) => `${this.toX(each.x[i]).toFixed(1)},${this.toY(each.high[i]).toFixed(1)}`);
      const below = piece.map((i) => `${this.toX(each.x[i]).toFixed(1)},${this.toY(each.low[i]).toFixed(1)}`).reverse();
      found.push(svg("path", { class: `band ${each.colour}`, d: `M${above.join("L")}L${below.join("L")}Z` }));
    }
    return found;
  }

  drawLine(each) {
    const found = [];
    for (const piece of this.pieces(each, each.y)) {
      const points = piece.map((i) => [this.toX(each.x[i]).toFixed(1), this.toY(each.y[i]).toFixed(1)]);
      found.push(svg("path", {
        class: `line ${each.colour} ${each.weight ?? ""}`, d: `M${points.map((p) => p.join(",")).join("L")}`,
        "stroke-dasharray": DASHES[(each.dash ?? 0) % DASHES.length],
      }));
      if (piece.length === 1 && !each.isPoints) found.push(svg("circle", { class: `dot ${each.colour}`, cx: points[0][0], cy: points[0][1], r: 2 }));
    }
    if (!each.isPoints) return found;
    each.x.forEach((x, i) => {
      if (!isNumber(each.y[i])) return;
      const at = this.toX(x).toFixed(1);
      if (each.low && isNumber(each.low[i]) && isNumber(each.high[i])) {
        const [low, high] = [this.toY(each.low[i]), this.toY(each.high[i])].map((y) => y.toFixed(1));
        found.push(svg("path", { class: `error ${each.colour}`, d: `M${at},${low}V${high}M${at - 4},${low}h8M${at - 4},${high}h8` }));
      }
      if (each.x.length <= 120) found.push(svg("circle", { class: `dot ${each.colour}`, cx: at, cy: this.toY(each.y[i]).toFixed(1), r: 3.2 }));
    });
    return found;
  }

  /** Names at the right end of lines, pushed apart where they would lie on each other. */
  drawLabels() {
    const labels = svg("g", { class: "labels" });
    if (!this.hasLabels) return labels;
    const wanted = this.series
      .filter((each) => each.label)
      .map((each) => {
        const last = each.y.findLastIndex(isNumber);
        return { each, y: this.toY(each.y[last]) };
      })
      .sort((a, b) => a.y - b.y);
    let free = MARGIN.top + 4;
    for (const label of wanted) {
      label.y = Math.max(label.y, free);
      free = label.y + 13;
    }
    const over = free - 13 - this.bottom;
    for (const { each, y } of wanted) {
      labels.append(svg("text", { class: each.colour, x: this.right + 6, y: (over > 0 ? y - over : y) + 4 }, each.label));
    }
    return labels;
  }

  // -- reading ---------------------------------------------------------------------------------------------------------

  listen() {
    let start = null;
    const pixel = (event) => event.clientX - this.area.getBoundingClientRect().left;
    this.area.addEventListener("pointermove", (event) => {
      if (!this.fromX) return;
      const [low, high] = this.domain;
      this.readAt(Math.min(high, Math.max(low, this.fromX(pixel(event)))));
      if (start !== null && this.onZoom) {
        const [from, to] = [start, pixel(event)].sort((a, b) => a - b);
        this.band.setAttribute("x", from);
        this.band.setAttribute("width", to - from);
      }
    });
    this.area.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0 && this.onZoom) {
        start = pixel(event);
        this.area.setPointerCapture(event.pointerId);
      }
    });
    const release = (event) => {
      if (start === null) return;
      const [from, to] = [start, pixel(event)].sort((a, b) => a - b);
      start = null;
      this.band.setAttribute("width", 0);
      if (event.type === "pointerup" && to - from >= SMALLEST_DRAG) this.onZoom([this.fromX(from), this.fromX(to)]);
    };
    this.area.addEventListener("pointerup", release);
    this.area.addEventListener("pointercancel", release);
    this.area.addEventListener("pointerleave", () => {
      if (start === null && document.activeElement !== this.area) this.readAt(null);
    });
    this.area.addEventListener("blur", () => this.readAt(null));
    this.area.addEventListener("focus", () => {
      if (this.at === null && this.domain && this.area.matches(":focus-visible")) this.readAt(this.domain[1]);
    });
    this.area.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    const places = this.series.reduce((longest, each) => (each.x.length > longest.length ? each.x : longest), []);
    if (!places.length) return;
    const now = nearest(places, this.at ?? this.domain[1]);
    const far = Math.max(1, Math.round(places.length / 10));
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -far, PageUp: far, Home: -places.length, End: places.length };
    if (event.key === "Escape" && this.onZoom) this.onZoom(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.readAt(places[Math.min(places.length - 1, Math.max(0, now + moves[event.key]))]);
  }

  readAt(x) {
    this.showAt(x);
    this.onRead(x, this);
  }

  /** Put the reading line at a place, or take it away. */
  showAt(x) {
    this.at = x;
    if (!this.marks) return;
    this.marks.replaceChildren();
    const isThere = x !== null && this.domain && x >= this.domain[0] && x <= this.domain[1];
    this.tip.hidden = !isThere;
    if (!isThere) return;
    const at = this.toX(x);
    this.marks.append(svg("line", { class: "reading", x1: at, x2: at, y1: MARGIN.top, y2: this.bottom }));
    const rows = [];
    for (const each of this.series) {
      const i = nearest(each.x, x);
      if (!isNumber(each.y[i]) || !this.isNear(each, i, x)) continue;
      this.marks.append(svg("circle", { class: `dot ${each.colour}`, cx: this.toX(each.x[i]), cy: this.toY(each.y[i]), r: 3.6 }));
      rows.push(element("div", {}, element("span", { class: `swatch ${each.colour} d${(each.dash ?? 0) % DASHES.length}` }), element("span", { class: "tip-name" }, each.name), element("b", {}, this.valueAt(each, i))));
    }
    this.tip.replaceChildren(element("div", { class: "quiet" }, `${this.placeName} ${this.format(x)}`), ...rows);
    const isLeft = at > this.area.clientWidth / 2;
    this.tip.style.left = isLeft ? "auto" : `${at + 12}px`;
    this.tip.style.right = isLeft ? `${this.area.clientWidth - at + 12}px` : "auto";
    this.describe();
  }

  /** Whether a value stands for a place, or its series has ended or not begun there. */
  isNear(each, i, x) {
    const gap = Math.abs(each.x[each.x.length - 1] - each.x[0]) / Math.max(1, each.x.length - 1);
    return Math.abs(each.x[i] - x) <= Math.max(gap, NEAR * (this.domain[1] - this.domain[0]));
  }

  valueAt(each, i) {
    const error = each.isPoints && each.low && isNumber(each.high[i]) ? ` ± ${short(each.high[i] - each.y[i], 2)}` : "";
    return `${this.words(each.y[i])}${error}`;
  }

  /** What a screen reader says of the chart: the values at the reading line, else the last ones. */
  describe() {
    if (!this.domain) return;
    const x = this.at ?? this.domain[1];
    const there = this.series.filter((each) => this.at === null || this.isNear(each, nearest(each.x, x), x));
    const values = there.map((each) => `${each.name} ${this.valueAt(each, nearest(each.x, x))}`);
    this.area.setAttribute("aria-valuemin", this.domain[0]);
    this.area.setAttribute("aria-valuemax", this.domain[1]);
    this.area.setAttribute("aria-valuenow", x);
    this.area.setAttribute("aria-valuetext", `${this.placeName} ${this.format(x)}: ${values.join(", ")}`);
  }

  // -- table -----------------------------------------------------------------------------------------------------------

  /** The numbers as a table, while it is open: evenly spread places, and the last one. */
  fillTable() {
    if (!this.details.open || !this.domain) return;
    const within = this.series.flatMap((each) => each.x).filter((x) => x >= this.domain[0] && x <= this.domain[1]);
    const places = [...new Set(within)].sort((a, b) => a - b);
    const every = Math.ceil(places.length / MOST_TABLE_ROWS);
    const chosen = places.filter((_, i) => i % every === 0 || i === places.length - 1);
    const near = (this.domain[1] - this.domain[0]) / MOST_TABLE_ROWS;
    const head = element("tr", {}, element("th", { scope: "col" }, this.placeName), ...this.series.map((each) => element("th", { scope: "col" }, each.name)));
    const rows = chosen.map((x) => element("tr", {}, element("th", { scope: "row" }, this.format(x)), ...this.series.map((each) => {
      const i = nearest(each.x, x);
      const isThere = Math.abs(each.x[i] - x) <= near && isNumber(each.y[i]);
      return element("td", {}, isThere ? this.valueAt(each, i) : NONE);
    })));
    const caption = element("caption", { class: "visually-hidden" }, `${this.title}, ${this.unit}`);
    const texts = [head, ...rows].map((line) => [...line.children].map((cell) => cell.textContent));
    fill(this.table, texts, () => [element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...rows))]);
    this.table.tabIndex = 0;
    this.table.setAttribute("role", "region");
    this.table.setAttribute("aria-label", `${this.title}, as a table`);
  }
}
