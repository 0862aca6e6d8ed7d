// Two dictionaries beside each other: what both have, what one has in pieces, what only one has.
import { html } from "../vendor/preact-htm.module.js";
import { go, Link } from "../address.js";
import { compare } from "../data.js";
import { Chips, Empty, Failure, Mark, Pager, Shares, useAsked, Waiting } from "../parts.js";
import { fixed, percent, rich, t, whole } from "../words.js";

const SIZE = 50;
const KINDS = ["shared", "split", "merged", "only"];
const TONES = { shared: "certified", split: "split", merged: "merged", only: "unstable" };
const kindName = (kind) => t(`compare.${kind}`);

export function KindBadge({ kind }) {
  const tone = TONES[kind] ?? "dead";
  return html`<span class=${`badge is-${tone} soft-badge`}><${Mark} status=${tone} />${kindName(kind)}</span>`;
}

function Choice({ name, value, state, change }) {
  return html`<label class="pick"><span class="soft small">${t(`compare.${name}`)}</span><select value=${value} onChange=${(event) => change(event.target.value)}>
    ${state.dictionaries.map((each) => html`<option value=${each.name} selected=${each.name === value} disabled=${each.condition !== "ready"}>${each.title} · ${each.name}</option>`)}</select></label>`;
}

function Row({ row, a, b }) {
  return html`<li class="match"><${Link} data-item class="num strong" to=${{ view: "feature", dictionary: a, latent: row.latent }}>${row.latent}<//><${KindBadge} kind=${row.kind} />
    <${Chips} tokens=${row.top_tokens || []} most=${5} /><span class="num soft">${percent(row.frequency)}</span>
    <span class="matched">${(row.partners || []).map((each) => html`<span><span aria-hidden="true">→ </span><${Link} class="num" to=${{ view: "feature", dictionary: b, latent: each.latent }}>${each.latent}<//> <span class="num soft">${fixed(each.cosine)}</span> <${Chips} tokens=${each.top_tokens || []} most=${3} /></span>`)}</span></li>`;
}

function Matched({ a, b, address }) {
  const kind = KINDS.includes(address.kind) ? address.kind : undefined;
  const page = Math.max(1, Number(address.page) || 1);
  const asked = useAsked(() => compare(a, b, { kind, page, size: SIZE }), [a, b, kind, page]);
  if (asked.error) return html`<${Failure} error=${asked.error} again=${asked.again} />`;
  if (!asked.value) return html`<${Waiting} />`;
  const { rows, total, counts } = asked.value;
  const to = (values) => ({ ...address, page: undefined, ...values });
  return html`<div class="pair"><section class="card" aria-labelledby="shares"><h2 id="shares">${t("compare.result")}</h2><${Shares} counts=${Object.fromEntries(KINDS.map((each) => [TONES[each], counts[each] ?? 0]))} of=${KINDS.map((each) => TONES[each])} name=${(tone) => kindName(KINDS.find((each) => TONES[each] === tone))} /></section>
      <section class="card"><dl class="meanings">${KINDS.map((each) => html`<div><dt><${KindBadge} kind=${each} /></dt><dd>${t(`compare.${each}.means`)}</dd></div>`)}</dl></section></div>
    <nav class="filters" aria-label=${t("compare.kinds")}>${[undefined, ...KINDS].map((each) => html`<${Link} class="button" aria-current=${each === kind ? "true" : undefined} to=${to({ kind: each })}>${each ? kindName(each) : t("compare.every")} ${each ? html`<span class="num soft">${whole(counts[each] ?? 0)}</span>` : ""}<//>`)}</nav>
    ${rows.length ? html`<ol class="matches" data-list>${rows.map((row) => html`<${Row} key=${row.latent} row=${row} a=${a} b=${b} />`)}</ol>` : html`<${Empty} title=${t("list.none")} />`}
    <${Pager} page=${page} size=${SIZE} total=${total} to=${(number) => ({ ...address, page: number })} />`;
}

export function Compare({ state, dictionary, address }) {
  const ready = state.dictionaries.filter((each) => each.condition === "ready");
  const a = address.a ?? dictionary;
  const b = address.b ?? ready.find((each) => each.name !== a)?.name;
  const change = (values) => go({ view: "compare", dictionary: address.dictionary, a, b, ...values });
  if (ready.length < 2) return html`<h1>${t("page.compare")}</h1><${Empty} title=${t("compare.one")}>${rich("compare.one_do")}<//>`;
  return html`<h1>${t("page.compare")}</h1><div class="row wrap picks"><${Choice} name="first" value=${a} state=${state} change=${(value) => change({ a: value })} /><${Choice} name="second" value=${b} state=${state} change=${(value) => change({ b: value })} />
      <button class="button" onClick=${() => change({ a: b, b: a })}>${t("compare.swap")}</button></div>
    ${a === b ? html`<${Empty} title=${t("compare.same")} />` : html`<${Matched} a=${a} b=${b} address=${address} />`}`;
}
