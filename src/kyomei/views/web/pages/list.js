// The list of latents: filtered, ordered, found by their tokens, their labels, or by a text that they should be active on.
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.module.js";
import { go, Link } from "../address.js";
import { features, isStatic, post } from "../data.js";
import { Badge, Chips, Empty, Failure, Meter, Mark, Notice, ORIGINS, originName, Pager, Shaded, STATUSES, statusName, useAsked, Waiting } from "../parts.js";
import { percent, rich, short, t, whole } from "../words.js";

const SIZE = 50;
const TYPING_MS = 220;
const SORTS = ["status", "-frequency", "frequency", "-max_activation", "-explained", "-agreement", "agreement", "latent"];

function logShare(frequency) {
  return frequency > 0 ? Math.max(0.02, (Math.log10(frequency) + 5) / 5) : 0;
}

export function Row({ row, dictionary, extra }) {
  const to = { view: "feature", dictionary, latent: row.latent };
  return html`<li class="latent">
    <${Link} class="latent-link" to=${to} data-item aria-label=${`${t("page.feature")} ${row.latent}, ${statusName(row.status)}${row.label ? `, ${row.label}` : ""}`}><span class="latent-number">${row.latent}</span><//>
    <span class="latent-status"><${Badge} status=${row.status} /></span>
    <span class="latent-text">
      ${row.label && html`<span class="label-text"><bdi>${row.label}</bdi>${row.label_kind === "automatic" && html` <span class="auto">${t("label.automatic")}</span>`}</span>`}
      ${extra || html`<${Chips} tokens=${row.top_tokens || []} />`}
    </span>
    <span class="latent-origin soft">${row.origin ? originName(row.origin) : ""}</span>
    <span class="latent-number-cell"><span class="hidden">${t("column.frequency")} </span><span class="num">${percent(row.frequency)}</span><${Meter} value=${logShare(row.frequency)} /></span>
    <span class="latent-number-cell"><span class="hidden">${t("column.max")} </span><span class="num">${short(row.max_activation)}</span></span>
  </li>`;
}

function Head() {
  return html`<div class="latent list-head" aria-hidden="true"><span>${t("column.latent")}</span><span>${t("column.status")}</span><span>${t("column.fires_on")}</span>
    <span>${t("column.origin")}</span><span class="right">${t("column.frequency")}</span><span class="right">${t("column.max")}</span></div>`;
}

function Filters({ address, change }) {
  const statuses = address.status || [];
  const flip = (name, value) => {
    const now = address[name] || [];
    change({ [name]: now.includes(value) ? now.filter((each) => each !== value) : [...now, value] });
  };
  return html`<div class="filters">
    <fieldset><legend>${t("column.status")}</legend>${STATUSES.map(
      (status) => html`<label class=${`toggle is-${status.replaceAll(" ", "_")}`}><input type="checkbox" checked=${statuses.includes(status)} onChange=${() => flip("status", status)} /><span><${Mark} status=${status} />${statusName(status)}</span></label>`,
    )}</fieldset>
    <fieldset><legend>${t("column.origin")}</legend>${ORIGINS.map(
      (origin) => html`<label class="toggle"><input type="checkbox" checked=${(address.origin || []).includes(origin)} onChange=${() => flip("origin", origin)} /><span>${originName(origin)}</span></label>`,
    )}</fieldset>
    <fieldset class="range"><legend>${t("column.frequency")}</legend>
      ${["min_frequency", "max_frequency"].map((name) => html`<label><span class="hidden">${t(`list.${name}`)}</span>
        <input type="number" min="0" max="100" step="any" inputmode="decimal" placeholder=${t(`list.${name}`)} value=${address[name] ? Number(address[name]) * 100 : ""}
          onChange=${(event) => change({ [name]: event.target.value === "" ? undefined : Math.min(1, Math.max(0, Number(event.target.value) / 100)) })} /><span aria-hidden="true">%</span></label>`)}
    </fieldset>
    <label class="order"><span>${t("list.order")}</span><select value=${address.sort || "status"} onChange=${(event) => change({ sort: event.target.value === "status" ? undefined : event.target.value })}>
      ${SORTS.map((sort) => html`<option value=${sort} selected=${sort === (address.sort || "status")}>${t(`order.${sort.replace("-", "falling_")}`)}</option>`)}</select></label>
  </div>`;
}

function Search({ address, change, canRead }) {
  const byText = address.by === "text";
  const [typed, setTyped] = useState((byText ? address.text : address.q) || "");
  const later = useRef(0);
  const box = useRef(null);
  useEffect(() => setTyped((byText ? address.text : address.q) || ""), [address.q, address.text, byText]);
  useEffect(() => {
    if (address.focus) {
      box.current.focus();
      go({ ...address, focus: undefined }, { replace: true });
    }
    return () => clearTimeout(later.current);
  }, []);
  const type = (event) => {
    setTyped(event.target.value);
    clearTimeout(later.current);
    const value = event.target.value;
    if (!byText) later.current = setTimeout(() => change({ q: value || undefined }, true), TYPING_MS);
  };
  const send = (event) => {
    event.preventDefault();
    clearTimeout(later.current);
    change(byText ? { text: typed || undefined } : { q: typed || undefined });
  };
  const way = (by) => change({ by: by === "text" ? "text" : undefined, text: by === "text" ? typed || undefined : undefined, q: by === "text" ? undefined : typed || undefined });
  return html`<form class="search" role="search" onSubmit=${send}>
    ${canRead && html`<div class="ways" role="group" aria-label=${t("list.search_by")}>${["tokens", "text"].map(
      (by) => html`<button type="button" class="way" aria-pressed=${byText === (by === "text")} onClick=${() => way(by)}>${t(`list.by_${by}`)}</button>`,
    )}</div>`}
    <div class="row"><input ref=${box} data-search type="search" autocomplete="off" spellcheck=${false} maxlength="500" aria-label=${t(byText ? "list.text_name" : "list.search_name")}
      placeholder=${t(byText ? "list.text_hint" : "list.search_hint")} value=${typed} onInput=${type} />
    ${byText && html`<button class="button primary">${t("list.find")}</button>`}<kbd class="key" aria-hidden="true">/</kbd></div>
    ${byText && html`<p class="soft small">${t("list.text_about")}</p>`}
  </form>`;
}

function Found({ dictionary, text, state }) {
  const asked = useAsked(() => (text ? post("search", { text, dictionary }) : Promise.resolve(null)), [dictionary, text, state.model.condition]);
  if (state.model.condition === "loading") return html`<${Notice}><p>${t("state.model_loading")}</p><//>`;
  if (asked.error) return html`<${Failure} error=${asked.error} again=${asked.again} />`;
  if (asked.busy) return html`<${Waiting} />`;
  if (!asked.value) return html`<${Empty} title=${t("list.text_empty")} />`;
  const { rows, tokens } = asked.value;
  if (!rows.length) return html`<${Empty} title=${t("list.text_none")} />`;
  const texts = tokens.map((token) => token.text);
  return html`<p class="count" role="status">${t("list.text_found", { count: whole(rows.length) })}</p><${Head} />
    <ol class="latents" data-list>${rows.map((row) => {
      const values = texts.map((_, i) => (i === row.position ? row.activation : 0));
      const usual = row.ordinary_mean > 0 ? t("list.against", { times: short(row.activation / row.ordinary_mean) }) : t("list.never");
      return html`<${Row} row=${row} dictionary=${dictionary} extra=${html`<${Shaded} tokens=${texts} values=${values} most=${row.activation} focus=${row.position} /><span class="soft small">${usual}</span>
        <${Chips} tokens=${row.top_tokens || []} />`} />`;
    })}</ol>`;
}

function Listed({ dictionary, address }) {
  const { q, status, origin, min_frequency, max_frequency, sort } = address;
  const page = Math.max(1, Number(address.page) || 1);
  const asked = useAsked(
    () => features(dictionary, { q, status, origin, min_frequency, max_frequency, sort, page, size: SIZE }),
    [dictionary, q, String(status), String(origin), min_frequency, max_frequency, sort, page],
  );
  if (asked.error) return html`<${Failure} error=${asked.error} again=${asked.again} />`;
  if (!asked.value) return html`<${Waiting} />`;
  const { rows, total } = asked.value;
  if (!total) {
    const all = { view: "list", dictionary };
    return html`<${Empty} title=${t("list.none")}>${rich("list.none_do", { all: html`<${Link} to=${all}>${t("list.all")}<//>` })}<//>`;
  }
  const from = (page - 1) * SIZE;
  return html`<p class="count" role="status">${t("list.count", { from: whole(from + 1), to: whole(from + rows.length), total: whole(total) })}</p>
    <${Head} /><ol class=${`latents ${asked.busy ? "busy" : ""}`} data-list>${rows.map((row) => html`<${Row} key=${row.latent} row=${row} dictionary=${dictionary} />`)}</ol>
    <${Pager} page=${page} size=${SIZE} total=${total} to=${(number) => ({ ...address, page: number })} />`;
}

export function List({ state, dictionary, address }) {
  const change = (values, replace = false) => go({ ...address, focus: undefined, page: undefined, ...values }, { replace });
  const canRead = !isStatic && ["ready", "loading"].includes(state.model.condition);
  const byText = canRead && address.by === "text";
  return html`<h1>${t("page.list")}</h1>
    <${Search} address=${address} change=${change} canRead=${canRead} />
    ${byText ? html`<${Found} dictionary=${dictionary} text=${address.text} state=${state} />` : html`<${Filters} address=${address} change=${change} /><${Listed} dictionary=${dictionary} address=${address} />`}`;
}
