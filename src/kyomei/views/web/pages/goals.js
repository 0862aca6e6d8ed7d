// What a few features tell of whole documents: each goal, what fires for it, and what else could tell it.
import { html, useEffect } from "../vendor/preact-htm.module.js";
import { Link } from "../address.js";
import { goals } from "../data.js";
import { Badge, Chips, Empty, Failure, Notice, useAsked, Waiting } from "../parts.js";
import { day, fixed, is, range, rich, short, t, whole } from "../words.js";

const BESIDE = ["set", "all", "probe", "bag"];
const CHANCE = { AUC: 0.5, "R²": 0 };
export const signed = (value) => (value > 0 ? `+${short(value)}` : short(value));
const span = ([low, high], digits = 2) => range(fixed(low, digits), fixed(high, digits));
const state = (goal) => (goal.expired ? "expired_short" : goal.told ? "told" : "not_told");
const stateName = (goal) => (goal.expired ? t("goals.expired_short") : t(goal.told ? "goal.told" : "goal.not_told"));

/** The figures of a goal in a few words. */
export function GoalFigures({ goal }) {
  const parts = [["set", goal.measure], ["precision", t("goal.precision")], ["recall", t("goal.recall")]];
  return html`<span>${parts.filter(([key]) => goal[key]).map(([key, name]) => `${name} ${fixed(goal[key].value)}`).join(" · ")}</span>`;
}

function State({ goal }) {
  return html`<span class=${state(goal) === "told" ? "passes" : "fails"}>${stateName(goal)}</span>`;
}

/** All goals in a line each. */
export function GoalList({ goals, dictionary }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${t("page.goals")}><table class="figures"><thead><tr><th scope="col">${t("watch.goal")}</th><th scope="col">${t("watch.state")}</th><th scope="col" class="num">${t("goals.size")}</th><th scope="col" class="num">${t("goals.figure")}</th><th scope="col" class="num">${t("goal.precision")}</th><th scope="col" class="num">${t("goal.recall")}</th></tr></thead>
    <tbody data-list>${goals.map((goal) => html`<tr><th scope="row"><${Link} data-item to=${{ view: "goals", dictionary, goal: goal.name }}><bdi>${goal.name}</bdi><//></th><td><${State} goal=${goal} /></td><td class="num">${whole(goal.features.length)}</td><td class="num">${goal.measure} ${fixed(goal.set.value)}</td><td class="num">${fixed(goal.precision?.value)}</td><td class="num">${fixed(goal.recall?.value)}</td></tr>`)}</tbody></table></div>`;
}

/** Figures over one axis, each a point in its interval; the dashed line is chance. */
function Beside({ goal, id }) {
  const chance = CHANCE[goal.measure];
  const rows = [...BESIDE.map((key) => [key, goal[key].value, goal[key].interval]), ["shuffled", goal.shuffled.median, goal.shuffled.range]];
  const low = Math.max(chance - 0.5, Math.min(chance, ...rows.map(([, , ends]) => ends[0]).filter(is)) - 0.03);
  const at = (value) => `${(100 * Math.max(0, Math.min(1, (value - low) / (1 - low)))).toFixed(2)}%`;
  const mark = (value, [from, to]) => is(value) && html`<span class="interval" aria-hidden="true"><i class="chance" style=${{ left: at(chance) }}></i><i class="ends" style=${{ left: at(from), right: `calc(100% - ${at(to)})` }}></i><i class="point" style=${{ left: at(value) }}></i></span>`;
  return html`<h3 id=${id}>${t("goals.beside", { measure: goal.measure })}</h3><div class="scroll" tabindex="0" role="region" aria-labelledby=${id}><table class="figures intervals"><thead><tr><th scope="col">${t("goals.by")}</th><th scope="col" class="num">${goal.measure}</th><th scope="col" colspan="2" class="over-both">${t("goals.interval")}</th></tr></thead>
    <tbody>${rows.map(([key, value, ends]) => html`<tr class=${`by-${key}`}><th scope="row">${t(`goals.by_${key}`)}</th><td class="num">${fixed(value, 3)}</td><td class="num soft">${span(ends)}</td><td>${mark(value, ends)}</td></tr>`)}</tbody></table></div>`;
}

function Fires({ goal, dictionary, id }) {
  return html`<h3 id=${id}>${t("goals.fires")}</h3><p class="soft small">${t(`goals.pooled_${goal.pooling}`)}</p>
    <div class="scroll" tabindex="0" role="region" aria-labelledby=${id}><table class="figures"><thead><tr><th scope="col">${t("page.feature")}</th><th scope="col" class="num">${t("goals.weight")}</th><th scope="col">${t("goals.what")}</th></tr></thead>
    <tbody data-list>${goal.features.map((each) => html`<tr><th scope="row"><${Link} data-item to=${{ view: "feature", dictionary, latent: each.latent }}>${each.latent}<//> ${each.status && html`<${Badge} status=${each.status} />`}</th><td class="num">${signed(each.weight)}</td><td>${each.label ? html`<bdi class="label-text">${each.label}</bdi>` : html`<${Chips} tokens=${each.top_tokens || []} most=${5} />`}</td></tr>`)}</tbody></table></div>`;
}

function Goal({ goal, dictionary, number }) {
  const { documents } = goal;
  const values = { count: whole(goal.features.length), measure: goal.measure, value: fixed(goal.set.value), low: fixed(goal.set.interval[0]), high: fixed(goal.set.interval[1]) };
  const facts = ["precision", "recall", "prevalence"].filter((key) => goal[key]);
  return html`<section class="card goal" id=${`goal-${number}`} aria-labelledby=${`goal-name-${number}`}><h2 id=${`goal-name-${number}`}><bdi>${goal.name}</bdi> <span class="small"><${State} goal=${goal} /></span></h2>
    ${goal.expired && html`<${Notice}><p>${rich("goals.expired", { date: day(goal.expired) })}</p><//>`}
    <p class="lead">${t(goal.told ? "goals.says" : "goals.says_not", values)}</p>
    ${facts.length > 0 && html`<dl class="facts tight-facts">${facts.map((key) => html`<div><dt>${t(key === "prevalence" ? "goals.prevalence" : `goal.${key}`)}</dt><dd class="num">${fixed(goal[key].value)} <span class="soft small">${span(goal[key].interval)}</span></dd></div>`)}
      ${is(goal.threshold) && html`<div><dt>${t("goals.threshold")}</dt><dd class="num">${short(goal.threshold)}</dd></div>`}</dl>`}
    <div class="halves spaced"><div><${Fires} goal=${goal} dictionary=${dictionary} id=${`fires-${number}`} /></div><div><${Beside} goal=${goal} id=${`beside-${number}`} /></div></div>
    <p class="soft small spaced">${t("goals.documents", { fit: whole(documents.fit), choose: whole(documents.choose), report: whole(documents.report), groups: whole(goal.groups) })}</p></section>`;
}

export function Goals({ dictionary, address }) {
  const asked = useAsked(() => goals(dictionary), [dictionary]);
  const wanted = asked.value?.goals.findIndex((goal) => goal.name === address.goal) ?? -1;
  useEffect(() => {
    if (wanted >= 0) document.getElementById(`goal-${wanted}`)?.scrollIntoView();
  }, [wanted]);
  if (asked.error) return html`<h1>${t("page.goals")}</h1><${Failure} error=${asked.error} again=${asked.again} />`;
  if (!asked.value) return html`<h1>${t("page.goals")}</h1><${Waiting} />`;
  const { goals: found, others } = asked.value;
  return html`<h1>${t("page.goals")}</h1><p class="about soft">${rich("goals.about")}</p>
    ${found.length > 1 && html`<section class="card"><${GoalList} goals=${found} dictionary=${dictionary} /></section>`}
    ${found.length ? found.map((goal, number) => html`<${Goal} key=${goal.name} goal=${goal} dictionary=${dictionary} number=${number} />`) : html`<${Empty} title=${t("goals.none")}>${rich("goals.none_do")}<//>`}
    ${others.length > 0 && html`<p class="soft small">${t("goals.others")} <bdi>${others.join(", ")}</bdi></p>`}`;
}
