// What can be trusted, before anything else; then the map; then the evidence that the answer rests on.
import { html, useMemo } from "../vendor/preact-htm.module.js";
import { Link } from "../address.js";
import { goals, isStatic, overview } from "../data.js";
import { Bars, Failure, originName, ORIGINS, Points, Shares, STATUSES, statusName, useAsked, Waiting } from "../parts.js";
import { coded, fixed, is, named, percent, rich, said, short, t, whole } from "../words.js";
import { GoalList } from "./goals.js";
import { FeatureMap } from "./map.js";

const LEVELS = { trust: "good", partly: "fair", "do not trust": "poor", "not tested": "none" };
const SIDES = { for: "certified", against: "unstable", unknown: "dead", met: "certified", "not met": "unstable" };

/** What a run says of itself, and what to do about it. */
function Meaning({ meaning, advice }) {
  return html`<span class="soft small">${coded(said(meaning ?? ""))}${advice && advice !== "nothing to do" ? html`<span class="advice">${coded(said(advice))}</span>` : ""}</span>`;
}

/** The figure of a reason, without words where the page knows the numbers itself. */
function figure(reason, counts) {
  if (reason.name === "certified" && counts.width) return `${whole(counts.certified ?? 0)} / ${whole(counts.width)} (${percent((counts.certified ?? 0) / counts.width)})`;
  if (reason.name === "null" && is(counts.null)) return percent(counts.null);
  return reason.name === "premises" ? named("premises", reason.figure) : said(reason.figure);
}

function Side({ side }) {
  const path = { for: "M3 8.5l3.2 3.2L13 4.8", met: "M3 8.5l3.2 3.2L13 4.8", against: "M4 8h8", "not met": "M4 8h8" }[side] || "M5.6 6a2.5 2.5 0 1 1 3.4 2.4c-.7.3-1 .7-1 1.6M8 12.6v.2";
  return html`<span class=${`side is-${SIDES[side] || "dead"}`}><svg class="mark" viewBox="0 0 16 16" aria-hidden="true"><path d=${path} /></svg>${named("side", side)}</span>`;
}

function Verdict({ verdict, counts }) {
  const level = verdict?.level || "not tested";
  return html`<section class=${`card verdict level-${LEVELS[level] || "none"}`} aria-labelledby="verdict"><p class="overline">${t("overview.verdict")}</p>
    <h2 id="verdict" class="answer">${named("verdict", level)}</h2>
    <p class="lead">${counts.certified ? t("verdict.certified", { count: whole(counts.certified), width: whole(counts.width), share: percent(counts.certified / counts.width) }) : t("verdict.none")}</p>
    ${verdict?.reasons?.length ? html`<ul class="reasons">${verdict.reasons.map((reason) => html`<li><${Side} side=${reason.side} /><div><strong>${named("reason", reason.name)}</strong> <span class="num">${figure(reason, counts)}</span><br /><${Meaning} meaning=${reason.meaning} /></div></li>`)}</ul>` : ""}
  </section>`;
}

function Certificate({ found, dictionary }) {
  const certificate = found.certificate;
  const rate = certificate?.null?.false_positive_rate;
  const origins = certificate ? found.origin_certified : found.origin;
  return html`<section class="card" aria-labelledby="certificate"><p class="overline">${t("overview.certificate")}</p><h2 id="certificate">${t("overview.shares")}</h2>
    <${Shares} counts=${found.status} of=${STATUSES} name=${statusName} to=${(status) => ({ view: "list", dictionary, status: [status] })} />
    ${certificate && html`<p class="null-line"><span class="null-dot" aria-hidden="true"></span>${is(rate) ? t("overview.null", { rate: percent(rate), count: whole(certificate.null.latents) }) : t("why.no_null")}</p>`}
    ${Object.keys(origins).length > 0 && html`<h3 class="spaced">${t("origin.title")}</h3><${Shares} counts=${origins} of=${ORIGINS} name=${originName} to=${(origin) => ({ view: "list", dictionary, origin: [origin], status: certificate ? ["certified"] : undefined })} />`}
    <dl class="facts tight-facts">${[
      ["overview.latents", whole(found.width)], ["overview.live", whole(found.live)], ["overview.l0", fixed(certificate?.fidelity?.l0, 1)], ["overview.fvu", percent(certificate?.fidelity?.fvu)],
    ].map(([name, value]) => html`<div><dt>${t(name)}</dt><dd class="num">${value}</dd></div>`)}</dl></section>`;
}

function Spectrum({ found }) {
  const { x, series, total } = useMemo(() => {
    const bins = found.frequencies.map((each) => Math.round(Math.log10(each.from) * 10));
    const [first, last] = [Math.min(...bins), Math.max(...bins)];
    const places = Array.from({ length: last - first + 1 }, (_, i) => (first + i) / 10);
    const counts = (name) => places.map((place) => found.frequencies[bins.indexOf(Math.round(place * 10))]?.[name] ?? 0);
    return { x: places, total: found.live, series: [{ counts: counts("count"), tone: "--field" }, { counts: counts("certified"), tone: "--certified" }] };
  }, [found]);
  if (!found.frequencies.length) return null;
  const format = (log) => percent(10 ** log);
  return html`<section class="card" aria-labelledby="spectrum"><h2 id="spectrum">${t("overview.spectrum")}</h2><p class="soft small">${t("overview.spectrum_about")}</p>
    <${Bars} x=${x} series=${series} label=${t("overview.spectrum_says", { count: whole(total), certified: whole(found.status.certified || 0) })} xName=${t("column.frequency")} format=${format} height=${220} />
    <p class="keys soft small"><span><i class="dot field-dot"></i>${t("overview.all_live")}</span><span class="is-certified"><i class="dot"></i>${t("status.certified")}</span></p></section>`;
}

function Premises({ premises }) {
  if (!premises) return html`<section class="card" aria-labelledby="premises"><h2 id="premises">${t("overview.premises")}</h2><p class="soft">${rich("overview.premises_none")}</p></section>`;
  const expected = premises.expected_frr;
  return html`<section class="card" aria-labelledby="premises"><h2 id="premises">${t("overview.premises")}: ${named("premises", premises.verdict)}</h2>
    ${is(expected) && html`<p>${t("overview.expected", { share: percent(expected), low: percent(premises.interval?.[0]), high: percent(premises.interval?.[1]) })}</p>`}
    <ul class="premises">${premises.premises.map((each) => html`<li><${Side} side=${each.status} /><div><strong>${named("premise", each.name)}</strong><br /><${Meaning} meaning=${each.meaning} advice=${each.advice} /></div></li>`)}</ul></section>`;
}

const TONES = ["certified", "merged", "unstable", "split", "dead"];

/** Sparsity against loss, drawn and in numbers. */
function Frontier({ points }) {
  const groups = useMemo(() => {
    const drawn = (points || []).filter((point) => is(point.l0) && is(point.fvu));
    return [...new Set(drawn.map((point) => point.label))].map((name, i) => ({ name, tone: `--${TONES[i % TONES.length]}`, points: drawn.filter((point) => point.label === name).map((point) => [point.l0, point.fvu]) }));
  }, [points]);
  if (!points?.length) return null;
  // Replicas of one mechanism come one after the other, under one name.
  const several = (point) => points.filter((each) => each.label === point.label).length > 1;
  const number = (point) => points.filter((each) => each.label === point.label).indexOf(point);
  const tone = (point) => groups.find((group) => group.name === point.label)?.tone.slice(2);
  return html`<section class="card" aria-labelledby="frontier"><h2 id="frontier">${t("overview.frontier")}</h2><p class="soft small">${t("overview.frontier_about")}</p>
    ${groups.length > 0 && html`<${Points} groups=${groups} label=${t("overview.frontier")} xName=${t("overview.l0")} yName=${t("overview.fvu")} yFormat=${percent} />`}
    <div class="scroll" tabindex="0" role="region" aria-labelledby="frontier"><table class="figures"><thead><tr><th scope="col">${t("frame.dictionary")}</th><th scope="col" class="num">${t("overview.l0")}</th><th scope="col" class="num">${t("overview.fvu")}</th></tr></thead>
    <tbody>${points.map((point) => html`<tr><th scope="row" class=${tone(point) ? `is-${tone(point)}` : ""}><i class="dot" aria-hidden="true"></i><span lang="en">${point.name || point.label}</span>${!point.name && several(point) ? html` <span class="soft">${t("why.replica", { number: number(point) })}</span>` : ""}</th><td class="num">${fixed(point.l0, 1)}</td><td class="num">${percent(point.fvu)}</td></tr>`)}</tbody></table></div></section>`;
}

/** What a run knows of its goals, in a line each; nothing where there is none. */
function Goals({ dictionary }) {
  const found = useAsked(() => goals(dictionary), [dictionary]).value?.goals ?? [];
  if (!found.length) return null;
  return html`<section class="card" aria-labelledby="goals"><h2 id="goals">${t("page.goals")}</h2><p class="soft small">${t("overview.goals_about")}</p><${GoalList} goals=${found} dictionary=${dictionary} /></section>`;
}

function seconds(entry) {
  const spent = (Date.parse(entry.ended) - Date.parse(entry.began)) / 1000;
  return is(spent) && spent >= 0 ? spent : null;
}
const duration = (spent) => (spent === null ? "–" : spent < 90 ? t("overview.seconds", { n: short(Math.round(spent)) }) : t("overview.minutes", { n: short(spent / 60) }));

function Cost({ run, found }) {
  const history = (run.history || []).filter((each) => each.command);
  const { provenance = {} } = run;
  const facts = [["overview.model", found.model], ["overview.site", `${found.site} (${found.side})`], ["overview.text", found.text], ["overview.rows", whole(found.rows)], ["overview.documents", whole(found.documents)], ["overview.seed", String(found.seed ?? provenance.seed ?? "–")]];
  return html`<section class="card" aria-labelledby="cost"><h2 id="cost">${t("overview.cost")}</h2><div class="halves">
    <dl class="pairs wide-pairs">${facts.map(([name, value]) => html`<div><dt>${t(name)}</dt><dd><bdi>${value}</bdi></dd></div>`)}</dl>
    ${history.length ? html`<div class="scroll" tabindex="0" role="region" aria-labelledby="cost"><table class="figures"><thead><tr><th scope="col">${t("overview.step")}</th><th scope="col" class="num">${t("overview.time")}</th></tr></thead>
      <tbody>${history.slice(-8).map((each) => html`<tr><th scope="row"><code>${each.command.split(" ").slice(0, 2).join(" ")}</code></th><td class="num">${duration(seconds(each))}</td></tr>`)}</tbody></table></div>` : ""}</div></section>`;
}

export function Overview({ dictionary, facts, address }) {
  const asked = useAsked(() => overview(dictionary), [dictionary]);
  if (asked.error) return html`<h1>${t("page.overview")}</h1><${Failure} error=${asked.error} again=${asked.again} />`;
  if (!asked.value) return html`<${Waiting} />`;
  const found = asked.value;
  const run = found.run || {};
  return html`<h1 class="title"><bdi>${facts.title}</bdi> <span class="soft at" lang="en">${found.model} · ${found.site}</span></h1>
    <div class="first"><${Verdict} verdict=${found.verdict} counts=${{ certified: found.status.certified, width: found.width, null: found.certificate?.null?.false_positive_rate }} /><${Certificate} found=${found} dictionary=${dictionary} /></div>
    <${FeatureMap} dictionary=${dictionary} address=${address} />
    <div class="pair"><${Spectrum} found=${found} /><${Frontier} points=${run.frontier} /></div>
    <${Goals} dictionary=${dictionary} /><${Premises} premises=${run.premises} /><${Cost} run=${run} found=${found} />
    ${isStatic ? "" : html`<p class="soft small"><${Link} to=${{ view: "list", dictionary }}>${t("overview.to_list")}<//></p>`}`;
}
