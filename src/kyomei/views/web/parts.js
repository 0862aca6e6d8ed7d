// Pieces that several pages are made of.
import { html, useCallback, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact-htm.module.js";
import { Link } from "./address.js";
import { fixed, is, percent, rich, said, short, t, whole } from "./words.js";

export const STATUSES = ["certified", "split", "merged", "unstable", "not certified", "dead"];
export const ORIGINS = ["token", "position", "context-or-unexplained"];
const slug = (name) => name.replaceAll(" ", "_").replaceAll("-", "_");
export const statusName = (status) => t(`status.${slug(status)}`);
export const statusMeaning = (status) => t(`status.${slug(status)}.means`);
export const originName = (origin) => t(`origin.${slug(origin)}`);

// A shape for each status: it is told without its colour.
const SHAPES = {
  certified: "M3 8.5l3.2 3.2L13 4.8",
  split: "M8 14V9M8 9L3.5 3M8 9l4.5-6",
  merged: "M8 2v5M8 7l-4.5 6M8 7l4.5 6",
  unstable: "M2 9c2-5 4-5 6 0s4 5 6 0",
  "not certified": "M4 8h8",
  dead: "M4 4l8 8M12 4l-8 8",
};

export function Mark({ status }) {
  return html`<svg class="mark" viewBox="0 0 16 16" aria-hidden="true"><path d=${SHAPES[status] || SHAPES["not certified"]} /></svg>`;
}

export function Badge({ status, large = false }) {
  return html`<span class=${`badge is-${slug(status)} ${large ? "large" : ""}`} title=${statusMeaning(status)}>
    <${Mark} status=${status} />${statusName(status)}
  </span>`;
}

/** Whitespace that would move a line is shown by a sign; everything else as it is. */
export function visible(token) {
  return token.replace(/\r?\n[ \t]*/g, "↵ ").replace(/\t/g, "⇥ ").replace(/ {3,}/g, "  ");
}

/** One token on its own: the space at its ends is seen, and counted where there is more than one. */
const exact = (token) => token.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥").replace(/ {2,}/g, (run) => `␣×${run.length}`).replace(/^ | $|(?<=↵) /g, "␣");
export const Chip = ({ token }) => html`<bdi class="chip">${exact(token) || "∅"}</bdi>`;

export function Chips({ tokens, most = 8 }) {
  return html`<span class="chips">${tokens.slice(0, most).map((token) => html`<${Chip} token=${token} />`)}</span>`;
}

export const shade = (value, most) => (value > 0 && most > 0 ? 0.12 + 0.88 * Math.min(1, value / most) : 0);

/** A stretch of text, each token shaded by what the latent does there. */
export function Shaded({ tokens, values, most, focus = -1 }) {
  return html`<bdi class="shaded">${tokens.map((token, i) => {
    const a = shade(values[i], most);
    const said = a ? `${token.trim() || JSON.stringify(token)} · ${short(values[i])}` : undefined;
    return html`<span class=${`${a ? "lit" : ""} ${i === focus ? "focus" : ""}`} style=${a ? { "--a": a.toFixed(3) } : undefined} title=${said}>${visible(token)}</span>`;
  })}</bdi>`;
}

export function Meter({ value, most = 1, tone = "" }) {
  const share = is(value) && most > 0 ? Math.max(0, Math.min(1, value / most)) : 0;
  return html`<span class=${`meter ${tone}`} aria-hidden="true"><i style=${{ width: `${(share * 100).toFixed(1)}%` }}></i></span>`;
}

export function Notice({ tone = "plain", title, children }) {
  return html`<div class=${`notice ${tone}`} role=${tone === "bad" ? "alert" : "note"}>
    ${title && html`<p class="notice-title">${title}</p>`}<div>${children}</div>
  </div>`;
}

export function Failure({ error, again }) {
  if (error.status === 401) return null;
  const text = error.status === 0 ? t("error.unreachable") : error.status === undefined ? String(error) : null;
  return html`<${Notice} tone="bad" title=${t("error.title")}>
    ${text ? html`<p>${text}</p>` : html`<p>${t("error.told", { expected: said(error.expected), found: said(error.found) })}</p><p>${t("error.do", { do: said(error.todo) })}</p>`}
    ${again && html`<button class="button" onClick=${again}>${t("error.again")}</button>`}
  <//>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><svg viewBox="0 0 64 32" aria-hidden="true"><circle cx="24" cy="16" r="13" /><circle cx="40" cy="16" r="13" /></svg>
    <p class="empty-title">${title}</p>${children && html`<p>${children}</p>`}</div>`;
}

export const Waiting = () => html`<p class="waiting" role="status">${t("waiting")}</p>`;

/** What a promise gives: {value}, {error} or neither yet; the last value stays until the next one is there. */
export function useAsked(ask, asked) {
  const [found, set] = useState({});
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let current = true;
    set((before) => ({ ...before, busy: true }));
    ask().then(
      (value) => current && set({ value }),
      (error) => current && set({ error }),
    );
    return () => (current = false);
  }, [...asked, turn]);
  return { ...found, again: () => setTurn(turn + 1) };
}

export function Pager({ page, size, total, to }) {
  const last = Math.max(1, Math.ceil(total / size));
  if (last < 2) return null;
  const step = (number, text, rel) =>
    number < 1 || number > last
      ? html`<span class="button off" aria-disabled="true">${text}</span>`
      : html`<${Link} class="button" to=${to(number)} rel=${rel}>${text}<//>`;
  return html`<nav class="pager" aria-label=${t("pager.name")}>
    ${step(page - 1, t("pager.before"), "prev")}
    <span>${t("pager.at", { page: whole(page), last: whole(last) })}</span>
    ${step(page + 1, t("pager.after"), "next")}
  </nav>`;
}

const seen = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A chart that uPlot draws in the page's own colours: `plan` gives its options and data, and is asked again when colours change. */
function Chart({ plan, label, height }) {
  const place = useRef(null);
  useLayoutEffect(() => {
    let plot = null;
    const width = () => Math.max(220, place.current.clientWidth);
    const draw = () => {
      plot?.destroy();
      const { options, values } = plan();
      plot = new window.uPlot({ width: width(), height, legend: { show: false }, cursor: { show: false }, padding: [8, 8, 0, 0], ...options }, values, place.current);
    };
    draw();
    const watch = new ResizeObserver(() => plot?.setSize({ width: width(), height }));
    watch.observe(place.current);
    window.addEventListener("kyomei-theme", draw);
    return () => {
      watch.disconnect();
      window.removeEventListener("kyomei-theme", draw);
      plot?.destroy();
    };
  }, [plan, label]);
  return html`<div class="chart" role="img" aria-label=${label}><div ref=${place}></div></div>`;
}

function axes(across, up) {
  const axis = { stroke: seen("--soft"), font: "12px system-ui, sans-serif", grid: { show: false }, ticks: { stroke: seen("--line"), size: 4 } };
  return [
    { ...axis, size: 30, labelFont: axis.font, labelSize: 20, labelGap: 0, gap: 4, space: 56, ...across },
    { ...axis, size: 52, grid: { stroke: seen("--grid"), width: 1 }, ...up },
  ];
}

/** Bars of a histogram. series: [{counts, tone}] one behind the other; x: left edges (or their logarithms). */
export function Bars({ x, series, label, xName, format, height = 180 }) {
  const plan = useCallback(() => {
    const step = x.length > 1 ? x[1] - x[0] : 1;
    const bars = ({ tone }) => ({ paths: window.uPlot.paths.bars({ size: [0.9, 100], align: 1 }), fill: seen(tone), stroke: seen(tone), width: 0, points: { show: false } });
    return {
      options: {
        scales: { x: { time: false, range: [x[0], x[x.length - 1] + step] }, y: { range: (u, low, high) => [0, Math.max(1, high * 1.05)] } },
        axes: axes({ label: xName, values: (u, ticks) => ticks.map(format) }, { values: (u, ticks) => ticks.map((v) => (Number.isInteger(v) ? whole(v) : "")) }),
        series: [{}, ...series.map(bars)],
      },
      values: [x, ...series.map(({ counts }) => counts)],
    };
  }, [x, series, xName]);
  return html`<${Chart} plan=${plan} label=${label} height=${height} />`;
}

/** Lines over one axis. series: [{values, tone, dash}]. */
export function Lines({ x, series, label, xName, height = 220 }) {
  const plan = useCallback(() => {
    const line = ({ tone, dash }) => ({ stroke: seen(tone), width: 2, dash: dash ? [6, 4] : undefined, points: { show: false } });
    return {
      options: {
        scales: { x: { time: false }, y: { range: (u, low, high) => [Math.min(0, low), Math.max(1.1, high * 1.05)] } },
        axes: axes({ label: xName, values: (u, ticks) => ticks.map((v) => (Number.isInteger(v) ? whole(v) : "")) }, { values: (u, ticks) => ticks.map(short) }),
        series: [{}, ...series.map(line)],
      },
      values: [x, ...series.map(({ values }) => values)],
    };
  }, [x, series, xName]);
  return html`<${Chart} plan=${plan} label=${label} height=${height} />`;
}

/** Points in the plane. groups: [{points: [[x, y]], tone}]. */
export function Points({ groups, label, xName, yName, yFormat, height = 220 }) {
  const plan = useCallback(() => {
    const all = groups.flatMap(({ points }) => points);
    const x = [...new Set(all.map(([at]) => at))].sort((a, b) => a - b);
    const pad = Math.max(0.12 * (x[x.length - 1] - x[0]), 0.05 * x[x.length - 1], 0.5);
    // Points of one group that stand at one place across are drawn as series of their own.
    const series = groups.flatMap(({ points, tone }) => points.map((point) => ({ point, tone })));
    const dot = ({ tone }) => ({ paths: () => null, points: { show: true, size: 10, width: 0, fill: seen(tone), stroke: seen(tone) } });
    return {
      options: {
        scales: { x: { time: false, range: [Math.max(0, x[0] - pad), x[x.length - 1] + pad] }, y: { range: (u, low, high) => [0, high * 1.15 || 1] } },
        axes: axes({ label: xName, values: (u, ticks) => ticks.map(short) }, { values: (u, ticks) => ticks.map(yFormat), label: yName, labelFont: "12px system-ui, sans-serif", labelSize: 20, labelGap: 0 }),
        series: [{}, ...series.map(dot)],
      },
      values: [x, ...series.map(({ point }) => x.map((at) => (at === point[0] ? point[1] : null)))],
    };
  }, [groups, xName, yName]);
  return html`<${Chart} plan=${plan} label=${label} height=${height} />`;
}

/** Shares of a whole in one bar, with their names and numbers under it. */
export function Shares({ counts, name, of, to }) {
  const total = of.reduce((sum, key) => sum + (counts[key] || 0), 0) || 1;
  const shown = of.filter((key) => counts[key]);
  return html`<div class="shares">
    <div class="stack" aria-hidden="true">${shown.map((key) => html`<i class=${`is-${slug(key)}`} style=${{ flexGrow: counts[key] }}></i>`)}</div>
    <ul>${shown.map((key) => html`<li class=${`is-${slug(key)}`}><i class="dot" aria-hidden="true"></i>
      ${to ? html`<${Link} to=${to(key)}>${name(key)}<//>` : html`<span>${name(key)}</span>`}
      <span class="num">${whole(counts[key])}</span><span class="num soft">${percent(counts[key] / total)}</span></li>`)}</ul>
  </div>`;
}

export { fixed, percent, rich, short, whole };
