import { html } from "../vendor/preact-htm.module.js";
export function Compare() { return html`<h1>Compare</h1>`; }
