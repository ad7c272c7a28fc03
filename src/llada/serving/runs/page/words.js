// Numbers in words, as the commands write them (llada/system/format.py), and texts made safe to read.

export const NONE = "–";

export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** A whole number with separators: 12,000. */
export function whole(value) {
  return isNumber(value) ? Math.round(value).toLocaleString("en") : NONE;
}

/** A number with so many digits that differ: 1.728, 0.00213, 3.1e-7. */
export function short(value, digits = 4) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(Math.max(0, digits - 2));
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

export function fixed(value, places = 3) {
  return isNumber(value) ? value.toFixed(places) : NONE;
}

/** A large number: 820, 15.2M, 8.02B. */
export function count(value) {
  if (!isNumber(value)) return NONE;
  for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= 0.9995 * size) return `${Number((value / size).toPrecision(3))}${letter}`;
  }
  return String(Number(value.toPrecision(3)));
}

/** A duration: 45 s, 3 min 20 s, 5 h 10 min, 3.2 days. */
export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

/** A duration for an axis: 0, 30 s, 5 min, 2 h, 3 d. */
export function clock(seconds) {
  if (!isNumber(seconds)) return NONE;
  const trim = (value) => String(Number(value.toPrecision(3)));
  if (seconds === 0) return "0";
  if (seconds < 120) return `${trim(seconds)} s`;
  if (seconds < 7200) return `${trim(seconds / 60)} min`;
  if (seconds < 172800) return `${trim(seconds / 3600)} h`;
  return `${trim(seconds / 86400)} d`;
}

export function bytes(value) {
  if (!isNumber(value)) return NONE;
  if (value === 0) return "0";
  if (value < 1e9) return `${Math.round(value / 1e6)} MB`;
  return value < 99.95e9 ? `${(value / 1e9).toFixed(1)} GB` : `${whole(value / 1e9)} GB`;
}

export function percent(fraction) {
  if (!isNumber(fraction)) return NONE;
  return `${fraction < 1 ? Math.min(99, Math.floor(100 * fraction)) : 100} %`;
}

/** A bound with its standard error: 1.728 ± 0.021. */
export function withError(bound) {
  if (!bound || !isNumber(bound.nelbo)) return NONE;
  return isNumber(bound.stderr) ? `${fixed(bound.nelbo)} ± ${fixed(bound.stderr)}` : fixed(bound.nelbo);
}

/** A text of a stranger, with a sign for each character that would not be seen or would turn the text around. */
export function visible(text) {
  return String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/\u007f/g, "\u2421")
    .replace(/[\u0080-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]|[\u{e0000}-\u{e007f}]/gu, "\ufffd");
}

/** An element with properties and children; a text never becomes markup. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && !key.startsWith("aria")) made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const contents = new WeakMap();

/** Replace the children of an element if its content is another one than before: what is selected or scrolled stays. */
export function fill(host, content, make) {
  const key = JSON.stringify(content);
  if (contents.get(host) === key) return;
  contents.set(host, key);
  host.replaceChildren(...make());
}
