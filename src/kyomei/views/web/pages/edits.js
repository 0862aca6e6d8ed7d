// What is done to latents, and what the model then does, beside the model left alone.
import { html, useState } from "../vendor/preact-htm.module.js";
import { Link } from "../address.js";
import { brief } from "../data.js";
import { Chip, Meter, useAsked, visible } from "../parts.js";
import { fixed, percent, short, t } from "../words.js";

/** Ends of the slider: of a factor, or in units of the latent's largest activation. */
function ends(kind, most) {
  if (kind === "scale") return [-1, 4, 0.05];
  const unit = most || 10;
  return [kind === "steer" ? -2 * unit : 0, 2 * unit, unit / 50];
}

function Edit({ edit, change, remove, kinds, dictionary }) {
  const asked = useAsked(() => brief(dictionary, edit.latent), [dictionary, edit.latent]);
  const [low, high, step] = ends(edit.kind, asked.value?.max_activation);
  const name = (what) => `${t(what)} ${edit.latent}`;
  const value = (event) => event.target.value !== "" && Number.isFinite(Number(event.target.value)) && change({ ...edit, value: Number(event.target.value) });
  return html`<li class="edit"><div class="row wrap"><${Link} class="num strong" to=${{ view: "feature", dictionary, latent: edit.latent }}>${edit.latent}<//>
      <select aria-label=${name("edits.kind")} value=${edit.kind} onChange=${(event) => change({ ...edit, kind: event.target.value, value: event.target.value === "clamp" ? Number((asked.value?.max_activation ?? 1).toPrecision(3)) : 0 })}>${kinds.map((kind) => html`<option value=${kind} selected=${kind === edit.kind}>${t(`edits.${kind}`)}</option>`)}</select>
      ${edit.kind !== "ablate" && html`<input class="amount-box" type="number" step="any" aria-label=${name("edits.value")} value=${edit.value} onChange=${value} />`}
      <button class="quiet" aria-label=${name("edits.remove")} onClick=${remove}>${t("edits.remove")}</button></div>
    ${edit.kind !== "ablate" && html`<input type="range" min=${low} max=${high} step=${step} value=${edit.value} aria-label=${name("edits.slide")} onChange=${value} />`}
    <span class="soft small">${t(`edits.${edit.kind}.means`, { value: short(edit.value) })}</span></li>`;
}

export function Edits({ edits, setEdits, kinds, dictionary, predict, cannot, busy }) {
  const [typed, setTyped] = useState("");
  const add = (event) => {
    event.preventDefault();
    if (/^\d+$/.test(typed) && !edits.some((each) => each.latent === Number(typed))) setEdits([...edits, { latent: Number(typed), kind: "scale", value: 0 }]);
    setTyped("");
  };
  return html`<section class="card" aria-labelledby="edits"><h2 id="edits">${t("edits.title")}</h2><p class="soft small">${t("edits.about")}</p>
    <ol class="edit-list">${edits.map((edit, i) => html`<${Edit} key=${edit.latent} edit=${edit} kinds=${kinds} dictionary=${dictionary} change=${(now) => setEdits(edits.map((each, k) => (k === i ? now : each)))} remove=${() => setEdits(edits.filter((_, k) => k !== i))} />`)}</ol>
    <form class="row" onSubmit=${add}><input inputmode="numeric" pattern="[0-9]*" aria-label=${t("edits.number")} placeholder=${t("edits.number")} value=${typed} onInput=${(event) => setTyped(event.target.value)} /><button class="button">${t("edits.add")}</button></form>
    <button class="button primary predict" disabled=${!!cannot || busy} onClick=${predict}>${t(busy ? "waiting" : "edits.predict")}</button></section>`;
}

function Python({ python }) {
  const [copied, setCopied] = useState(false);
  const copy = () => navigator.clipboard?.writeText(python).then(() => setCopied(true), () => setCopied(false));
  return html`<section class="card" aria-labelledby="python"><div class="section-head"><h2 id="python">${t("outcome.python")}</h2>${navigator.clipboard && html`<button class="quiet" onClick=${copy}>${t("outcome.copy")}</button>`}<span role="status" class="soft small">${copied ? t("outcome.copied") : ""}</span></div>
    <pre class="code" tabindex="0" role="region" aria-labelledby="python"><code>${python}</code></pre></section>`;
}

export function Outcome({ found, python }) {
  const most = Math.max(...found.next.map((each) => Math.max(each.untouched, each.edited)), 1e-9);
  const mostKl = Math.max(...found.kl, 1e-9);
  const facts = [["outcome.kl", `${short(found.kl_next)} nats`], ["outcome.ce_untouched", fixed(found.cross_entropy.untouched, 3)], ["outcome.ce_edited", fixed(found.cross_entropy.edited, 3)]];
  return html`<div class="outcome"><h2>${t("outcome.title")}</h2><dl class="facts">${facts.map(([name, value]) => html`<div><dt>${t(name)}</dt><dd class="num">${value}</dd></div>`)}</dl>
    <div class="pair"><section class="card" aria-labelledby="next"><h3 id="next">${t("outcome.next")}</h3><div class="scroll" tabindex="0" role="region" aria-labelledby="next"><table class="figures"><thead><tr><th scope="col">${t("outcome.token")}</th><th scope="col">${t("outcome.untouched")}</th><th scope="col">${t("outcome.edited")}</th></tr></thead>
      <tbody>${found.next.map((each) => html`<tr><th scope="row"><${Chip} token=${each.token} /></th>${["untouched", "edited"].map((which) => html`<td><span class="cell-bar"><${Meter} value=${each[which]} most=${most} tone=${which === "edited" ? "need" : ""} /><span class="num">${percent(each[which])}</span></span></td>`)}</tr>`)}</tbody></table></div></section>
    <div><section class="card" aria-labelledby="continued"><h3 id="continued">${t("outcome.continuation")}</h3><div class="two">${["untouched", "edited"].map((which) => html`<div><h4>${t(`outcome.${which}`)}</h4><p class="continuation"><bdi>${found.continuation[which] || "–"}</bdi></p></div>`)}</div></section>
      <section class="card" aria-labelledby="kl"><h3 id="kl">${t("outcome.kl_each")}</h3><bdi class="shaded">${found.tokens.map((token, i) => {
        const a = found.kl[i] / mostKl;
        return html`<span class=${a > 0.02 ? "lit need" : ""} style=${a > 0.02 ? { "--a": a.toFixed(3) } : undefined} title=${short(found.kl[i])}>${visible(token.text)}</span>`;
      })}</bdi></section></div></div>
    ${python && html`<${Python} python=${python} />`}</div>`;
}
