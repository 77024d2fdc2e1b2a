// SPDX-License-Identifier: Apache-2.0
// The question as it is written: text, words to avoid, weights and switches.

import { $, h } from "./dom.js";
import { WEIGHTS, empty } from "./state.js";

const FIELDS = { text: "text", not: "avoid", where: "where", min_score: "min-score" };
const PARTS = { text: "text", not: "not", avoid: "not", where: "where", min_score: "min_score",
  images: "images", image: "images", upload: "images", id: "images", weights: "weights" };

/** Joins what is written with the search. */
export function setUp(app) {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    app.go(app.written(), { again: true, answer: true });
  });
  $("text").addEventListener("keydown", (event) => {
    // An input method uses Enter for itself.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("form").requestSubmit();
  });
  $("anew").addEventListener("click", () => anew(app));
  $("home").addEventListener("click", () => anew(app));
  for (const name of Object.keys(WEIGHTS)) {
    const slider = $(`w-${name}`);
    slider.addEventListener("input", () => told(name, slider.value));
    slider.addEventListener("change", () => {
      const written = app.written();
      app.go({ ...written, weights: { ...written.weights, [name]: +slider.value } }, { replace: true });
    });
  }
  $("usual").addEventListener("click", () =>
    app.go({ ...app.written(), weights: empty().weights }, { replace: true }));
  for (const id of ["fold", "keep", "why"]) {
    $(id).addEventListener("change", () => app.go({ ...app.written(), [id]: $(id).checked }, { replace: true }));
  }
  $("min-score").addEventListener("change", () => app.go(app.written()));
}

/** The gallery of the same index. */
function anew(app) {
  const { index, compare } = app.state;
  app.go({ ...empty(index), compare }, { text: true });
}

const told = (name, value) => ($(`w-${name}-is`).textContent = (+value).toFixed(2));

/** The state with what stands in the fields, searched for or not. */
export function written(state) {
  const least = $("min-score").value;
  return { ...state, text: $("text").value, avoid: $("avoid").value, where: $("where").value.trim(),
    minScore: least === "" ? null : +least };
}

/** Shows a state. */
export function sync(app, state, info) {
  $("text").value = state.text;
  $("avoid").value = state.avoid;
  $("where").value = state.where;
  $("min-score").value = state.minScore ?? "";
  for (const name of Object.keys(WEIGHTS)) {
    $(`w-${name}`).value = state.weights[name];
    told(name, state.weights[name]);
  }
  for (const id of ["fold", "keep", "why"]) $(id).checked = state[id];
  const alone = !state.images.length && info?.text_alone !== false;
  $("text-label").textContent = alone ? "What to find" : "What should be different";
  $("text").placeholder = alone ? "a red shoe" : "the same, but red";
  clear();
}

/** Takes the messages away from all fields. */
export function clear() {
  for (const part of new Set(Object.values(PARTS))) $(`${part}-wrong`).textContent = "";
  for (const id of Object.values(FIELDS)) $(id).removeAttribute("aria-invalid");
}

/** Shows a refusal at the field that it is about; false if it is about none. */
export function refused(error) {
  const named = /^\w+/.exec(error.field)?.[0] ?? /^where\b/.exec(error.message)?.[0];
  const part = PARTS[named];
  if (!part) return false;
  $(`${part}-wrong`).replaceChildren(h("span", { dir: "auto" }, error.message));
  const field = FIELDS[part] && $(FIELDS[part]);
  field?.setAttribute("aria-invalid", "true");
  for (let at = $(`${part}-wrong`); at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  return true;
}
