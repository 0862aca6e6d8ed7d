// Where data comes from: routes below api/ behind the server, files below data/ in an export.

const base = document.querySelector('meta[name="kyomei-data"]').content;
export const isStatic = base !== "api";
const MOST_KEPT = 400;
const kept = new Map();

export class Refused extends Error {
  constructor(status, { expected = "", found = "", do: todo = "" } = {}) {
    super(found || String(status));
    Object.assign(this, { status, expected, found, todo });
  }
}

async function answer(address, options) {
  let response;
  try {
    response = await fetch(address, { credentials: "same-origin", ...options });
  } catch {
    throw new Refused(0);
  }
  if (response.status === 204) return null;
  const told = await response.json().catch(() => ({}));
  if (!response.ok) {
    if (response.status === 401) window.dispatchEvent(new Event("kyomei-login"));
    throw new Refused(response.status, told);
  }
  return told;
}

/** GET, remembered: an index does not change while it is looked at. */
function once(address) {
  if (!kept.has(address)) {
    const promise = answer(address);
    promise.catch(() => kept.delete(address));
    kept.set(address, promise);
    if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(address);
}

export const forget = () => kept.clear();

export function query(values) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") found.append(name, each);
    }
  }
  return found.toString();
}

const get = (route, values = {}, keep = true) => {
  const asked = query(values);
  return (keep ? once : answer)(`${base}/${route}${asked ? `?${asked}` : ""}`);
};

export const post = (route, body) =>
  answer(`${base}/${route}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

const file = (name) => once(`${base}/${name}.json`);
const named = encodeURIComponent;

export const state = (dictionary) => (isStatic ? file("state") : get("state", { dictionary }, false));
export const strings = (lang) => (isStatic ? file(`strings-${lang}`) : get("strings", { lang }));
export const overview = (dictionary) => (isStatic ? file(`${named(dictionary)}/overview`) : get("overview", { dictionary }));
export const map = (dictionary) => (isStatic ? file(`${named(dictionary)}/map`) : get("map", { dictionary }));
export const goals = (dictionary) => (isStatic ? file(`${named(dictionary)}/goals`) : get("goals", { dictionary }, false));
export const watch = () => (isStatic ? file("watch") : get("watch", {}, false));
export const exportAddress = `${base}/labels/export`;

export async function features(dictionary, asked) {
  if (!isStatic) return get("features", { dictionary, ...asked }, false);
  const { rows } = await file(`${named(dictionary)}/list`);
  return chosen(rows, asked);
}

export async function feature(dictionary, latent) {
  if (isStatic) return file(`${named(dictionary)}/features/${latent}`);
  return get(`features/${latent}`, { dictionary }, false);
}

/** What is said of a latent in a line; remembered, unlike its page, whose label may have changed. */
export const brief = (dictionary, latent) => (isStatic ? feature(dictionary, latent) : get(`features/${latent}`, { dictionary }));

export async function examples(dictionary, latent) {
  const found = isStatic ? await file(`${named(dictionary)}/features/${latent}`) : await get(`features/${latent}/examples`, { dictionary });
  return found.examples;
}

export async function document_(dictionary, number, around, size) {
  if (!isStatic) return get(`documents/${number}`, { dictionary, around, size });
  const whole = await file(`${named(dictionary)}/documents/${number}`);
  if (whole.text === null) return whole;
  // Places are counted in code points, as Python does; JavaScript's strings count otherwise.
  const points = Array.from(whole.text);
  const start = Math.max(0, around - Math.floor(size / 2));
  return { ...whole, start, length: points.length, text: points.slice(start, start + size).join("") };
}

export async function compare(a, b, asked) {
  if (!isStatic) return get("compare", { a, b, ...asked });
  const whole = await file(`compare/${named(a)}~${named(b)}`);
  const kind = asked.kind;
  const rows = kind ? whole.rows.filter((row) => row.kind === kind) : whole.rows;
  const { page = 1, size = 50 } = asked;
  return { ...whole, rows: rows.slice((page - 1) * size, page * size), total: rows.length, page, size };
}

export async function labels(dictionary) {
  return isStatic ? { labels: (await file("labels"))[dictionary] ?? [], stale: 0 } : get("labels", { dictionary }, false);
}

const ORDER = ["certified", "split", "merged", "unstable", "not certified", "dead"];

/** What the server's list does, for a file server: the same filters, the same order. */
function chosen(rows, { q = "", status = [], origin = [], min_frequency, max_frequency, sort = "status", page = 1, size = 50 }) {
  const text = q.trim().toLowerCase();
  const [low, high] = [min_frequency || 0, max_frequency || 1];
  const wanted = rows.filter(
    (row) =>
      (!text || (row.token_text || "").includes(text) || String(row.latent) === text || (row.label || "").toLowerCase().includes(text)) &&
      (!status.length || status.includes(row.status)) &&
      (!origin.length || origin.includes(row.origin)) &&
      row.frequency >= low &&
      row.frequency <= high,
  );
  const key = sort.replace(/^-/, "");
  const way = sort.startsWith("-") ? -1 : 1;
  const of = (row) => (key === "status" ? ORDER.indexOf(row.status) : row[key]);
  wanted.sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (x == null || y == null) return (x == null) - (y == null) || a.latent - b.latent;
    return way * (x - y) || b.frequency - a.frequency || a.latent - b.latent;
  });
  const number = Number(page);
  return { rows: wanted.slice((number - 1) * size, number * size), total: wanted.length, page: number, size };
}
