import { html } from "../vendor/preact-htm.module.js";
export function Overview() { return html`<h1>Overview</h1>`; }
