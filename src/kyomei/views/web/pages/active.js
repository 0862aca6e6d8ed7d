// The latents that are active on a text, or at one of its tokens.
import { html } from "../vendor/preact-htm.module.js";
import { Link } from "../address.js";
import { brief } from "../data.js";
import { Badge, Chips, Meter, useAsked } from "../parts.js";
import { short, t } from "../words.js";

const MOST = 16;

function strongest(answer, at) {
  if (at !== null) return answer.active[at] ?? [];
  const best = new Map();
  answer.active.forEach((pairs, i) => {
    if (!answer.tokens[i].special) for (const [latent, value] of pairs) best.set(latent, Math.max(value, best.get(latent) ?? 0));
  });
  return [...best].sort((a, b) => b[1] - a[1]);
}

export function Brief({ dictionary, latent }) {
  const asked = useAsked(() => brief(dictionary, latent), [dictionary, latent]);
  if (!asked.value) return html`<span class="brief"></span>`;
  const label = asked.value.labels?.find((each) => each.label)?.label;
  return html`<span class="brief"><${Badge} status=${asked.value.status} />${label && html`<bdi class="label-text">${label}</bdi>`}<${Chips} tokens=${asked.value.top_tokens || []} most=${4} /></span>`;
}

export function Active({ answer, at, dictionary, latent, shade, edit, edited }) {
  const rows = strongest(answer, at);
  const most = rows[0]?.[1] ?? 1;
  const title = at === null ? t("try.active") : t("try.active_at", { token: answer.tokens[at].text.trim() || "␣", number: at });
  if (!rows.length) return html`<h3 class="spaced">${title}</h3><p class="soft">${t(at !== null && answer.tokens[at].special ? "try.special" : "try.none")}</p>`;
  return html`<h3 class="spaced">${title}</h3><ol class="active" data-list>${rows.slice(0, MOST).map(([number, value]) => html`<li key=${number} class=${number === latent ? "chosen" : ""}>
    <${Link} data-item class="num strong" to=${{ view: "feature", dictionary, latent: number }}>${number}<//>
    <span class="amount"><${Meter} value=${value} most=${most} /><span class="num">${short(value)}</span></span>
    <${Brief} dictionary=${dictionary} latent=${number} />
    <span class="acts"><button class="quiet" aria-pressed=${number === latent} aria-label=${`${t("try.shade")} ${number}`} onClick=${() => shade(number)}>${t("try.shade")}</button>
      <button class="quiet" disabled=${edited.some((each) => each.latent === number)} aria-label=${`${t("try.edit")} ${number}`} onClick=${() => edit(number)}>${t("try.edit")}</button></span></li>`)}</ol>
    ${rows.length > MOST && html`<p class="soft small">${t("try.more", { count: rows.length - MOST })}</p>`}`;
}
