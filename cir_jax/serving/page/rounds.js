// SPDX-License-Identifier: Apache-2.0
// The rounds of a search: each result that was clicked began one.

import { address, showPicture } from "./api.js";
import { $, h } from "./dom.js";

/** The state of an earlier round: what came after it is gone, what else was set stays. */
function earlier(state, n) {
  return { ...state, ...state.rounds[n], query: null, rounds: state.rounds.slice(0, n) };
}

/** The state of the next round, from an image that was clicked. */
export function next(state, image) {
  const rounds = state.images.length || state.text.trim()
    ? [...state.rounds, { images: state.images, text: state.text }]
    : [];
  return { ...state, images: [image], text: "", query: null, rounds };
}

/** Shows the rounds as a row of pictures and texts; each earlier one leads back to it. */
export function sync(app, state) {
  const nav = $("rounds");
  nav.hidden = state.rounds.length === 0;
  const pictures = (images) => images.map((image) =>
    showPicture(h("img", { alt: "" }), address(image, state.index, 64)));
  const words = (round) => h("span", { dir: "auto" }, round.text || (round.images.length ? "alike" : ""));
  nav.firstElementChild.replaceChildren(
    ...state.rounds.map((round, n) => h("li", {}, h("button", {
      type: "button", "aria-label": `Back to round ${n + 1}: ${round.text || "pictures alike"}`,
      onclick: () => app.go(earlier(state, n)),
    }, pictures(round.images), words(round)))),
    h("li", { "aria-current": "step" }, pictures(state.images), words(state)));
}
