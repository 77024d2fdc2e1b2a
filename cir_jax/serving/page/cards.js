// SPDX-License-Identifier: Apache-2.0
// One picture as a card: of the gallery, a result with its score, or one of those folded into it.

import { address, showPicture } from "./api.js";
import { count, counted, h, iconButton, score, title } from "./dom.js";

/** The picture of a card that is dragged onto the references. */
export const DRAGGED = "text/x-cir-jax-image";

/**
 * @param item an image of the gallery, a result, or {id, name, alike: true}.
 * @param pane what shows it: its index and acts, and the targets and scale of its answer.
 */
export function card(item, pane) {
  const name = title(item);
  const right = pane.targets.has(item.id);
  const ranked = item.rank !== undefined;
  const img = showPicture(h("img", { alt: "" }), address(item, pane.index));
  const pick = h("button", {
    type: "button", class: "pick", tabindex: -1, "aria-label": spoken(item, name, right),
    "aria-keyshortcuts": "Enter a d s x", onclick: () => pane.acts.pick(item),
  }, img);
  const element = h("li", {
    class: `card${ranked ? "" : " plain"}${item.alike ? " alike" : ""}${right ? " right" : ""}`,
    data: { id: item.id },
    draggable: "true", ondragstart: (event) => drag(event, item, pane.index),
  }, pick, ranked ? line(item, right) : null, h("div", { class: "foot" }, titled(item, name),
    item.why ? halves(item.why, pane.scale) : null, buttons(item, name, pane)));
  element.item = item;
  return element;
}

/** What a screen reader says of a picture. */
function spoken(item, name, right) {
  if (item.alike) return `${name}. Nearly the same. Search on from it`;
  if (item.rank === undefined) return `${name}. Search from it`;
  const answer = right ? ", the right answer" : "";
  return `${name}. Rank ${count(item.rank)}${answer}, score ${score(item.score)}. Search on from it`;
}

function line(item, right) {
  return h("p", { class: "line" },
    h("span", { class: "rank", title: "Rank" }, count(item.rank)),
    right && h("span", { class: "badge" }, "right"),
    h("span", { class: "muted other" }),
    h("span", { class: "score", title: "Score" }, score(item.score)));
}

function titled(item, name) {
  return h("p", { class: "title", dir: "auto", title: item.name },
    item.alike ? "nearly the same" : name);
}

/** What a score is the sum of: key of the answer -> what a person reads. */
const PARTS = { image: "picture", text: "text", avoid: "avoided" };

/** [label, value] of each part of a score. */
export const parts = (why) => Object.entries(PARTS)
  .filter(([key]) => typeof why?.[key] === "number").map(([key, label]) => [label, why[key]]);

/** The parts of a score, as bars of one scale for all pictures of an answer. */
function halves(why, scale) {
  const bar = (label, value) => {
    const fill = h("span", { class: `fill${value < 0 ? " below" : ""}` });
    fill.style.inlineSize = `${Math.min(100, (100 * Math.abs(value)) / (scale || 1))}%`;
    return h("div", {}, h("dt", {}, label),
      h("dd", {}, h("span", { class: "bar", "aria-hidden": "true" }, fill), score(value)));
  };
  return h("dl", { class: "why", "aria-label": "Why: the parts of the score" },
    parts(why).map(([label, value]) => bar(label, value)));
}

function buttons(item, name, pane) {
  const acts = h("div", { class: "acts" });
  if (item.same?.length) {
    const toggle = h("button", {
      type: "button", class: "same", tabindex: -1, "aria-expanded": "false",
      "aria-label": `${counted(item.same.length, "picture")} nearly the same as ${name}`,
      onclick: () => pane.unfold(item, toggle),
    }, `+${count(item.same.length)}`);
    acts.append(toggle);
  }
  const small = (icon, label, act, extra) =>
    iconButton(icon, label, () => act(item), { tabindex: -1, ...extra });
  if (item.rank !== undefined && pane.app.info.clicks) {
    acts.append(
      small("good", `Save as the right answer: ${name}`, pane.acts.good, { class: "quiet good" }),
      small("bad", `Save as a wrong answer: ${name}`, pane.acts.bad, { class: "quiet bad" }));
  }
  acts.append(small("more", `Details of ${name}`, pane.acts.details));
  return acts;
}

/**
 * Shows on a card what has changed since it was made.
 *
 * @param kind as what it was saved: "target", "excluded" or nothing.
 * @param rank its rank on the other side of a comparison, if it was found there.
 */
export function mark(element, kind, rank) {
  element.classList.toggle("saved", kind === "target");
  element.classList.toggle("excluded", kind === "excluded");
  element.querySelector(".good")?.setAttribute("aria-pressed", String(kind === "target"));
  element.querySelector(".bad")?.setAttribute("aria-pressed", String(kind === "excluded"));
  const other = element.querySelector(".other");
  if (other) other.textContent = rank === undefined ? "" : `other side: ${count(rank)}`;
}

function drag(event, item, index) {
  event.dataTransfer.setData(DRAGGED, JSON.stringify({ id: item.id, index }));
  event.dataTransfer.effectAllowed = "copy";
}
