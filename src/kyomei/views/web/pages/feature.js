// One latent: what it is, why it has its certificate, what it fires on, what is near it.
import { html, useState } from "../vendor/preact-htm.module.js";
import { Link } from "../address.js";
import { examples, feature, isStatic } from "../data.js";
import { Badge, Bars, Chip, Chips, Failure, Meter, Notice, originName, statusMeaning, useAsked, Waiting } from "../parts.js";
import { fixed, percent, range, rich, short, t, whole } from "../words.js";
import { Example } from "./example.js";
import { GoalFigures, signed } from "./goals.js";
import { LabelCard } from "./label.js";

const DENSE = 0.1;
const least = (values) => (values?.length ? Math.min(...values) : null);

/** What a replica had to show, and the replica that says most: the farthest below, or for a certified latent the least of all. */
function compared(found) {
  const entry = found.certificate;
  const { rule } = found;
  if (!entry || !rule || !entry.encoder_mcs?.length) return null;
  const dense = entry.frequency > DENSE;
  const asked = Object.fromEntries(["encoder", "decoder", "correlation"].map((name) => [name, (dense && rule[`dense_${name}`]) || rule[name]]));
  const figures = { encoder: entry.encoder_mcs, decoder: entry.decoder_mcs, correlation: entry.correlation };
  const short_of = entry.encoder_mcs.map((_, i) => Math.min(...Object.keys(figures).map((name) => figures[name][i] - asked[name])));
  const worst = short_of.indexOf(Math.min(...short_of));
  const all = entry.status === "certified";
  const here = Object.fromEntries(Object.keys(figures).map((name) => [name, all ? least(figures[name]) : figures[name][worst]]));
  return { asked, figures, here, worst, dense };
}

function why(found, figures) {
  const { status, certificate: entry } = found;
  if (!entry) return t("why.no_certificate");
  if (status === "dead" || !figures) return statusMeaning(status);
  const values = { encoder: fixed(figures.here.encoder), decoder: fixed(figures.here.decoder), correlation: fixed(figures.here.correlation), replica: figures.worst + 1 };
  if (status === "certified") return t("why.certified", values);
  const nearest = t("why.nearest", values);
  if (status === "split") return `${nearest} ${t("why.split", { value: fixed(Math.max(...entry.split_correlation)) })}`;
  if (status === "merged") return `${nearest} ${t("why.merged", { value: fixed(Math.max(...entry.merged_correlation)) })}`;
  return nearest;
}

function Why({ found }) {
  const figures = compared(found);
  const rate = found.null?.false_positive_rate;
  return html`<section class="card why" aria-labelledby="why">
    <h2 id="why">${t("why.title")}</h2>
    <p class="lead">${why(found, figures)}</p>
    ${figures && html`<div class="scroll" tabindex="0" role="region" aria-labelledby="why"><table class="figures"><thead><tr><th scope="col"><span class="hidden">${t("why.figure")}</span></th>${figures.figures.encoder.map((_, i) => html`<th scope="col" class="num">${t("why.replica", { number: i + 1 })}</th>`)}
      <th scope="col" class="num">${t("why.asked")}</th></tr></thead>
      <tbody>${Object.entries(figures.figures).map(
        ([name, values]) => html`<tr><th scope="row">${t(`why.${name}`)}</th>${values.map((value) => html`<td class=${`num ${value >= figures.asked[name] ? "passes" : "fails"}`}>${fixed(value)}<span class="hidden"> ${t(value >= figures.asked[name] ? "why.passes" : "why.fails")}</span></td>`)}
          <td class="num soft">${fixed(figures.asked[name])}</td></tr>`,
      )}</tbody></table></div>`}
    ${figures && html`<p class="null-line"><span class="null-dot" aria-hidden="true"></span>${rate === undefined || rate === null ? t("why.no_null") : t("why.null", { rate: percent(rate), count: whole(found.null.latents) })}
      ${figures.dense ? ` ${t("why.dense")}` : ""}</p>`}
    <${Origin} found=${found} />
  </section>`;
}

function Origin({ found }) {
  const origin = found.certificate?.origin;
  if (!found.origin || !origin) return null;
  const share = (name) => Math.max(0, origin.r2?.[name] ?? 0, origin.mass?.[name] ?? 0);
  return html`<div class="origin"><h3>${t("origin.title")}: ${originName(found.origin)}</h3><p>${t(`origin.${found.origin.replaceAll("-", "_")}.means`)}</p>
    <dl class="pairs">${["token", "position"].map((name) => html`<div><dt>${t(`origin.by_${name}`)}</dt><dd><${Meter} value=${share(name)} /><span class="num">${percent(share(name))}</span></dd></div>`)}
    ${origin.firing !== undefined && found.origin === "token" && html`<div><dt>${t("origin.firing")}</dt><dd><${Meter} value=${origin.firing} /><span class="num">${percent(origin.firing)}</span></dd></div>`}</dl></div>`;
}

function Activity({ found }) {
  const [x] = useState(found.histogram_edges.slice(0, -1));
  const [series] = useState([{ counts: found.histogram, tone: "--accent" }]);
  if (!found.histogram.length) return null;
  const label = t("feature.histogram_says", { count: whole(found.histogram.reduce((a, b) => a + b, 0)), max: short(found.max_activation), mean: short(found.mean_activation) });
  return html`<section class="card" aria-labelledby="activity"><h2 id="activity">${t("feature.histogram")}</h2>
    <${Bars} x=${x} series=${series} label=${label} xName=${t("feature.activation")} format=${short} /></section>`;
}

function Facts({ found }) {
  const facts = [
    ["column.frequency", percent(found.frequency)],
    ["column.max", short(found.max_activation)],
    ["column.mean", short(found.mean_activation)],
    ["column.explained", percent(found.explained)],
    ["column.agreement", fixed(found.agreement)],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => html`<div><dt>${t(name)}</dt><dd class="num">${value}</dd></div>`)}</dl>`;
}

function Examples({ found, dictionary, state }) {
  const [decile, setDecile] = useState(-1);
  const asked = useAsked(() => examples(dictionary, found.latent), [dictionary, found.latent]);
  const facts = state.dictionaries.find((each) => each.name === dictionary);
  const deciles = [-1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];
  const rows = (asked.value || []).filter((row) => row.decile === decile);
  const canAsk = !isStatic && state.model.condition === "ready";
  const key = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = deciles[Math.max(0, Math.min(deciles.length - 1, deciles.indexOf(decile) + step))];
    setDecile(next);
    event.currentTarget.querySelector(`[data-decile="${next}"]`).focus();
  };
  return html`<section aria-labelledby="examples" class="examples"><div class="section-head"><h2 id="examples">${t("examples.title")}</h2><p class="soft small">${t("examples.about")}</p></div>
    <div class="tabs" role="tablist" aria-labelledby="examples" onKeyDown=${key}>${deciles.map(
      (each) => html`<button role="tab" id=${`tab-${each}`} data-decile=${each} aria-controls="examples-shown" aria-selected=${each === decile} tabindex=${each === decile ? 0 : -1}
        onClick=${() => setDecile(each)}>${each < 0 ? t("examples.top") : range(each * 10, percent((each + 1) / 10))}</button>`,
    )}</div>
    <div role="tabpanel" id="examples-shown" aria-labelledby=${`tab-${decile}`}>
      ${asked.error ? html`<${Failure} error=${asked.error} again=${asked.again} />` : !asked.value ? html`<${Waiting} />` : rows.length
        ? html`<ol class="example-list">${rows.map((row) => html`<${Example} key=${`${row.kind}${row.example}`} row=${row} most=${found.max_activation} dictionary=${dictionary} canAsk=${canAsk} hasText=${facts.has_text !== false} />`)}</ol>`
        : html`<p class="soft">${t("examples.none")}</p>`}
    </div></section>`;
}

function Near({ title, about, rows, dictionary, value, most = 1, format = fixed }) {
  if (!rows?.length) return null;
  return html`<section class="near"><h3>${title}</h3>${about && html`<p class="soft small">${about}</p>`}
    <ol data-list>${rows.map((row) => html`<li><${Link} data-item to=${{ view: "feature", dictionary, latent: row.latent }}>${row.latent}<//><${Meter} value=${value(row)} most=${most} /><span class="num">${format(value(row))}</span></li>`)}</ol></section>`;
}

function Partners({ found, state }) {
  if (!found.partners?.length) return html`<section class="near"><h3>${t("near.partners")}</h3><p class="soft small">${t("state.no_replicas")}</p></section>`;
  const shown = (replica) => state.dictionaries.some((each) => each.name === replica.replaceAll("/", "-") && each.condition === "ready");
  return html`<section class="near"><h3>${t("near.partners")}</h3><p class="soft small">${t("near.partners_about")}</p><div class="scroll" tabindex="0" role="region" aria-label=${t("near.partners")}><table class="figures tight"><thead><tr><th scope="col">${t("near.replica")}</th><th scope="col" class="num">${t("why.encoder_short")}</th><th scope="col" class="num">${t("why.decoder_short")}</th><th scope="col" class="num">${t("why.correlation_short")}</th></tr></thead>
    <tbody>${found.partners.map((row) => html`<tr><th scope="row">${shown(row.replica)
      ? html`<${Link} to=${{ view: "feature", dictionary: row.replica.replaceAll("/", "-"), latent: row.latent }}>${row.replica} · ${row.latent}<//>`
      : `${row.replica} · ${row.latent}`}</th><td class="num">${fixed(row.encoder)}</td><td class="num">${fixed(row.decoder)}</td><td class="num">${fixed(row.correlation)}</td></tr>`)}</tbody></table></div></section>`;
}

function Logits({ found }) {
  if (!found.logits_top?.length) return html`<section class="near"><h3>${t("logits.title")}</h3><p class="soft small">${t("logits.none")}</p></section>`;
  const most = Math.max(...[...found.logits_top, ...found.logits_bottom].map((each) => Math.abs(each.value)));
  const side = (rows, tone, title) => html`<div><h4>${title}</h4><ol>${rows.map((row) => html`<li><${Chip} token=${row.token} /><${Meter} value=${Math.abs(row.value)} most=${most} tone=${tone} /><span class="num">${fixed(row.value)}</span></li>`)}</ol></div>`;
  return html`<section class="near logits"><h3>${t("logits.title")}</h3><p class="soft small">${t("logits.about")}</p>${side(found.logits_top, "up", t("logits.up"))}${side(found.logits_bottom, "down", t("logits.down"))}</section>`;
}

function GoalsOf({ found, dictionary }) {
  if (!found.goals?.length) return null;
  return html`<section class="near"><h3>${t("page.goals")}</h3><p class="soft small">${t("feature.goals_about")}</p>
    <ul class="goals-of" data-list>${found.goals.map((goal) => html`<li><${Link} data-item to=${{ view: "goals", dictionary, goal: goal.name }}><bdi>${goal.name}</bdi><//><span class="num">${t("feature.goal_weight", { weight: signed(goal.weight) })}</span>
      <span class="soft small">${goal.expired ? t("goals.expired_short") : goal.told ? html`<${GoalFigures} goal=${goal} />` : t("goal.not_told")}</span></li>`)}</ul></section>`;
}

function Tokens({ found }) {
  const tokens = found.certificate?.tokens;
  if (!tokens?.length) return null;
  return html`<section class="near"><h3>${t("feature.tokens")}</h3><p class="soft small">${t("feature.tokens_about")}</p><ol>${tokens.map(([token, share]) => html`<li><${Chip} token=${token} /><${Meter} value=${share} /><span class="num">${percent(share)}</span></li>`)}</ol></section>`;
}

export function Feature({ state, dictionary, facts, address }) {
  const latent = /^\d+$/.test(address.latent ?? "") ? Number(address.latent) : 0;
  const asked = useAsked(() => feature(dictionary, latent), [dictionary, latent]);
  if (asked.error) return html`<h1>${t("page.feature")} ${latent}</h1><${Failure} error=${asked.error} />`;
  if (!asked.value || asked.value.latent !== latent) return html`<${Waiting} />`;
  const found = asked.value;
  const newest = found.labels?.find((each) => each.label);
  const beside = (number) => ({ view: "feature", dictionary, latent: number });
  return html`<div class="feature-head"><div><p class="crumb"><${Link} to=${{ view: "list", dictionary }}>${t("page.list")}<//> <span aria-hidden="true">/</span> ${facts.title}</p>
      <h1>${t("page.feature")} <span class="num">${latent}</span></h1>
      <p class="under"><${Badge} status=${found.status} large />${newest && html`<span class="label-text"><bdi>${newest.label}</bdi></span>`}</p></div>
      <nav class="beside" aria-label=${t("feature.beside")}>
        ${latent > 0 && html`<${Link} class="button" rel="prev" to=${beside(latent - 1)}>← ${latent - 1}<//>`}
        ${latent + 1 < facts.width && html`<${Link} class="button" rel="next" to=${beside(latent + 1)}>${latent + 1} →<//>`}
        ${!isStatic && html`<${Link} class="button" to=${{ view: "try", dictionary, edit: `${latent}:scale:0` }}>${t("feature.try")}<//>`}</nav></div>
    <${Chips} tokens=${found.top_tokens || []} most=${12} />
    <${Facts} found=${found} />
    ${found.frequency === 0 && html`<${Notice}><p>${t("feature.dead")}</p><//>`}
    <div class="columns" key=${`${dictionary} ${latent}`}><div class="main-column">
      <${Why} found=${found} />
      <${Activity} found=${found} />
      ${found.frequency > 0 && html`<${Examples} found=${found} dictionary=${dictionary} state=${state} />`}
    </div><div class="side-column">
      <${LabelCard} found=${found} dictionary=${dictionary} state=${state} changed=${asked.again} />
      <${GoalsOf} found=${found} dictionary=${dictionary} />
      <${Tokens} found=${found} />
      <${Logits} found=${found} />
      <${Partners} found=${found} state=${state} />
      <${Near} title=${t("near.decoder")} about=${t("near.decoder_about")} rows=${found.neighbours_decoder} dictionary=${dictionary} value=${(row) => row.cosine} />
      <${Near} title=${t("near.coactivation")} about=${t("near.coactivation_about")} rows=${found.neighbours_coactivation} dictionary=${dictionary} value=${(row) => row.value} />
      <${Near} title=${t("near.parents")} about=${t("near.parents_about")} rows=${found.parents} dictionary=${dictionary} value=${(row) => row.given} format=${percent} />
      <${Near} title=${t("near.children")} about=${t("near.children_about")} rows=${found.children} dictionary=${dictionary} value=${(row) => row.given} format=${percent} />
    </div></div>`;
}
