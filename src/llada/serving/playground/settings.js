/** The sampler's options in plain words, with their names: a form, and the settings of a request. */

import { make } from "./player.js";

/** What goes first, by the name of the policy. */
const ORDERS = {
  random: "Anywhere, in random order",
  left_to_right: "From left to right",
  entropy: "Where it is surest (least entropy)",
  confidence: "Where one token is likeliest",
  margin: "Where the first leads the second most",
  entropy_bound: "All that hardly depend on each other",
  threshold: "All that are certain enough",
  factor: "As many as the doubt allows",
  runs: "The surest of each gap",
};
const LOW_CONFIDENCE = "remasking: low_confidence";

/** Options of which some are shown only for the policies that use them. */
const FIELDS = [
  { name: "threshold", label: "Certain is a probability of", step: 0.01, min: 0, max: 1, for: ["threshold", "runs"] },
  { name: "factor", label: "Doubt allowed together", step: 0.1, min: 0, for: ["factor"] },
  { name: "entropy_bound", label: "Nats of dependence allowed", step: 0.01, min: 0, for: ["entropy_bound"] },
  { name: "run_threshold", label: "Least probability in a gap", step: 0.01, min: 0, max: 1, for: ["runs"] },
  { name: "order", label: "Ranked by", for: ["threshold", "factor", "entropy_bound"],
    choices: [["", "its own ranking"], ["left_to_right", "left to right"], ["random", "random"], ["confidence", "confidence"],
      ["margin", "margin"], ["entropy", "entropy"]] },
  { name: "block_length", label: "Block after block, each of", step: 1, min: 1, empty: "one block" },
  { name: "top_k", label: "Only so many likeliest tokens", step: 1, min: 1, empty: "all" },
  { name: "top_p", label: "Only the likeliest, up to", step: 0.01, min: 0.01, max: 1, empty: "all" },
  { name: "repetition_penalty", label: "Penalty for repetition", step: 0.05, min: 0.05 },
  { name: "cfg_scale", label: "Guidance by what is given", step: 0.1, min: 0 },
  { name: "mask_schedule", label: "Pace", choices: [["linear", "even"], ["cosine", "few at first"], ["polynomial:2", "many at first"]] },
  { name: "stable_entropy", label: "Fill in the rest when stable below", step: 0.001, min: 0.001, empty: "never" },
  { name: "remdm_eta", label: "Chance to be masked again", step: 0.01, min: 0, max: 1 },
  { name: "p2_tokens", label: "Least likely ones masked again", step: 1, min: 0 },
];
const SHOWN_ELSEWHERE = new Set(["steps", "temperature", "policy", "remasking"]);

/** Form of one setting; `onchange` is called when the reader has changed something. */
export class SettingsForm {
  constructor(model, name, onchange) {
    this.model = model;
    this.name = name;
    this.fields = new Map();
    this.rows = [];
    this.build();
    this.set(model.default_settings);
    this.element.addEventListener("change", () => {
      this.adapt();
      onchange();
    });
  }

  build() {
    this.order = make("select", {});
    const policies = this.model.is_causal ? ["left_to_right"] : this.model.policies;
    const known = Object.keys(ORDERS).filter((policy) => policies.includes(policy));
    for (const policy of [...known, ...policies.filter((one) => !known.includes(one))]) {
      this.order.append(make("option", { value: policy, text: ORDERS[policy] ?? policy }));
    }
    if (!this.model.is_causal) {
      this.order.append(make("option", { value: LOW_CONFIDENCE, text: "LLaDA's: draw all, keep the surest" }));
    }
    this.perStep = make("input", { type: "number", min: 1, step: 1, value: 1, inputmode: "numeric" });
    this.temperature = make("input", { type: "range", min: 0, max: 1.5, step: 0.05 });
    this.warmth = make("output", { class: "setting-value" });
    this.temperature.addEventListener("input", () => this.showTemperature());
    this.own = make("div", { class: "settings-grid" });
    this.extra = make("div", { class: "settings-grid", hidden: true });
    this.more = make("button", { type: "button", class: "quiet-button settings-more", "aria-expanded": "false", text: "More options",
      onclick: () => {
        this.extra.hidden = !this.extra.hidden;
        this.more.setAttribute("aria-expanded", String(!this.extra.hidden));
        this.more.textContent = this.extra.hidden ? "More options" : "Fewer options";
      } });
    for (const field of [...FIELDS, ...this.unknownFields()]) this.addField(field);
    this.element = make("div", { class: "settings" },
      make("div", { class: "settings-main" },
        row("What is revealed first", "policy", this.order, "setting-order"),
        row("How many at once", "steps", this.perStep, "setting-few"),
        row("Temperature", "temperature", this.temperature, "setting-warm", this.warmth),
        this.more),
      this.own,
      this.extra);
    for (const entry of this.rows) (entry.field.for ? this.own : this.extra).append(entry.row);
  }

  /** Options that this page has no words for. */
  unknownFields() {
    const known = new Set([...SHOWN_ELSEWHERE, ...FIELDS.map((field) => field.name)]);
    return Object.entries(this.model.default_settings)
      .filter(([name]) => !known.has(name))
      .map(([name, value]) => ({ name, label: name.replaceAll("_", " "), step: "any", isText: typeof value === "string",
        isSwitch: typeof value === "boolean", empty: value === null ? "none" : undefined }));
  }

  addField(field) {
    if (!(field.name in this.model.default_settings)) return;
    const { step, min, max } = field;
    const control = field.choices
      ? make("select", {}, ...field.choices.map(([value, text]) => make("option", { value, text })))
      : make("input", field.isSwitch ? { type: "checkbox" }
        : field.isText ? { type: "text" }
          : { type: "number", step, min, max, placeholder: field.empty ?? "", inputmode: "decimal" });
    const usual = field.empty === undefined ? this.model.default_settings[field.name] : null;
    this.fields.set(field.name, { ...field, control, usual });
    this.rows.push({ field, row: row(field.label, field.name, control) });
  }

  /** Show settings; `masks` is how many tokens they fill, from which "at once" follows. */
  set(settings, masks = 0) {
    const all = { ...this.model.default_settings, ...settings };
    const policy = all.policy ?? (all.remasking === "low_confidence" ? LOW_CONFIDENCE : "random");
    this.order.value = policy;
    if (this.order.selectedIndex < 0) this.order.selectedIndex = 0;
    this.perStep.value = settings.per_step ?? (all.steps ? Math.max(1, Math.ceil(masks / all.steps)) : 1);
    this.temperature.value = all.temperature;
    for (const [name, { control, isSwitch }] of this.fields) {
      if (isSwitch) control.checked = Boolean(all[name]);
      else control.value = all[name] ?? "";
    }
    this.adapt();
  }

  /** The settings as they are shown; `per_step` stands for the steps, which depend on the text. */
  value() {
    const isRemasking = this.order.value === LOW_CONFIDENCE;
    const settings = {
      per_step: Math.max(1, Math.round(Number(this.perStep.value)) || 1),
      temperature: Number(this.temperature.value),
      policy: isRemasking ? null : this.order.value,
      ...("remasking" in this.model.default_settings && { remasking: isRemasking ? "low_confidence" : "random" }),
    };
    for (const [name, field] of this.fields) settings[name] = valueOf(field);
    return settings;
  }

  /** The settings of a request that fills so many masks. */
  settings(masks) {
    const { per_step: perStep, ...rest } = this.value();
    return { ...rest, steps: perStep === 1 ? null : Math.max(1, Math.ceil(masks / perStep)) };
  }

  /** The setting in a few words. */
  summary() {
    const { per_step: perStep, temperature } = this.value();
    return `${this.order.selectedOptions[0].textContent}; ${perStep} at once; temperature ${temperature}`;
  }

  adapt() {
    const policy = this.order.value;
    for (const { field, row: element } of this.rows) if (field.for) element.hidden = !field.for.includes(policy);
    this.own.hidden = [...this.own.children].every((child) => child.hidden);
    this.showTemperature();
  }

  showTemperature() {
    this.warmth.textContent = Number(this.temperature.value).toFixed(2);
  }
}

function valueOf({ control, choices, isText, isSwitch, usual }) {
  if (isSwitch) return control.checked;
  if (control.value === "") return choices?.[0][0] === "" ? null : usual;
  return choices || isText ? control.value : Number(control.value);
}

function row(label, option, control, kind = "", ...more) {
  return make("label", { class: `setting ${kind}` },
    make("span", { class: "setting-name" }, label, " ", make("code", { text: option })),
    make("span", { class: "setting-control" }, control, ...more));
}
