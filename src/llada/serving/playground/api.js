/** The server's three addresses: the model, its tokenizer, and texts that are un-masked. */

/** An answer that is an error, as a sentence. */
export class ServerError extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

let key = ""; // of a server that asks for one; it is kept as long as the page is open

export function useKey(text) {
  key = text;
}

async function ask(path, init = {}) {
  let response;
  try {
    response = await fetch(path, { ...init, headers: { ...init.headers, ...(key && { Authorization: `Bearer ${key}` }) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached: is `llada serve` still running?");
  }
  if (!response.ok) throw new ServerError(await sentenceOf(response), response.status);
  return response;
}

async function sentenceOf(response) {
  const body = await response.json().catch(() => null);
  const found = body?.error?.message ?? body?.message ?? body?.detail;
  const sentence = Array.isArray(found) ? found.map((one) => one.msg).join("; ") : found;
  if (typeof sentence === "string" && sentence) return sentence;
  const seconds = response.headers.get("Retry-After");
  if (response.status === 429) return `The server is busy: try again ${seconds ? `in ${seconds} s` : "in a moment"}.`;
  return `The server answered with the status ${response.status}.`;
}

const post = (path, body, signal) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

/** What is served: name, fingerprint, lengths, policies, default settings, and the vocabulary if it is small. */
export async function fetchModel() {
  return (await ask("v1/diffusion/model")).json();
}

/** The tokens of a text, each with its id and its text. */
export async function tokenize(text) {
  return (await (await post("v1/diffusion/tokenize", { text })).json()).tokens;
}

/** The events of a text while it is un-masked; aborting the signal closes the request, and the model stops. */
export async function* diffuse(request, signal) {
  const response = await post("v1/diffusion", { alternatives: 5, ...request }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue; // a comment that keeps the line open, or the end of an event
      const event = JSON.parse(line.slice(5));
      if (event.type === "error") throw new ServerError(event.message);
      yield event;
    }
  }
}

/**
 * What the model expects at the masked places of a canvas, a Map of place to alternatives: all of them are asked in one
 * evaluation, by a request that reveals everything at once. A causal model is asked about its next place only.
 */
export async function expectations(tokens, model) {
  const settings = model.is_causal ? {} : { policy: "random", steps: 1, temperature: 0, block_length: null };
  const leaving = new AbortController();
  const expected = new Map();
  const request = { tokens: tokens.map((token) => token && token.id), seed: 0, settings };
  for await (const event of diffuse(request, leaving.signal)) {
    if (event.type !== "step") continue;
    for (const token of event.revealed) expected.set(token.at, token.alternatives);
    break;
  }
  leaving.abort();
  return expected;
}
