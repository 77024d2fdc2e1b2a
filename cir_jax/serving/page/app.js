// SPDX-License-Identifier: Apache-2.0
// The page: one state, in the address; whatever changes it is shown by all parts.

import * as api from "./api.js";
import * as benchmark from "./benchmark.js";
import * as details from "./details.js";
import * as dialogs from "./dialogs.js";
import { $, count, counted, h, icon, iconButton } from "./dom.js";
import * as filter from "./filter.js";
import * as form from "./form.js";
import { Pane } from "./pane.js";
import * as references from "./references.js";
import * as rounds from "./rounds.js";
import { Saving } from "./saving.js";
import { asks, read, write } from "./state.js";

const app = {
  info: null, // of /api/info
  state: null,
  panes: [],
  letters: dialogs.lettersWanted,
  go, say, toast, redraw, heed, heard, again,
  refused: form.refused,
  written: () => form.written(app.state),
  other: (pane) => app.panes.find((p) => p !== pane),
  acts: {
    pick: (item, pane) => pick(item, pane),
    add: (item, pane) => references.add(app, [{ id: item.id, index: pane.index }]),
    details: details.open,
    good: (item, pane) => app.saving.open(item, pane, "target"),
    bad: (item, pane) => app.saving.open(item, pane, "excluded"),
  },
};
app.saving = new Saving(app);
let shownBusy = ""; // the last message of a busy server

/** A result becomes the reference of the next round. */
function pick(item, pane) {
  const image = pane.index === app.state.index ? { id: item.id } : { id: item.id, index: pane.index };
  remember({ focus: item.id, pane: app.panes.indexOf(pane) });
  const state = app.written();
  const unsent = state.text === app.state.text ? "" : state.text; // meant for the picture to come
  go({ ...rounds.next({ ...state, text: app.state.text }, image), text: unsent }, { text: true });
}

/**
 * Goes to a state and shows it.
 *
 * @param replace the address changes without a step for "back": a slider has many positions.
 * @param again searches even if nothing has changed.
 * @param text puts the focus on the text, where no keyboard would rise over the page by that.
 * @param answer brings the pictures into view, where they stand below the question.
 */
async function go(state, { replace = false, again: anew = false, text = false, answer = false } = {}) {
  const fragment = `#${write(state)}`;
  const same = fragment === `#${write(app.state)}`;
  if (!same) {
    remember({ y: scrollY });
    if (replace) history.replaceState({}, "", fragment);
    else history.pushState({}, "", fragment);
    if (!replace) scrollTo(0, 0);
  }
  if (text && matchMedia("(pointer: fine)").matches) $("text").focus();
  const shown = show(state, { again: anew && same });
  if (answer && matchMedia("(max-width: 760px)").matches) {
    document.activeElement?.blur(); // the keyboard of a phone would stay over them
    $("main").scrollIntoView();
  }
  await shown;
}

/** Notes in the current step of the history what "back" shall restore. */
function remember(notes) {
  history.replaceState({ ...history.state, ...notes }, "");
}

/** Shows a state that stands in the address. */
async function show(state, { again: anew = false, restored = null } = {}) {
  app.state = state;
  const infos = chosen(state);
  for (const part of [form, filter, references, rounds, benchmark]) part.sync(app, state, infos[0]);
  $("index").value = state.index;
  $("compare").value = state.compare;
  for (const option of $("compare").options) option.disabled = option.value === state.index;
  $("why-label").hidden = !infos.some((info) => info.why);
  const said = state.text || (state.images.length ? "pictures alike" : "");
  document.title = [said.slice(0, 60), "Search by picture and words"].filter(Boolean).join(" - ");
  arrange(infos);
  say(asks(state) ? "Searching ..." : "");
  await Promise.all(app.panes.map((pane) => pane.show(state, anew)));
  if (!restored || app.state !== state) return;
  scrollTo(0, restored.y ?? 0);
  if (restored.focus !== undefined) app.panes[restored.pane]?.grid.focus(restored.focus);
}

/** What /api/info says of the indexes that a state shows. */
function chosen(state) {
  const known = new Map(app.info.indexes.map((info) => [info.name, info]));
  const first = known.get(state.index);
  const second = state.compare !== state.index && known.get(state.compare);
  return [first, second].filter(Boolean);
}

function arrange(infos) {
  const names = infos.map((info) => info.name).join("\n");
  if (names === app.panes.map((pane) => pane.index).join("\n")) return;
  for (const pane of app.panes) pane.stop();
  app.panes = infos.map((info) => new Pane(app, info));
  $("panes").classList.toggle("two", app.panes.length > 1);
  $("panes").replaceChildren(...app.panes.map((pane) => pane.element));
}

/** A pane has an answer: says so to those who do not see it. */
function heard(pane, page, first) {
  const name = app.panes.length > 1 ? `${pane.index}: ` : "";
  const shown = pane.pages.reduce((n, p) => n + p.items.length, 0);
  const of = page.answer ? ` of ${counted(page.answer.candidates, "candidate")}` : "";
  if (!first) say(`${name}${counted(page.items.length, "picture")} more, ${count(shown)} in all.`);
  else say(`${name}${counted(shown, "picture")}${of}.`);
  redraw();
}

function redraw() {
  for (const pane of app.panes) pane.redraw();
}

function again() {
  form.clear();
  return show(app.state, { again: true });
}

/** Says something to those who do not see the page. */
function say(message) {
  $("status").textContent = message;
}

/** Shows a message until it is closed or another comes, with something that can be done. */
function toast(message, label, act) {
  const close = () => $("toast").replaceChildren();
  $("toast").replaceChildren(h("div", {}, h("p", { dir: "auto" }, message),
    label && h("button", { type: "button", onclick: () => {
      close();
      act();
    } }, label),
    iconButton("bad", "Close this message", close)));
}

/** Shows that the server lets this page wait; "" when it no longer does. */
function busy(message) {
  say(message);
  if (message) toast(message);
  else if ($("toast").querySelector("p")?.textContent === shownBusy) $("toast").replaceChildren();
  shownBusy = message;
}

/** The answer, or null after a message that says what was refused. */
async function heed(answer) {
  try {
    return await answer;
  } catch (error) {
    toast(error.message);
    return null;
  }
}

/** The keys of the page, where nothing is being written. */
function keys(event) {
  const typing = event.target.closest?.("input:not([type=checkbox], [type=range]), textarea, select");
  if (typing || document.querySelector("dialog[open]") || !app.letters()) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const acts = {
    "/": () => $("text").focus(),
    "?": () => $("help-dialog").showModal(),
    g: () => app.panes[0]?.grid.focus(),
    u: () => app.saving.undo(),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}

function setUp() {
  for (const part of [form, filter, references, benchmark]) part.setUp(app);
  dialogs.setUpHelp();
  const options = () => app.info.indexes.map((i) => h("option", { value: i.name }, i.name));
  $("index").append(...options());
  $("compare").append(h("option", { value: "" }, "nothing"), ...options());
  $("where-from").hidden = false;
  $("compare-label").hidden = app.info.indexes.length < 2;
  $("index").addEventListener("change", () => change($("index").value));
  $("compare").addEventListener("change", () => go({ ...app.written(), compare: $("compare").value }));
  $("formula").textContent = $("help-formula").textContent = app.info.formula;
  $("skip").addEventListener("click", () => {
    if (app.panes[0]?.grid.current) app.panes[0].grid.focus();
    else $("main").focus();
  });
  document.addEventListener("keydown", keys);
  history.scrollRestoration = "manual"; // only this page knows when its pictures are there
  addEventListener("popstate", () => show(known(read(location.hash)), { restored: history.state ?? {} }));
  let timer;
  addEventListener("scroll", () => {
    clearTimeout(timer);
    timer = setTimeout(() => remember({ y: scrollY }), 200);
  }, { passive: true });
  app.saving.showCount();
}

/** Another index; the pictures of the first one stay references. */
function change(index) {
  const state = app.written();
  const from = (images) => images.map((image) => {
    const { upload, id, index: of = state.index } = image;
    if (upload !== undefined) return image;
    return of === index ? { id } : { id, index: of };
  });
  go({ ...state, index, query: null, images: from(state.images),
    rounds: state.rounds.map((round) => ({ ...round, images: from(round.images) })) });
}

/** A state with an index that is there; a link may name one that is gone. */
function known(state) {
  const names = app.info.indexes.map((info) => info.name);
  if (names.includes(state.index)) return state;
  if (state.index) toast(`There is no index "${state.index}" here; this is "${names[0]}".`);
  return { ...state, index: names[0] };
}

async function start() {
  dialogs.setUp();
  dialogs.setUpTheme(icon);
  api.connect({ wantToken: dialogs.askToken, say: busy });
  try {
    app.info = await api.ask("api/info");
  } catch (error) {
    $("error").replaceChildren(h("p", {}, error.message),
      h("button", { type: "button", onclick: () => location.reload() }, "Try again"));
    return;
  }
  setUp();
  const state = known(read(location.hash));
  await show(state, { restored: history.state });
}

start();
