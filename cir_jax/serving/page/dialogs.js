// SPDX-License-Identifier: Apache-2.0
// The dialogs of the page: the browser keeps the focus inside and gives it back.

import { $ } from "./dom.js";

/** Buttons that close, and a click beside a dialog, close it as Escape does. */
export function setUp() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]")) dialog.close("");
    });
    // Not "click": that also comes when a mark of text ends outside.
    dialog.addEventListener("pointerdown", (event) => {
      const { left, right, top, bottom } = dialog.getBoundingClientRect();
      const { clientX: x, clientY: y } = event;
      const beside = x < left || x > right || y < top || y > bottom;
      if (event.target === dialog && beside) dialog.close("");
    });
  }
}

/** Asks for the token of the server; null if nobody gives one. */
export function askToken(why) {
  const dialog = $("token-dialog");
  for (const open of document.querySelectorAll("dialog[open]")) open.close("");
  $("token-why").textContent = why;
  $("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" ? $("token").value.trim() : "";
      $("token").value = "";
      resolve(given || null);
    }, { once: true });
  });
}

/** Whether keys of one letter are wanted; kept for the next visit. */
export function lettersWanted() {
  return $("single-keys").checked;
}

/** The list of the keys, and its switch. */
export function setUpHelp() {
  const box = $("single-keys");
  try {
    box.checked = localStorage.getItem("cir_jax.letters") !== "no";
  } catch {
    box.checked = true; // storage is closed to this page
  }
  box.addEventListener("change", () => {
    try {
      localStorage.setItem("cir_jax.letters", box.checked ? "yes" : "no");
    } catch {
      // The choice stands for this visit.
    }
  });
  $("help").addEventListener("click", () => $("help-dialog").showModal());
}

/** The switch between the system's theme, light and dark. */
export function setUpTheme(icon) {
  const button = $("theme");
  const root = document.documentElement;
  const names = { "": ["system", "as the system"], light: ["light", "light"], dark: ["dark", "dark"] };
  const draw = () => {
    const [sign, name] = names[root.dataset.theme ?? ""];
    button.replaceChildren(icon(sign));
    button.title = `Colours: ${name}`;
    button.setAttribute("aria-label", `Colours: ${name}. Change them`);
  };
  button.addEventListener("click", () => {
    const order = Object.keys(names);
    const next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % order.length];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    try {
      localStorage.setItem("cir_jax.theme", next);
    } catch {
      // The choice stands for this visit.
    }
    draw();
  });
  draw();
}
