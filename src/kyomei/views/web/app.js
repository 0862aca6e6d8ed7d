// The frame around every page: where one is, what is missing, language, scheme, keys.
import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.module.js";
import { go, Link, read, useAddress } from "./address.js";
import * as data from "./data.js";
import { Compare } from "./pages/compare.js";
import { Feature } from "./pages/feature.js";
import { Goals } from "./pages/goals.js";
import { Labels } from "./pages/labels.js";
import { List } from "./pages/list.js";
import { Login } from "./pages/login.js";
import { Overview } from "./pages/overview.js";
import { Try } from "./pages/try.js";
import { Watch } from "./pages/watch.js";
import { Failure, Notice, Waiting } from "./parts.js";
import { language, rich, said, speak, t } from "./words.js";

const PAGES = { overview: Overview, list: List, feature: Feature, try: Try, compare: Compare, goals: Goals, watch: Watch, labels: Labels };
const IN_MENU = ["overview", "list", "try", "compare", "goals", "watch", "labels"];
const MODEL_SECONDS = 1.5;

function remembered(name) {
  try {
    return localStorage.getItem(`kyomei-${name}`);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`kyomei-${name}`, value);
  } catch { /* without storage a choice holds for this page */ }
}

function firstLanguage(known = ["en", "ja"], begun = "en") {
  const wanted = [read().lang, remembered("language"), ...(navigator.languages || []).map((tag) => tag.slice(0, 2)).slice(0, 1), begun];
  return wanted.find((lang) => known.includes(lang)) || "en";
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function ThemeSwitch() {
  const [dark, set] = useState(isDark());
  useEffect(() => {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => {
      set(isDark());
      window.dispatchEvent(new Event("kyomei-theme"));
    };
    system.addEventListener("change", changed);
    return () => system.removeEventListener("change", changed);
  }, []);
  const turn = () => {
    const chosen = dark ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    remember("theme", chosen);
    set(!dark);
    window.dispatchEvent(new Event("kyomei-theme"));
  };
  return html`<button class="plain" onClick=${turn} aria-label=${t(dark ? "theme.to_light" : "theme.to_dark")} title=${t(dark ? "theme.to_light" : "theme.to_dark")}>
    <svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="7" /><path d="M10 3a7 7 0 0 1 0 14z" class="full" /></svg>
  </button>`;
}

function LanguageSwitch({ onChange }) {
  const other = language === "en" ? "ja" : "en";
  return html`<button class="plain" lang=${other} onClick=${() => onChange(other)}>${other === "ja" ? "日本語" : "English"}</button>`;
}

function DictionaryChoice({ state, address }) {
  if (state.dictionaries.length < 2) return html`<span class="where-name">${state.dictionaries[0]?.title ?? ""}</span>`;
  const choose = (event) => {
    const { view } = address;
    go({ view: view === "feature" ? "list" : view, dictionary: event.target.value, text: view === "try" ? address.text : undefined });
  };
  return html`<label class="choice"><span class="hidden">${t("frame.dictionary")}</span>
    <select value=${state.dictionary} onChange=${choose}>
      ${state.dictionaries.map((each) => html`<option value=${each.name} selected=${each.name === state.dictionary}>${each.title} · ${each.name}</option>`)}
    </select></label>`;
}

function Header({ state, address, onLanguage }) {
  const at = address.view === "feature" ? "list" : address.view;
  return html`<header class="top">
    <a class="skip" href="#main">${t("frame.skip")}</a>
    <div class="bar">
      <${Link} class="brand" to=${{ view: "overview", dictionary: address.dictionary }}>
        <svg viewBox="0 0 32 32" aria-hidden="true"><circle cx="12" cy="16" r="4.5" /><circle cx="12" cy="16" r="9" /><circle cx="20" cy="16" r="4.5" /><circle cx="20" cy="16" r="9" /></svg>
        <span>Kyomei</span>
      <//>
      <nav aria-label=${t("frame.pages")}>
        ${IN_MENU.map((view) => html`<${Link} to=${{ view, dictionary: address.dictionary }} aria-current=${view === at ? "page" : undefined}>${t(`page.${view}`)}<//>`)}
      </nav>
      <div class="tools"><${DictionaryChoice} state=${state} address=${address} /><${LanguageSwitch} onChange=${onLanguage} /><${ThemeSwitch} /></div>
    </div>
  </header>`;
}

// What a page itself says at the place where it matters is not said above it too.
const QUIET = ["state.not_redacted", "state.model_loading"];
const OF_MODEL = ["state.no_model", "state.model_failed", "state.no_causal_head", "state.read_only"];
const SOFT = ["state.redacted", "state.read_only_folder", "state.stale_labels", ...OF_MODEL];

function Notes({ state, view }) {
  const shown = state.notes.filter(({ key }) => !QUIET.includes(key) && (!OF_MODEL.includes(key) || view === "overview"));
  if (!shown.length) return null;
  return html`<ul class="notes" aria-label=${t("frame.notes")}>${shown.map(
    ({ key, values }) => html`<li class=${SOFT.includes(key) ? "soft-note" : "hard-note"}>${rich(key, { ...values, found: said(values.found) })}</li>`,
  )}</ul>`;
}

function Footer({ state }) {
  const { redaction } = state;
  const masked = redaction && redaction.count !== undefined ? t("state.redacted", { count: redaction.count }) : redaction ? t("frame.redacted") : t("state.not_redacted");
  return html`<footer><span>${t("frame.run", { run: state.run ?? "" })}</span><span>${masked}</span><span>Kyomei ${state.version ?? ""}</span></footer>`;
}

const FIELDS = ["INPUT", "TEXTAREA", "SELECT"];

function useKeys() {
  useEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      if (event.key === "/" && !FIELDS.includes(event.target.tagName)) {
        event.preventDefault();
        const box = document.querySelector("[data-search]");
        if (box) box.focus();
        else go({ view: "list", dictionary: read().dictionary, focus: 1 });
      }
      if (["ArrowDown", "ArrowUp", "Home", "End"].includes(event.key)) moveInList(event);
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, []);
}

/** Arrows go through the links of a list; from the search box down into it. */
function moveInList(event) {
  const here = event.target.closest?.("[data-list]");
  const fromSearch = event.target.matches?.("[data-search]") && event.key === "ArrowDown";
  if (!here && !fromSearch) return;
  if (here && FIELDS.includes(event.target.tagName)) return;
  const links = [...(here || document.querySelector("[data-list]"))?.querySelectorAll("[data-item]") ?? []];
  if (!links.length) return;
  event.preventDefault();
  const at = links.indexOf(event.target.closest("[data-item]"));
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
  links[Math.max(0, Math.min(links.length - 1, to))].focus();
}

const needsIndex = ["overview", "list", "feature", "goals"];

function App() {
  const address = useAddress();
  const [state, setState] = useState(null);
  const [failure, setFailure] = useState(null);
  const [locked, setLocked] = useState(false);
  const [, redraw] = useState(0);
  const main = useRef(null);
  const first = useRef(true);

  const load = () => data.state(address.dictionary).then((found) => (setState(found), setFailure(null)), (error) => (error.status === 401 ? setLocked(true) : setFailure(error)));
  useEffect(() => void load(), [address.dictionary]);
  useEffect(() => {
    const asked = () => setLocked(true);
    window.addEventListener("kyomei-login", asked);
    return () => window.removeEventListener("kyomei-login", asked);
  }, []);
  useKeys();
  // While a model loads or an index is made, the page asks again: a visitor need not.
  useEffect(() => {
    const condition = state?.dictionaries.find((each) => each.name === state.dictionary)?.condition;
    if (state?.model?.condition !== "loading" && condition !== "running") return;
    const later = setTimeout(() => (data.forget(), load()), MODEL_SECONDS * 1000);
    return () => clearTimeout(later);
  }, [state]);
  useEffect(() => {
    if (first.current) first.current = false;
    else if (!address.focus) main.current?.focus({ preventScroll: true });
  }, [address.view, address.latent]);

  const View = PAGES[address.view] || Overview;
  const name = t(`page.${PAGES[address.view] ? address.view : "overview"}`);
  useEffect(() => void (document.title = `${address.view === "feature" ? `${name} ${address.latent ?? ""}` : name} · Kyomei`));

  const onLanguage = async (lang) => {
    await speak(lang);
    remember("language", lang);
    redraw((n) => n + 1);
  };
  if (locked) return html`<${Login} done=${() => (setLocked(false), data.forget(), load())} />`;
  if (failure) return html`<main class="page"><h1><a href="?">Kyomei</a></h1><${Failure} error=${failure} again=${load} /></main>`;
  if (!state) return html`<main class="page"><${Waiting} /></main>`;
  const chosen = state.dictionaries.find((each) => each.name === (address.dictionary || state.dictionary));
  const ready = chosen?.condition === "ready";
  return html`<${Header} state=${state} address=${address} onLanguage=${onLanguage} />
    <main class=${`page page-${address.view}`} id="main" tabindex="-1" ref=${main}>
      <${Notes} state=${state} view=${address.view} />
      ${!chosen
        ? html`<${Notice} tone="bad"><p>${t("frame.no_dictionary", { name: address.dictionary ?? "" })}</p><//>`
        : ready || !needsIndex.includes(address.view)
          ? html`<${View} key=${`${language} ${chosen.name}`} state=${state} dictionary=${chosen.name} facts=${chosen} address=${address} />`
          : html`<h1>${name}</h1>`}
    </main>
    <${Footer} state=${state} />`;
}

await speak(firstLanguage());
render(html`<${App} />`, document.getElementById("app"));
