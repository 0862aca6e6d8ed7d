// What pages say, from the one catalogue; and numbers as both languages write them.
import { html } from "./vendor/preact-htm.module.js";
import { strings } from "./data.js";

let held = {};
let sentences = [];
export let language = "en";

const SAID = "said.";
/** Numbers as this language writes them; speech.py does the same for pages. */
const written = (text) => text.replace(/(?<=\d) %/g, "%").replace(/(?<=[\d%])–(?=[−\d])/g, "〜");
const literal = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

export async function speak(lang) {
  held = await strings(lang);
  // What says most itself is looked for first.
  const templates = Object.keys(held).filter((key) => key.startsWith(SAID)).sort((a, b) => b.replace(/\{\d\}/g, "").length - a.replace(/\{\d\}/g, "").length);
  sentences = templates.map((key) => [new RegExp(`^${key.slice(SAID.length).split(/\{\d\}/).map(literal).join("([^]+?)")}$`), held[key]]);
  language = lang;
  document.documentElement.lang = lang;
}

/** A sentence with values put in as text. */
export function t(key, values = {}) {
  const found = held[key];
  if (found === undefined) {
    console.error(`no such string: ${key}`);
    return key;
  }
  return found.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** What a run or an error says in English, in this language; as it is where the catalogue does not know it. */
export function said(text) {
  if (language === "en" || !text) return text;
  for (const [pattern, sentence] of sentences) {
    const parts = pattern.exec(text);
    if (parts) return sentence.replace(/\{(\d)\}/g, (_, number) => said(parts[number]));
  }
  return written(text);
}

/** The name of something in this language, or what it is called where the catalogue does not know it. */
export const named = (family, name) => held[`${family}.${String(name).replaceAll(/[ -]/g, "_")}`] ?? String(name);

/** A sentence whose values may be elements; what stands in backticks is code. */
export function rich(key, values = {}) {
  return t(key)
    .split(/(\{\w+\}|`[^`]+`)/)
    .map((part) => {
      if (part.startsWith("`")) return html`<code>${part.slice(1, -1)}</code>`;
      const name = /^\{(\w+)\}$/.exec(part)?.[1];
      return name && name in values ? values[name] : part;
    });
}

/** A sentence of the run's own: what stands in backticks is code. */
export const coded = (text) => text.split(/(`[^`]+`)/).map((part) => (part.startsWith("`") ? html`<code>${part.slice(1, -1)}</code>` : part));

const NONE = "–";
export const day = (moment) => (moment ? moment.slice(0, 10) : NONE);
/** From one number to another, as they are written. */
export const range = (low, high) => (language === "en" ? `${low}–${high}` : `${low}〜${high}`);
export const is = (value) => typeof value === "number" && Number.isFinite(value);
export const whole = (value) => (is(value) ? value.toLocaleString(language) : NONE);
export const fixed = (value, digits = 2) => (is(value) ? value.toFixed(digits).replace(/^-/, "−") : NONE);
export function short(value) {
  if (!is(value)) return NONE;
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1).replace("-", "−");
  return String(Number(value.toPrecision(3))).replace(/^-/, "−");
}
export function percent(value) {
  if (!is(value)) return NONE;
  const share = value * 100;
  const sign = language === "ja" ? "%" : "\u00a0%"; // English writes "62 %", and never breaks it
  if (share === 0) return `0${sign}`;
  const digits = share >= 99.95 || share >= 10 ? 0 : share >= 1 ? 1 : share >= 0.1 ? 2 : share >= 0.01 ? 3 : 4;
  return `${share.toFixed(digits)}${sign}`;
}
