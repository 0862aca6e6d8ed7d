// The address says what is shown; so it can be sent to a colleague. It never holds a secret.
import { html, useEffect, useState } from "./vendor/preact-htm.module.js";
import { query } from "./data.js";

const MANY = ["status", "origin", "edit"];

export function read() {
  const found = { view: "overview" };
  const asked = new URLSearchParams(location.search);
  for (const name of asked.keys()) found[name] = MANY.includes(name) ? asked.getAll(name) : asked.get(name);
  return found;
}

export const href = (values) => {
  const { view, ...rest } = values;
  return `?${query({ view, ...rest })}`;
};

export function go(values, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", href(values));
  window.dispatchEvent(new Event("kyomei-address"));
}

export function useAddress() {
  const [address, set] = useState(read());
  useEffect(() => {
    const changed = () => set(read());
    window.addEventListener("popstate", changed);
    window.addEventListener("kyomei-address", changed);
    return () => {
      window.removeEventListener("popstate", changed);
      window.removeEventListener("kyomei-address", changed);
    };
  }, []);
  return address;
}

/** A link within the pages: the browser's own for new tabs, without loading anything anew otherwise. */
export function Link({ to, children, ...rest }) {
  const follow = (event) => {
    if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    const other = read().view !== to.view || read().latent !== String(to.latent);
    go(to);
    if (other) window.scrollTo(0, 0);
  };
  return html`<a href=${href(to)} onClick=${follow} ...${rest}>${children}</a>`;
}
