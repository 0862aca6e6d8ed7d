// The map of the features: coloured by certificate, origin or frequency; moved, chosen, searched.
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.module.js";
import { go, Link } from "../address.js";
import { brief, features, map } from "../data.js";
import { Badge, Chips, Empty, Failure, ORIGINS, originName, STATUSES, statusName, useAsked, Waiting } from "../parts.js";
import { percent, t, whole } from "../words.js";
import { Scatter } from "../scatter.js";

const MOST_FOUND = 500;
const TYPING_MS = 250;
const rgb = (name) => {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hex = pen.fillStyle;
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
};
const tones = { status: (key) => `--${key.replace(" ", "-")}`, origin: (key) => `--${key === "context-or-unexplained" ? "context" : key}` };

function styles(columns, by, found, off) {
  const named = Object.fromEntries((by === "origin" ? ORIGINS : STATUSES).map((key) => [key, rgb(tones[by === "origin" ? "origin" : "status"](key))]));
  const [low, high, soft] = [rgb("--line"), rgb("--accent"), rgb("--soft")];
  const logs = columns.frequency.map((f) => Math.log10(Math.max(f, 1e-7)));
  const [least, most] = [Math.min(...logs), Math.max(...logs)];
  const key = by === "origin" ? columns.origin : columns.status;
  const colours = columns.latent.map((latent, i) => {
    let colour = named[key[i]] || soft;
    if (by === "frequency") {
      const share = most > least ? (logs[i] - least) / (most - least) : 1;
      colour = low.map((from, k) => from + (high[k] - from) * (0.12 + 0.88 * share));
    }
    return [...colour, found ? (found.has(latent) ? 1 : 0.12) : 0.85];
  });
  const sizes = columns.latent.map((latent) => (found?.has(latent) ? 10 : columns.latent.length > 8000 ? 4 : columns.latent.length > 2000 ? 6 : 8));
  const order = columns.latent.map((_, i) => i).filter((i) => by === "frequency" || !off.includes(key[i]));
  const rank = (i) => (found?.has(columns.latent[i]) ? 1 : 0);
  if (found) order.sort((a, b) => rank(a) - rank(b));
  return { colours, sizes, order };
}

function Legend({ by, columns, off, setOff }) {
  if (by === "frequency") return html`<p class="ramp soft small"><span>${t("map.rare")}</span><i aria-hidden="true"></i><span>${t("map.often")}</span></p>`;
  const key = by === "origin" ? columns.origin : columns.status;
  const keys = (by === "origin" ? ORIGINS : STATUSES).filter((each) => key.includes(each));
  const flip = (each) => setOff(off.includes(each) ? off.filter((one) => one !== each) : [...off, each]);
  return html`<ul class="map-legend">${keys.map((each) => html`<li><button class=${`is-${each.replaceAll(" ", "_").replaceAll("-", "_")}`} aria-pressed=${!off.includes(each)} onClick=${() => flip(each)}>
    <i class="dot" aria-hidden="true"></i>${by === "origin" ? originName(each) : statusName(each)} <span class="num soft">${whole(key.filter((k) => k === each).length)}</span></button></li>`)}</ul>`;
}

function Chosen({ latent, dictionary }) {
  const asked = useAsked(() => brief(dictionary, latent), [dictionary, latent]);
  const row = asked.value;
  if (row?.latent !== latent) return null;
  const label = row.labels?.find((each) => each.label)?.label;
  return html`<div class="map-chosen"><p><${Link} to=${{ view: "feature", dictionary, latent }}>${t("page.feature")} ${latent}<//> <${Badge} status=${row.status} /></p>
    ${label && html`<p class="label-text"><bdi>${label}</bdi></p>`}<${Chips} tokens=${row.top_tokens || []} /><p class="soft small num">${t("column.frequency")} ${percent(row.frequency)}</p></div>`;
}

function Drawn({ columns, dictionary, by, found }) {
  const canvas = useRef(null);
  const ring = useRef(null);
  const held = useRef(null);
  const [chosen, setChosen] = useState(-1);
  const [under, setUnder] = useState(-1);
  const [off, setOff] = useState([]);
  useEffect(() => setOff([]), [by]);
  useEffect(() => {
    const open = (i) => go({ view: "feature", dictionary, latent: columns.latent[i] });
    const scatter = new Scatter(canvas.current, columns.x, columns.y, { changed: setChosen, over: setUnder, open });
    scatter.moved = () => {
      if (scatter.chosen < 0) return;
      const [x, y] = scatter.at(scatter.chosen);
      Object.assign(ring.current.style, { transform: `translate(${x - 11}px, ${y - 11}px)` });
    };
    held.current = scatter;
    return () => scatter.end();
  }, [columns]);
  useEffect(() => {
    const paint = () => held.current.style(styles(columns, by, found, off));
    paint();
    window.addEventListener("kyomei-theme", paint);
    return () => window.removeEventListener("kyomei-theme", paint);
  }, [columns, by, found, off]);
  const said = under >= 0 ? under : chosen;
  return html`<div class="map-frame"><div class="map-canvas">
      <canvas ref=${canvas} tabindex="0" role="application" aria-label=${t("map.says", { count: whole(columns.latent.length) })} aria-describedby="map-keys"></canvas>
      <span ref=${ring} class="ring" hidden=${chosen < 0} aria-hidden="true"></span>
      <div class="map-tools"><button class="plain" aria-label=${t("map.in")} onClick=${() => held.current.scale(1.5)}>+</button><button class="plain" aria-label=${t("map.out")} onClick=${() => held.current.scale(1 / 1.5)}>−</button><button class="plain" onClick=${() => held.current.reset()}>${t("map.all")}</button></div>
      <p class="map-said num" aria-live="polite">${said >= 0 ? `${columns.latent[said]} · ${statusName(columns.status[said])} · ${percent(columns.frequency[said])}` : ""}</p>
    </div>
    <${Legend} by=${by} columns=${columns} off=${off} setOff=${setOff} />
    ${chosen >= 0 && html`<${Chosen} latent=${columns.latent[chosen]} dictionary=${dictionary} />`}
    <p class="soft small" id="map-keys">${t("map.keys")}</p></div>`;
}

export function FeatureMap({ dictionary, address }) {
  const [by, setBy] = useState(address.colour || "status");
  const [typed, setTyped] = useState("");
  const [found, setFound] = useState(null);
  const asked = useAsked(() => map(dictionary), [dictionary]);
  useEffect(() => {
    if (!typed.trim()) return void setFound(null);
    const later = setTimeout(() => features(dictionary, { q: typed, size: MOST_FOUND }).then(({ rows, total }) => setFound({ latents: new Set(rows.map((row) => row.latent)), total }), () => setFound(null)), TYPING_MS);
    return () => clearTimeout(later);
  }, [typed, dictionary]);
  const head = html`<div class="section-head"><h2 id="map">${t("map.title")}</h2><p class="soft small">${t("map.about")}</p></div>`;
  if (asked.error) return html`<section>${head}<${Failure} error=${asked.error} /></section>`;
  if (!asked.value) return html`<section>${head}<${Waiting} /></section>`;
  if (!asked.value.latent.length) return html`<section class="card">${head}<${Empty} title=${t("map.none")} /></section>`;
  return html`<section class="card map" aria-labelledby="map">${head}
    <div class="map-head"><input type="search" aria-label=${t("map.search")} placeholder=${t("map.search")} value=${typed} onInput=${(event) => setTyped(event.target.value)} />
      <div class="ways" role="group" aria-label=${t("map.colour")}>${["status", "origin", "frequency"].map((each) => html`<button class="way" aria-pressed=${by === each} onClick=${() => setBy(each)}>${t(`column.${each}`)}</button>`)}</div>
      <p class="soft small" role="status">${found ? t("map.found", { count: whole(found.total) }) : ""}</p></div>
    <${Drawn} columns=${asked.value} dictionary=${dictionary} by=${by} found=${found?.latents ?? null} /></section>`;
}
