// SPDX-License-Identifier: Apache-2.0
// One picture large, with all that the index knows of it, and all that can be done with it.

import { address, showPicture } from "./api.js";
import { parts } from "./cards.js";
import { $, count, h, score, title } from "./dom.js";

/** Opens the details of an item of a pane. */
export function open(item, pane) {
  const { app, index } = pane;
  const dialog = $("details-dialog");
  const name = title(item);
  $("details-title").textContent = name;
  const said = [["Number", item.id]];
  if (item.fields && !item.alike) said.unshift(["Path", item.name]);
  if (item.rank !== undefined && item.rank !== null) said.push(["Rank", count(item.rank)]);
  if (item.score !== undefined) said.push(["Score", score(item.score)]);
  for (const [part, value] of parts(item.why)) said.push([`Score: ${part}`, score(value)]);
  for (const [field, value] of Object.entries(item.fields ?? {})) {
    if (value !== null && value !== "") said.push([field, String(value)]);
  }
  $("details-body").replaceChildren(
    showPicture(h("img", { alt: name, class: "large" }), address(item, index, 1024)),
    h("dl", { class: "facts" }, said.map(([key, value]) =>
      h("div", {}, h("dt", { dir: "auto" }, key), h("dd", { dir: "auto" }, String(value))))));
  const act = (label, then, main = false) => h("button", {
    type: "button", class: main ? "main" : null,
    onclick: () => {
      dialog.close();
      then();
    },
  }, label);
  const ranked = item.score !== undefined;
  $("details-acts").replaceChildren(
    act("Search on from it", () => pane.acts.pick(item), true),
    act("Add to the references", () => pane.acts.add(item)),
    ...(ranked ? [act("Save as right", () => pane.acts.good(item)),
      act("Save as wrong", () => pane.acts.bad(item))] : []),
    act("Close", () => {}));
  app.say("");
  dialog.showModal();
}
