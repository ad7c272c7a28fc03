/** What can be tried at once: prompts, and pairs of settings. */

const PROMPTS = [
  { name: "ROMEO:", text: "ROMEO:\n" },
  { name: "To be, or not to be", text: "To be, or not to be, " },
  { name: "a gap before “love”", text: "JULIET:\n<MASK*60>my love<MASK*60>" },
  { name: "two speakers", text: "First Citizen:\n<MASK*70>\n\nSecond Citizen:\n<MASK*70>" },
  { name: "only an ending", text: "<MASK*150>and so farewell." },
  { name: "nothing at all", text: "" },
];
const PLAIN_PROMPTS = [
  { name: "Once upon a time", text: "Once upon a time" },
  { name: "a gap", text: "The <MASK*12> that everybody waited for." },
  { name: "nothing at all", text: "" },
];

/** Examples that the model can write: those whose characters it knows, and that fit. */
export function examplesFor(model, isCharacters) {
  const known = model.tokens;
  const prompts = isCharacters && "R" in known ? PROMPTS : PLAIN_PROMPTS;
  return prompts.filter(({ text }) => {
    const { characters, masks, endsOpen } = readTemplate(text);
    if (isCharacters && characters.some((character) => !(character in known))) return false;
    if (model.is_causal && masks && !endsOpen) return false;
    return characters.length + masks < model.max_length;
  });
}

/** What a prompt or template holds: its characters outside the gaps, how many masks, and whether only its end is one. */
export function readTemplate(text) {
  const gap = /<MASK(?:\*(\d+))?>/g;
  const masks = [...text.matchAll(gap)].reduce((sum, match) => sum + Number(match[1] ?? 1), 0);
  const outside = text.replace(gap, "");
  return { characters: [...outside], masks, hasGap: outside !== text, endsOpen: /^[^<]*<MASK(\*\d+)?>$/.test(text) };
}

/** Settings that are worth comparing: `a` and `b` are put over the settings that are shown. */
export const PAIRS = [
  { name: "left to right", a: {}, b: { policy: "left_to_right", block_length: null } },
  { name: "random order: 1 or 4 at once", a: { policy: "random", per_step: 1 }, b: { policy: "random", per_step: 4 } },
  { name: "surest first: one by one or all independent ones", a: { policy: "entropy", per_step: 1 },
    b: { policy: "entropy_bound", entropy_bound: 0.3, order: null, per_step: 1 } },
  { name: "temperature 1 or 0.5", a: { temperature: 1 }, b: { temperature: 0.5 } },
  { name: "LLaDA's remasking", a: {}, b: { policy: null, remasking: "low_confidence" } },
];
