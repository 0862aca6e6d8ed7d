import { html } from "../vendor/preact-htm.module.js";
export function Labels() { return html`<h1>Labels</h1>`; }
