import { html, useState } from "../vendor/preact-htm.module.js";
import { post } from "../data.js";
import { t } from "../words.js";

/** Where the token that the terminal shows is entered once. */
export function Login({ done }) {
  const [refused, setRefused] = useState("");
  const enter = async (event) => {
    event.preventDefault();
    const box = event.target.elements.token;
    try {
      await post("login", { token: box.value.trim() });
      box.value = "";
      done();
    } catch (error) {
      setRefused(error.status === 429 ? t("login.wait") : t("login.wrong"));
    }
  };
  return html`<main class="page login"><h1>Kyomei</h1><p>${t("login.about")}</p>
    <form onSubmit=${enter}><label for="token">${t("login.token")}</label>
      <div class="row"><input id="token" name="token" type="password" autocomplete="off" required autofocus /><button class="button primary">${t("login.enter")}</button></div>
      <p role="alert" class="bad">${refused}</p></form></main>`;
}
