// SPDX-License-Identifier: Apache-2.0
// One index on the page: its gallery, or what it finds, page by page.

import { ServerError, address, ask, showPicture } from "./api.js";
import { card, mark, parts } from "./cards.js";
import { count, counted, h, time, title } from "./dom.js";
import { Grid } from "./grid.js";
import { asks, question, write } from "./state.js";

const PAGE = 24; // pictures that are asked for at once
const KEPT = 20; // answers that the way back shows without asking again
const kept = new Map(); // state and index -> the pages that were shown

export class Pane {
  /** @param app see app.js; @param info of this index, from /api/info. */
  constructor(app, info) {
    Object.assign(this, { app, info, index: info.name, targets: new Set(), pages: [] });
    this.acts = Object.fromEntries(["pick", "add", "details", "good", "bad"].map((name) =>
      [name, (item) => app.acts[name](item, this)]));
    this.head = h("div", { class: "head" });
    this.list = h("ul", { class: "grid" });
    this.more = h("button", { type: "button", class: "more", hidden: true,
      onclick: () => this.next() }, "Show more");
    this.note = h("div", { class: "note" });
    this.element = h("section", { class: "pane", "aria-label": `Index ${info.name}` },
      this.head, this.list, this.note, this.more);
    this.grid = new Grid(this.list, this.acts, () => this.next(), app.letters);
    this.watcher = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.next(),
      { rootMargin: "600px" });
  }

  /** Shows what a state asks for; true when it is there. */
  async show(state, again = false) {
    this.stop();
    this.state = state;
    this.key = `${this.index}#${write(state)}`;
    if (again) kept.delete(this.key);
    const pages = kept.get(this.key);
    if (pages) {
      this.clear();
      for (const page of pages) this.append(page);
      this.app.heard(this, pages[0], true);
      return true;
    }
    this.wait();
    return this.next(true);
  }

  stop() {
    this.watcher.disconnect();
    this.loading?.abort();
    this.loading = null;
  }

  /** Empty places while nothing is there; what is there is dimmed until the answer comes. */
  wait() {
    this.element.setAttribute("aria-busy", "true");
    this.list.inert = true; // what is still there answers an earlier question
    this.note.replaceChildren();
    this.more.hidden = true;
    if (this.list.childElementCount) return;
    this.list.replaceChildren(...Array.from({ length: 8 }, () =>
      h("li", { class: "waiting", "aria-hidden": "true" })));
  }

  clear() {
    this.element.removeAttribute("aria-busy");
    this.list.inert = false;
    this.pages = [];
    this.ids = new Set();
    this.targets = new Set();
    this.list.replaceChildren();
    this.note.replaceChildren();
    this.head.replaceChildren();
  }

  /** Loads and shows the next page, once however many ask for it; true if it brought pictures. */
  next(first = false) {
    if (this.loading && !first) return this.coming;
    if (!first && !this.goesOn) return Promise.resolve(false);
    this.coming = this.load(first);
    return this.coming;
  }

  async load(first) {
    const loading = (this.loading = new AbortController());
    this.watcher.disconnect();
    const offset = first ? 0 : this.pages.reduce((n, page) => n + page.items.length, 0);
    try {
      const page = await this.fetch(offset, loading.signal);
      if (this.loading !== loading) return false;
      this.loading = null;
      if (first) this.clear();
      this.append(page);
      remember(this.key, this.pages);
      this.app.heard(this, page, first);
      return page.items.length > 0;
    } catch (error) {
      if (this.loading === loading) this.loading = null;
      if (error.name === "AbortError") return false;
      if (!(error instanceof ServerError)) console.error(error); // a fault of this page
      this.fail(error, first);
      return false;
    }
  }

  async fetch(offset, signal) {
    const { state, index } = this;
    if (asks(state)) {
      const k = Math.min(PAGE, this.app.info.limits.k);
      const body = question(state, index, k, offset);
      if (!this.info.why) delete body.why;
      if (!this.info.queries) delete body.query;
      const answer = await ask("search", { method: "POST", body, signal });
      const more = answer.more ?? answer.results.length === k;
      return { answer, items: answer.results, more };
    }
    const wanted = new URLSearchParams({ index, offset, limit: PAGE });
    if (state.where.trim()) wanted.set("where", state.where);
    const { images, total } = await ask(`api/images?${wanted}`, { signal });
    return { items: images, total, more: images.length > 0 && offset + images.length < total };
  }

  append(page) {
    if (!this.pages.length) this.describe(page);
    this.pages.push(page);
    // An index that grew between two pages may show a picture twice.
    const fresh = page.items.filter((item) => !this.ids.has(item.id));
    for (const item of fresh) this.ids.add(item.id);
    this.list.append(...fresh.map((item) => card(item, this)));
    this.grid.refresh();
    this.goesOn = page.more;
    this.more.hidden = !page.more;
    if (page.more) this.watcher.observe(this.more);
    else this.end();
  }

  /** The line above the pictures, and the scale of the bars. */
  describe({ answer, total, items }) {
    const { head, info, state } = this;
    this.scale = Math.max(0, ...items.flatMap(({ why }) => parts(why).map(([, x]) => Math.abs(x))));
    const name = this.app.state.compare && h("h2", { dir: "auto" }, info.name);
    const said = answer
      ? `${counted(answer.candidates, "candidate")} · ${time(spent(answer.seconds))}`
      : counted(total, "picture") + (state.where.trim() ? " that the filter lets through" : "");
    const spans = Object.entries(answer?.seconds ?? {}).map(([part, s]) => `${part} ${time(s)}`);
    head.append(h("p", { class: "about" }, name, h("span", { class: "muted", dir: "auto" }, info.model),
      h("span", { class: "muted", title: spans.join(", ") || null }, said)));
    if (!answer) return;
    head.append(h("p", { class: "formula muted" }, answer.formula));
    if (answer.targets?.length) head.append(this.answers(answer.targets));
  }

  /** Where the right answers of a benchmark's query are. */
  answers(targets) {
    this.targets = new Set(targets.map(({ id }) => id));
    const one = targets.length === 1;
    return h("p", { class: "answers" }, one ? "Right answer:" : "Right answers:",
      targets.map((target) => h("button", { type: "button", class: "answer",
        onclick: () => this.acts.details({ ...target, name: `image ${target.id}` }) },
      showPicture(h("img", { alt: "" }), address(target, this.index, 64)),
      target.rank ? `rank ${count(target.rank)}` : "not among the candidates")));
  }

  /** What stands below the last picture. */
  end() {
    const shown = this.list.childElementCount;
    const { state } = this;
    if (shown) {
      this.note.replaceChildren(h("p", { class: "muted" }, `These are all: ${counted(shown, "picture")}.`));
      return;
    }
    const limited = state.where.trim() || state.minScore !== null;
    this.note.replaceChildren(h("div", { class: "empty" },
      h("p", {}, limited ? "Nothing passes the filter." : "There is no picture in this index."),
      limited && h("button", { type: "button", onclick: () =>
        this.app.go({ ...this.app.state, where: "", minScore: null }) }, "Search without the filter")));
  }

  fail(error, first) {
    this.element.removeAttribute("aria-busy");
    const elsewhere = this.app.refused(error);
    if (first) this.clear();
    this.goesOn = false;
    this.more.hidden = true;
    this.note.replaceChildren(h("div", { class: "failure", role: elsewhere ? null : "alert" },
      h("p", {}, elsewhere ? "Nothing was searched: see the marked part of the question." : error.message),
      h("button", { type: "button", onclick: () => this.again(first) }, "Try again")));
  }

  async again(first) {
    if (first) {
      await this.app.again();
      return;
    }
    this.note.replaceChildren();
    this.goesOn = true;
    await this.next();
  }

  /** Shows or hides the pictures that are nearly the same as one. */
  unfold(item, toggle) {
    const open = toggle.getAttribute("aria-expanded") === "true";
    toggle.setAttribute("aria-expanded", String(!open));
    const own = toggle.closest(".card");
    if (open) {
      for (const id of item.same) this.list.querySelector(`.alike[data-id="${id}"]`)?.remove();
    } else {
      own.after(...item.same.map((id) =>
        card({ id, name: `like ${title(item)}`, fields: {}, alike: true }, this)));
    }
    this.app.say(open ? "Folded." : `${counted(item.same.length, "picture")} nearly the same.`);
  }

  /** Name -> rank of all that is shown. */
  ranks() {
    return new Map(this.pages.flatMap(({ items }) => items.map((i) => [i.name, i.rank])));
  }

  /** To be called when something was saved or undone, or a side of a comparison has answered. */
  redraw() {
    const other = this.app.other(this)?.ranks();
    for (const element of this.list.querySelectorAll(":scope > .card")) {
      const { id, name } = element.item;
      mark(element, this.app.saving.kind(this, id), other?.get(name));
    }
  }
}

function remember(key, pages) {
  kept.delete(key);
  kept.set(key, pages);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
}

/** Seconds that the server took: its total, or the sum of its parts. */
function spent(seconds = {}) {
  return seconds.total ?? Object.values(seconds).reduce((sum, part) => sum + part, 0);
}
