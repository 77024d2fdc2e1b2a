// SPDX-License-Identifier: Apache-2.0
// Elements from code. Texts only ever become text nodes and attributes, never markup.

/** The element with an id; the page has each. */
export const $ = (id) => document.getElementById(id);

/**
 * A new element. Properties that are null, undefined or false are left out; "on..." listens, and
 * "data" goes to the dataset.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(element.dataset, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

// Lines of the icons on a grid of 24.
const PATHS = {
  add: "M12 5v14M5 12h14",
  bad: "M6 6l12 12M18 6L6 18",
  dark: "M20 14.5A8 8 0 1 1 9.5 4a6.5 6.5 0 0 0 10.5 10.5z",
  good: "M5 12.5l4.5 4.5L19 7.5",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  more: "M4 12h1M11.5 12h1M19 12h1",
  next: "M9 6l6 6-6 6",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9h.01",
  previous: "M15 6l-6 6 6 6",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
};

/** A decorative icon: whatever holds it has a name of its own. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon and a name for those who do not see it. */
export function iconButton(name, label, onclick, properties = {}) {
  return h("button", { type: "button", class: "quiet", "aria-label": label, title: label,
    onclick, ...properties }, icon(name));
}

const COUNT = new Intl.NumberFormat("en");

/** 12,345 */
export const count = (n) => COUNT.format(n);

/** "1 triplet", "2 triplets" */
export const counted = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

/** A score or a part of it. */
export const score = (x) => (Object.is(x, -0) ? 0 : x).toFixed(3);

/** 0.0123 -> "12 ms" */
export const time = (seconds) =>
  seconds < 1 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;

/** What a person calls an image: its title, or the last part of its path. */
export function title(image) {
  const given = image.fields?.title;
  return typeof given === "string" && given.trim() ? given : image.name.split("/").pop();
}
