// What people, and automatic labels, say of a latent.
import { html, useState } from "../vendor/preact-htm.module.js";
import { forget, isStatic, post } from "../data.js";
import { Failure } from "../parts.js";
import { language, percent, t } from "../words.js";

function lastAuthor() {
  try {
    return localStorage.getItem("kyomei-author") || "";
  } catch {
    return "";
  }
}

export const moment = (time) => (time ? new Date(time).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" }) : "");

export function Said({ entry }) {
  return html`<div class="said"><p class="said-label"><bdi>${entry.label}</bdi>${entry.kind === "automatic" && html` <span class="auto">${t("label.automatic")}</span>`}</p>
    ${entry.note && html`<p class="said-note"><bdi>${entry.note}</bdi></p>`}
    <p class="soft small"><bdi>${entry.author || t("label.nobody")}</bdi> · <time datetime=${entry.time}>${moment(entry.time)}</time>
      ${entry.score !== null && entry.score !== undefined ? html` · ${t("label.score", { score: percent(entry.score), null: percent(entry.null_score) })}` : ""}</p></div>`;
}

export function LabelCard({ found, dictionary, state, changed }) {
  const [open, setOpen] = useState(false);
  const [error, setError] = useState(null);
  const [saved, setSaved] = useState(false);
  const writable = !isStatic && state.labels?.writable;
  const author = lastAuthor();
  const mine = found.labels?.find((each) => each.kind === "manual" && each.author === author) || {};
  const save = async (event) => {
    event.preventDefault();
    const { label, note, author: who } = event.target.elements;
    try {
      await post("labels", { latent: found.latent, dictionary, label: label.value, note: note.value, author: who.value });
      try {
        localStorage.setItem("kyomei-author", who.value);
      } catch { /* then the name is typed again */ }
      forget();
      setOpen(false);
      setSaved(true);
      setError(null);
      changed();
    } catch (refused) {
      setError(refused);
    }
  };
  return html`<section class="near labels-card" aria-labelledby="labels"><h3 id="labels">${t("label.title")}</h3>
    ${(found.labels || []).map((entry) => html`<${Said} entry=${entry} />`)}
    ${!found.labels?.length && html`<p class="soft small">${t("label.none")}</p>`}
    <p role="status" class="hidden">${saved ? t("label.saved") : ""}</p>
    ${writable && !open && html`<button class="button" onClick=${() => setOpen(true)}>${t(mine.label || mine.note ? "label.change" : "label.add")}</button>`}
    ${writable && open && html`<form class="label-form" onSubmit=${save}>
      <label>${t("label.label")}<input name="label" maxlength="200" value=${mine.label || ""} autofocus /></label>
      <label>${t("label.note")}<textarea name="note" rows="3" maxlength="5000">${mine.note || ""}</textarea></label>
      <label>${t("label.author")}<input name="author" maxlength="100" value=${author} /></label>
      <div class="row"><button class="button primary">${t("label.save")}</button><button type="button" class="button" onClick=${() => setOpen(false)}>${t("label.leave")}</button></div></form>`}
    ${!writable && html`<p class="soft small">${t(isStatic ? "label.static" : state.read_only ? "state.read_only" : "state.read_only_folder")}</p>`}
    ${error && html`<${Failure} error=${error} />`}
  </section>`;
}
