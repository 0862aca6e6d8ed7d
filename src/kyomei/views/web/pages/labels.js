// All labels of a dictionary; taken out as a file, put in from one.
import { html, useState } from "../vendor/preact-htm.module.js";
import { Link } from "../address.js";
import { exportAddress, forget, isStatic, labels, post } from "../data.js";
import { Empty, Failure, useAsked, Waiting } from "../parts.js";
import { rich, t, whole } from "../words.js";
import { Said } from "./label.js";

const MOST_BYTES = 900_000;

function Exchange({ state, changed }) {
  const [told, tell] = useState("");
  const [error, setError] = useState(null);
  const put = async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    setError(null);
    tell("");
    try {
      if (file.size > MOST_BYTES) return void tell(t("labels.too_large"));
      const { added, known } = await post("labels/merge", { lines: await file.text() });
      tell(t("labels.merged", { added: whole(added), known: whole(known) }));
      forget();
      changed();
    } catch (refused) {
      setError(refused);
    }
    event.target.value = "";
  };
  if (isStatic) return html`<p class="soft">${t("label.static")}</p>`;
  return html`<div class="row wrap exchange"><a class="button" href=${exportAddress} download>${t("labels.export")}</a>
    ${state.labels?.writable ? html`<label class="button file">${t("labels.import")}<input type="file" accept=".jsonl,.ndjson,.json,text/plain" onChange=${put} /></label>` : html`<span class="soft small">${t(state.read_only ? "state.read_only" : "state.read_only_folder")}</span>`}
    <span role="status" class="soft small">${told}</span></div>${error && html`<${Failure} error=${error} />`}`;
}

export function Labels({ state, dictionary }) {
  const asked = useAsked(() => labels(dictionary), [dictionary]);
  const [typed, setTyped] = useState("");
  if (asked.error) return html`<h1>${t("page.labels")}</h1><${Failure} error=${asked.error} again=${asked.again} />`;
  if (!asked.value) return html`<h1>${t("page.labels")}</h1><${Waiting} />`;
  const wanted = typed.trim().toLowerCase();
  const rows = asked.value.labels.filter((each) => `${each.label}\n${each.note}\n${each.author}`.toLowerCase().includes(wanted));
  return html`<h1>${t("page.labels")}</h1><p class="about soft">${t("labels.about")}</p><${Exchange} state=${state} changed=${asked.again} />
    ${!asked.value.labels.length ? html`<${Empty} title=${t("labels.none")}>${rich("labels.none_do", { list: html`<${Link} to=${{ view: "list", dictionary }}>${t("page.list")}<//>` })}<//>`
      : html`<div class="search"><div class="row"><input data-search type="search" aria-label=${t("labels.search")} placeholder=${t("labels.search")} value=${typed} onInput=${(event) => setTyped(event.target.value)} /><kbd class="key" aria-hidden="true">/</kbd></div></div>
        <p class="count" role="status">${t("labels.count", { count: whole(rows.length) })}</p>
        <ul class="label-list" data-list>${rows.map((each) => html`<li><${Link} data-item class="num strong" to=${{ view: "feature", dictionary, latent: each.latent }}>${each.latent}<//><${Said} entry=${each} /></li>`)}</ul>`}`;
}
