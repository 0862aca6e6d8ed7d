import { html } from "../vendor/preact-htm.module.js";
export function Try() { return html`<h1>Try</h1>`; }
