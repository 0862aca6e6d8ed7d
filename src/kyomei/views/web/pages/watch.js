// What is watched of a deployed dictionary: is new text still like the evidence, since when not, and by what.
import { html, useEffect, useMemo } from "../vendor/preact-htm.module.js";
import { Link } from "../address.js";
import { isStatic, watch } from "../data.js";
import { Badge, Empty, Failure, Lines, useAsked, Waiting } from "../parts.js";
import { day, fixed, is, named, percent, rich, short, t, whole } from "../words.js";

const SECONDS = 10;
const SHIPPED = "replicas-0";
const TONES = { text: "--certified", reconstruction: "--merged", features: "--split", learnt: "--ink", goals: "--unstable" };
const minute = (moment) => (moment ? moment.slice(0, 16).replace("T", " ") : "–");
const ten = (log) => (is(log) ? (Math.abs(log) < 3 ? short(10 ** log) : html`10<sup>${fixed(log, 1)}</sup>`) : "–");
const kindName = (each) => (each.kind === each.name ? named("watched", each.kind) : html`${named("watched", each.kind)}: <bdi>${each.kind === "text" ? named("watched_text", each.name) : each.name}</bdi>`);

function State({ alarm }) {
  return html`<span class=${alarm ? "fails" : "passes"}>${t(alarm ? "watch.alarm" : "watch.quiet")}</span>`;
}

function Answer({ status }) {
  const kinds = Object.keys(status.alarms);
  const { state, reasons, until } = status.certificate;
  return html`<section class=${`card verdict level-${kinds.length ? "poor" : "good"}`} aria-label=${t("watch.answer")}>
    <p class="answer">${t(kinds.length ? "watch.drifted" : "watch.like")}</p>
    <p class="lead">${t("watch.counted", { documents: whole(status.documents), tokens: whole(status.tokens), windows: whole(status.windows) })}</p>
    ${kinds.length > 0 && html`<ul class="reasons">${kinds.map((kind) => html`<li><strong>${named("watched", kind)}</strong><span>${t("watch.since", { document: whole(status.alarms[kind].document), window: whole(status.alarms[kind].window), time: minute(status.alarms[kind].time) })}</span></li>`)}</ul>`}
    <p class=${state === "expired" ? "expired" : "soft"}>${state === "none" ? t("watch.no_certificate") : state === "valid" ? t("watch.valid", { until: day(until) }) : t("watch.expired", { reasons: reasons.map((each) => named("expired", each)).join(" · ") })}</p>
    <p class="soft small">${t("watch.reference", { documents: whole(status.reference.documents), share: is(status.least_share) ? percent(status.least_share) : "–" })}</p></section>`;
}

/** Evidence over the windows, each kind over its own threshold: an alarm is where it reaches 1. */
function Course({ windows, status, id }) {
  const { x, series } = useMemo(() => {
    const found = windows.filter((each) => each.evidence?.length);
    const kinds = [...new Set(found.flatMap((each) => each.evidence.map(({ kind }) => kind)))];
    const most = (each, kind) => {
      const own = each.evidence.filter((one) => one.kind === kind).map((one) => one.log10_evidence / one.log10_threshold);
      return own.length ? Math.max(...own) : null;
    };
    const lines = kinds.map((kind) => ({ name: named("watched", kind), tone: TONES[kind] || "--field", values: found.map((each) => most(each, kind)) }));
    return { x: found.map((each) => each.window), series: [...lines, { name: t("watch.threshold"), tone: "--bad", dash: true, values: found.map(() => 1) }] };
  }, [windows]);
  if (x.length < 2) return null;
  return html`<section class="card" aria-labelledby=${id}><h3 id=${id}>${t("watch.course")}</h3><p class="soft small">${t("watch.course_about")}</p>
    <${Lines} x=${x} series=${series} xName=${t("watch.window")} label=${t("watch.course_says", { windows: whole(x.length), kinds: whole(Object.keys(status.alarms).length) })} />
    <p class="keys soft small">${series.map(({ name, tone }) => html`<span><i class="dot" style=${{ background: `var(${tone})` }}></i>${name}</span>`)}</p></section>`;
}

function Evidence({ status, id }) {
  return html`<section class="card" aria-labelledby=${id}><h3 id=${id}>${t("watch.evidence")}</h3><p class="soft small">${t("watch.evidence_about", { rate: percent(status.rate) })}</p>
    <div class="scroll" tabindex="0" role="region" aria-labelledby=${id}><table class="figures"><thead><tr><th scope="col">${t("watch.what")}</th><th scope="col" class="num">${t("watch.now")}</th><th scope="col" class="num">${t("watch.highest")}</th><th scope="col" class="num">${t("watch.threshold")}</th><th scope="col">${t("watch.state")}</th></tr></thead>
    <tbody>${status.evidence.map((each) => html`<tr><th scope="row">${kindName(each)}</th><td class="num">${ten(each.log10_evidence)}</td><td class="num">${ten(each.log10_highest)}</td><td class="num">${ten(each.log10_threshold)}</td><td><${State} alarm=${each.alarm} /></td></tr>`)}</tbody></table></div>
    <p class="soft small">${t("watch.unexplained", { share: percent(status.unexplained), usual: percent(status.reference.unexplained) })}</p></section>`;
}

function Features({ status, id }) {
  return html`<section class="card" aria-labelledby=${id}><h3 id=${id}>${t("watch.features")}</h3><p class="soft small">${t("watch.features_about", { changed: whole(status.changed_features.length), width: whole(status.num_features) })}</p>
    <div class="scroll" tabindex="0" role="region" aria-labelledby=${id}><table class="figures"><thead><tr><th scope="col">${t("page.feature")}</th><th scope="col" class="num">${t("watch.rate")}</th><th scope="col" class="num">${t("watch.usual")}</th><th scope="col" class="num">${t("watch.highest")}</th><th scope="col">${t("watch.state")}</th></tr></thead>
    <tbody>${status.features.map((each) => html`<tr><th scope="row"><${Link} to=${{ view: "feature", dictionary: SHIPPED, latent: each.latent }}>${each.latent}<//> ${each.status && html`<${Badge} status=${each.status} />`}</th><td class="num">${percent(each.rate)}</td><td class="num">${percent(each.reference_rate)}</td><td class="num">${ten(each.log10_highest)}</td><td>${each.alarm ? html`<span class="fails">${t("watch.changed")}</span>` : html`<span class="soft">${t("watch.not_proved")}</span>`}</td></tr>`)}</tbody></table></div></section>`;
}

function Goals({ status, id }) {
  if (!status.goals.length) return null;
  return html`<section class="card" aria-labelledby=${id}><h3 id=${id}>${t("watch.goals")}</h3>
    <div class="scroll" tabindex="0" role="region" aria-labelledby=${id}><table class="figures"><thead><tr><th scope="col">${t("watch.goal")}</th><th scope="col" class="num">${t("watch.score")}</th><th scope="col" class="num">${t("watch.usual")}</th></tr></thead>
    <tbody>${status.goals.map((each) => html`<tr><th scope="row"><bdi>${each.goal}</bdi></th><td class="num">${short(each.score)}</td><td class="num">${short(each.reference_score)}</td></tr>`)}</tbody></table></div></section>`;
}

function Stream({ stream, number }) {
  const { name, status, windows } = stream;
  return html`<section aria-labelledby=${`stream-${number}`}><h2 id=${`stream-${number}`}><bdi>${name}</bdi> <span class="soft small">${t("watch.last", { time: minute(status.last) })}</span></h2>
    <div class="pair"><${Answer} status=${status} /><${Evidence} status=${status} id=${`evidence-${number}`} /></div>
    <${Course} windows=${windows} status=${status} id=${`course-${number}`} />
    <div class="pair"><${Features} status=${status} id=${`features-${number}`} /><${Goals} status=${status} id=${`goals-${number}`} /></div></section>`;
}

export function Watch() {
  const asked = useAsked(() => watch(), []);
  // A watch goes on while one looks at it.
  useEffect(() => {
    if (isStatic || asked.error) return;
    const later = setTimeout(asked.again, SECONDS * 1000);
    return () => clearTimeout(later);
  }, [asked.value]);
  if (asked.error) return html`<h1>${t("page.watch")}</h1><${Failure} error=${asked.error} again=${asked.again} />`;
  if (!asked.value) return html`<h1>${t("page.watch")}</h1><${Waiting} />`;
  const { streams } = asked.value;
  return html`<h1>${t("page.watch")}</h1><p class="about soft">${rich("watch.about")}</p>
    ${streams.length ? streams.map((stream, number) => html`<${Stream} key=${stream.name} stream=${stream} number=${number} />`) : html`<${Empty} title=${t("watch.none")}>${rich("watch.none_do")}<//>`}`;
}
