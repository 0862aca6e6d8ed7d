// One example of a latent: shaded text, the document around it, and what it needs.
import { html, useState } from "../vendor/preact-htm.module.js";
import { document_, post } from "../data.js";
import { Chip, Failure, Meter, Shaded, visible, Waiting } from "../parts.js";
import { percent, short, t } from "../words.js";

const AROUND = 1600;

/** The document around an example, with its stretch marked. Places are code points. */
function Around({ row, dictionary }) {
  const [size, setSize] = useState(AROUND);
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const stretch = row.tokens.join("");
  const length = Array.from(stretch).length;
  const [asked, setAsked] = useState(0);
  if (asked !== size) {
    setAsked(size);
    document_(dictionary, row.document, row.start + Math.floor(length / 2), size).then(setFound, setError);
  }
  if (error) return html`<${Failure} error=${error} />`;
  if (!found) return html`<${Waiting} />`;
  if (found.text === null) return html`<p class="soft">${t("state.no_text")}</p>`;
  const points = Array.from(found.text);
  const at = row.start - found.start;
  const [before, here, after] = [points.slice(0, Math.max(0, at)), points.slice(Math.max(0, at), at + length), points.slice(at + length)].map((part) => part.join(""));
  const more = found.length > points.length && size < 20000;
  return html`<div class="around"><p class="soft small">${row.document_name} · ${t("examples.characters", { from: found.start, to: found.start + points.length, of: found.length })}</p>
    <pre tabindex="0" role="region" aria-label=${t("examples.around_name", { name: row.document_name })}>${before}<mark>${here}</mark>${after}</pre>${more && html`<button class="button" onClick=${() => setSize(Math.min(20000, size * 3))}>${t("examples.more")}</button>`}</div>`;
}

function Needs({ row, dictionary }) {
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const [begun, begin] = useState(false);
  if (!begun) {
    begin(true);
    post("needs", { latent: row.latent, example: row.example, dictionary }).then(setFound, setError);
  }
  if (error) return html`<${Failure} error=${error} />`;
  if (!found) return html`<${Waiting} />`;
  const { tokens, falls, activation } = found;
  const most = Math.max(...falls.map(Math.abs), 1e-9);
  const told = falls.map((fall, i) => ({ fall, i })).filter(({ fall }) => fall > 0).sort((a, b) => b.fall - a.fall).slice(0, 5);
  return html`<div class="needs"><p class="small soft">${t("needs.about", { activation: short(activation) })}</p>
    <bdi class="shaded">${tokens.map((token, i) => {
      if (i === tokens.length - 1) return html`<span class="focus">${visible(token.text)}</span>`;
      const a = Math.abs(falls[i]) / most;
      const said = `${token.text.trim()} · ${falls[i] >= 0 ? "−" : "+"}${short(Math.abs(falls[i]))}`;
      return html`<span class=${a > 0.02 ? (falls[i] > 0 ? "lit need" : "lit rise") : ""} style=${a > 0.02 ? { "--a": a.toFixed(3) } : undefined} title=${said}>${visible(token.text)}</span>`;
    })}</bdi>
    ${told.length ? html`<ol class="bars">${told.map(({ fall, i }) => html`<li><${Chip} token=${tokens[i].text} /><${Meter} value=${fall} most=${activation} tone="need" /><span class="num">−${percent(fall / activation)}</span></li>`)}</ol>` : html`<p>${t("needs.nothing")}</p>`}
  </div>`;
}

export function Example({ row, most, dictionary, canAsk, hasText }) {
  const [open, setOpen] = useState(null);
  const flip = (what) => setOpen(open === what ? null : what);
  return html`<li class="example"><div class="example-line"><span class="num strength">${short(row.activation)}</span>
      <${Shaded} tokens=${row.tokens} values=${row.activations} most=${most} focus=${row.focus} /></div>
    <div class="example-foot"><bdi class="soft small">${row.document_name}</bdi>
      ${hasText && row.document >= 0 && html`<button class="quiet" aria-expanded=${open === "around"} onClick=${() => flip("around")}>${t("examples.around")}</button>`}
      ${canAsk && html`<button class="quiet" aria-expanded=${open === "needs"} onClick=${() => flip("needs")}>${t("needs.ask")}</button>`}</div>
    ${open === "around" && html`<${Around} row=${row} dictionary=${dictionary} />`}
    ${open === "needs" && html`<${Needs} row=${row} dictionary=${dictionary} />`}
  </li>`;
}
