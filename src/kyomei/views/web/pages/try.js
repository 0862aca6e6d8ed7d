// A text in the live model: what fires on which token, and what changes when latents are changed.
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.module.js";
import { go, Link } from "../address.js";
import { isStatic, post } from "../data.js";
import { Empty, Failure, Notice, useAsked, visible, Waiting } from "../parts.js";
import { rich, said, short, t, whole } from "../words.js";
import { Active } from "./active.js";
import { Edits, Outcome } from "./edits.js";

const MOST_IN_ADDRESS = 1500;
const KINDS = ["scale", "clamp", "ablate", "steer"];

export const readEdits = (texts = []) =>
  texts
    .map((text) => /^(\d+):(scale|clamp|ablate|steer):(-?[\d.e+-]+)$/.exec(text))
    .filter((found) => found && Number.isFinite(Number(found[3])))
    .map(([, latent, kind, value]) => ({ latent: Number(latent), kind, value: Number(value) }));
const written = (edits) => edits.map(({ latent, kind, value }) => `${latent}:${kind}:${value}`);

function Strip({ answer, latent, at, choose }) {
  const place = useRef(null);
  const values = answer.active.map((pairs, i) => answer.tokens[i].special ? 0 : (latent === null ? pairs[0]?.[1] ?? 0 : pairs.find(([i]) => i === latent)?.[1] ?? 0));
  const most = Math.max(...values, 1e-9);
  const key = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(values.length - 1, [...place.current.children].indexOf(event.target) + step));
    choose(next);
    place.current.children[next].focus();
  };
  return html`<div class="strip shaded" role="group" aria-label=${t("try.tokens")} ref=${place} onKeyDown=${key}>${answer.tokens.map((token, i) => {
    const a = values[i] > 0 ? 0.12 + (0.88 * values[i]) / most : 0;
    const shown = token.text === "" ? t("try.begin") : visible(token.text);
    return html`<button class=${`token ${a ? "lit" : ""} ${token.special ? "special" : ""}`} aria-pressed=${i === at} tabindex=${i === (at ?? 0) ? 0 : -1} style=${a ? { "--a": a.toFixed(3) } : undefined}
      title=${a ? short(values[i]) : undefined} onClick=${() => choose(i === at ? null : i)}>${shown}</button>`;
  })}</div>`;
}

function Answer({ answer, dictionary, edits, setEdits }) {
  const [at, setAt] = useState(null);
  const [latent, setLatent] = useState(null);
  const edit = (number) => !edits.some((each) => each.latent === number) && setEdits([...edits, { latent: number, kind: "scale", value: 0 }]);
  return html`<section aria-labelledby="fires"><h2 id="fires">${t("try.fires")}</h2>
    <p class="soft small" role="status">${latent === null ? t("try.shaded_all") : t("try.shaded_one", { latent })}${latent !== null && html` <button class="quiet" onClick=${() => setLatent(null)}>${t("try.unshade")}</button>`}</p>
    <${Strip} answer=${answer} latent=${latent} at=${at} choose=${setAt} />
    <${Active} answer=${answer} at=${at} dictionary=${dictionary} latent=${latent} shade=${(number) => setLatent(number === latent ? null : number)} edit=${edit} edited=${edits} />
    ${answer.left_out > 0 && html`<p class="soft small">${t("try.left_out", { count: whole(answer.left_out) })}</p>`}</section>`;
}

function Missing({ state }) {
  const { condition, reason } = state.model;
  if (isStatic) return html`<${Empty} title=${t("try.static")}>${rich("try.static_do")}<//>`;
  if (condition === "loading") return html`<${Empty} title=${t("state.model_loading")}>${t("try.loading_do")}<//>`;
  if (condition === "off") return html`<${Empty} title=${t("try.off")}>${rich("state.read_only")}<//>`;
  if (condition === "failed") return html`<${Empty} title=${t("try.failed")}><span>${t("state.model_failed", { found: said(String(reason?.found ?? "").replace(/\.$/, "")) })}</span>${reason?.do && html`<br /><span>${t("error.do", { do: said(reason.do) })}</span>`}<//>`;
  return html`<${Empty} title=${t("try.no_model")}>${t("state.no_model")}<//>`;
}

export function Try({ state, dictionary, address }) {
  const [typed, setTyped] = useState(address.text || "");
  const [asked, setAsked] = useState(address.text || "");
  const [asChat, setAsChat] = useState(address.chat === "1");
  const [edits, hold] = useState(readEdits(address.edit));
  const [outcome, setOutcome] = useState({});
  const ready = !isStatic && state.model.condition === "ready";
  const body = (text) => ({ dictionary, ...(asChat ? { messages: [{ role: "user", content: text }] } : { text }) });
  const read = useAsked(() => (ready && asked.trim() ? post("try", body(asked)) : Promise.resolve(null)), [asked, asChat, dictionary, ready]);
  const tell = (text, now, chat) => go({ view: "try", dictionary: address.dictionary, text: text.length <= MOST_IN_ADDRESS ? text : undefined, chat: chat ? 1 : undefined, edit: written(now) }, { replace: true });
  const setEdits = (now) => {
    hold(now);
    setOutcome({});
    tell(asked, now, asChat);
  };
  const send = (event) => {
    event?.preventDefault();
    setAsked(typed);
    setOutcome({});
    tell(typed, edits, asChat);
  };
  const predict = () => {
    setOutcome({ busy: true });
    post("try", { ...body(asked), edits: edits.map(({ latent, kind, value }) => ({ latent, kind, value })), predict: true }).then((value) => setOutcome({ value }), (error) => setOutcome({ error }));
  };
  useEffect(() => setOutcome({}), [asked, asChat]);
  if (!ready) return html`<h1>${t("page.try")}</h1><${Missing} state=${state} />`;
  const cannot = state.model.no_predictions;
  return html`<h1>${t("page.try")}</h1>
    <form class="try-form" onSubmit=${send}><label for="try-text">${t("try.text")}</label>
      <textarea id="try-text" rows="4" maxlength="20000" value=${typed} onInput=${(event) => setTyped(event.target.value)} onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && send(event)} placeholder=${t("try.hint")}></textarea>
      <div class="row wrap"><button class="button primary">${t("try.read")}</button><kbd class="soft small">Ctrl + Enter</kbd>
        ${state.model.chat && html`<label class="check"><input type="checkbox" checked=${asChat} onChange=${(event) => (setAsChat(event.target.checked), tell(asked, edits, event.target.checked))} /> ${t("try.chat")}</label>`}</div></form>
    ${read.error ? html`<${Failure} error=${read.error} again=${read.again} />` : read.busy ? html`<${Waiting} />` : read.value
      ? html`<div class="columns"><div class="main-column"><${Answer} answer=${read.value} dictionary=${dictionary} edits=${edits} setEdits=${setEdits} /></div>
        <div class="side-column"><${Edits} edits=${edits} setEdits=${setEdits} kinds=${KINDS} dictionary=${dictionary} predict=${predict} cannot=${cannot} busy=${outcome.busy} /></div></div>
        ${cannot && html`<${Notice}><p>${t("state.no_causal_head", { found: said(cannot) })}</p><//>`}
        ${outcome.error && html`<${Failure} error=${outcome.error} />`}${outcome.value?.intervention && html`<${Outcome} found=${outcome.value.intervention} python=${outcome.value.python} />`}`
      : html`<${Empty} title=${t("try.empty")}>${t("try.empty_do")}<//>`}
    ${!read.value && edits.length > 0 && html`<p class="soft small">${t("try.edits_wait", { count: whole(edits.length) })} ${edits.map((each) => html`<${Link} to=${{ view: "feature", dictionary, latent: each.latent }}>${each.latent}<//> `)}</p>`}`;
}
