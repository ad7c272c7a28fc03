/** Links that reproduce texts: everything that decides them, in the fragment of the address. */

const VERSION = 1;
const LONGEST = 1 << 16; // characters of a prompt, or tokens: more are not taken from a link

/** Write requests, each with `given` and `pinned` places if it is a canvas, as a fragment. */
export function encodeLink(fingerprint, requests) {
  const texts = requests.map(({ tokens, given, pinned, ...rest }) =>
    tokens ? { ...rest, tokens: packTokens(tokens), given: packPlaces(given), pinned: packPlaces(pinned) } : rest);
  const bytes = new TextEncoder().encode(JSON.stringify({ v: VERSION, model: fingerprint, texts }));
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/**
 * Read a fragment: { model, requests }, null if there is none.
 *
 * It may come from anybody: an unreadable one raises an Error with a sentence.
 */
export function decodeLink(fragment) {
  const packed = fragment.replace(/^#/, "");
  if (!packed) return null;
  try {
    const binary = atob(packed.replace(/-/g, "+").replace(/_/g, "/"));
    const link = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(binary, (c) => c.charCodeAt(0))));
    if (link.v !== VERSION || !Array.isArray(link.texts) || link.texts.length < 1 || link.texts.length > 2) throw Error();
    return { model: String(link.model), requests: link.texts.map(readRequest) };
  } catch {
    throw new Error("This link cannot be read: it may have been cut when it was copied.");
  }
}

function readRequest(text) {
  const isText = (value) => typeof value === "string" && value.length <= LONGEST;
  if (!Number.isSafeInteger(text.seed) || typeof text.settings !== "object" || text.settings === null) throw Error();
  const request = { seed: text.seed, settings: text.settings };
  if (isText(text.tokens)) {
    const tokens = unpackTokens(text.tokens);
    return { ...request, tokens, given: unpackPlaces(text.given, tokens.length), pinned: unpackPlaces(text.pinned, tokens.length) };
  }
  if (isText(text.template)) return { ...request, template: text.template };
  if (isText(text.prompt) && Number.isSafeInteger(text.length)) return { ...request, prompt: text.prompt, length: text.length };
  throw Error();
}

/** "5.7._3.5" for the ids 5 and 7, three masks, and 5. */
function packTokens(tokens) {
  const pieces = [];
  let masks = 0;
  for (const id of [...tokens, -1]) {
    if (id === null) masks += 1;
    else {
      if (masks) pieces.push(`_${masks}`);
      masks = 0;
      pieces.push(id);
    }
  }
  return pieces.slice(0, -1).join(".");
}

function unpackTokens(packed) {
  const tokens = [];
  for (const piece of packed.split(".")) {
    const [, masks, id] = /^(?:_(\d{1,5})|(\d{1,9}))$/.exec(piece) ?? [];
    if (masks === undefined && id === undefined) throw Error();
    const size = tokens.length + Number(masks ?? 1);
    if (size > LONGEST) throw Error();
    while (tokens.length < size) tokens.push(id === undefined ? null : Number(id));
  }
  return tokens;
}

/** "0-6.9" for the places 0 to 6 and 9. */
function packPlaces(places) {
  const runs = [];
  for (const place of [...places].sort((a, b) => a - b)) {
    if (runs.length && runs.at(-1)[1] === place - 1) runs.at(-1)[1] = place;
    else runs.push([place, place]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(".");
}

function unpackPlaces(packed, size) {
  const places = new Set();
  if (typeof packed !== "string" || packed === "") return places;
  let next = 0;
  for (const piece of packed.split(".")) {
    const [first, last = first] = piece.split("-").map(Number);
    if (!(first >= next && last >= first)) throw Error(); // also what would write the same places again and again
    for (let place = first; place <= Math.min(last, size - 1); place += 1) places.add(place);
    next = last + 1;
  }
  return places;
}
