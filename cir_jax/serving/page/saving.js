// SPDX-License-Identifier: Apache-2.0
// A result becomes training data: as the right answer of a triplet, or as one that is wrong.

import { address, ask, showPicture } from "./api.js";
import { $, counted, h, title } from "./dom.js";

const KINDS = {
  target: {
    ask: "Save this triplet for training?", ok: "Save the triplet", done: "Saved as the right answer.",
    caption: "right answer", again: "This is saved as the right answer",
  },
  excluded: {
    ask: "Save this as a wrong answer?", ok: "Save as wrong", done: "Saved as a wrong answer.",
    caption: "wrong answer", again: "This is saved as a wrong answer",
  },
};

export class Saving {
  /** @param app see app.js. */
  constructor(app) {
    this.app = app;
    this.done = []; // {index, reference, text, id, kind, key}, oldest first
    $("save-ok").addEventListener("click", () => this.#save());
  }

  /** As what an image was saved with the question that a pane shows, or undefined. */
  kind(pane, id) {
    return this.#find(pane, id)?.kind;
  }

  #find(pane, id) {
    const { reference } = this.#reference(pane);
    const text = pane.state.text.trim();
    return this.done.findLast((saved) => saved.id === id && saved.index === pane.index &&
      saved.reference === reference && saved.text === text);
  }

  /** The reference of a triplet of what a pane shows, or why there is none. */
  #reference({ index, state }) {
    const [image, second] = state.images;
    if (!image) return { why: "There is no reference picture: a triplet needs one." };
    if (second) return { why: "There are several reference pictures: a triplet has one." };
    if (image.upload !== undefined) {
      return { why: "The reference picture is not in the index. Add it to the indexed folder first." };
    }
    if ((image.index ?? state.index) !== index) {
      return { why: "The reference picture is of another index. Save results of that one." };
    }
    if (!state.text.trim()) return { why: "There is no text that says what changes: write it, and search." };
    return { reference: image.id };
  }

  /** Shows what would be saved, or why it cannot be, and asks. */
  open(item, pane, kind) {
    const words = KINDS[kind];
    const { reference, why } = this.#reference(pane);
    const text = pane.state.text.trim();
    const before = this.#find(pane, item.id);
    const saved = before?.kind === kind ? before : null;
    this.wanted = { item, pane, kind, reference, text, before, saved };
    $("save-title").textContent = why ? "This cannot be saved" : saved ? words.again : words.ask;
    $("save-wrong").textContent = why ?? "";
    $("save-ok").textContent = saved ? "Take it back" : words.ok;
    $("save-ok").hidden = Boolean(why);
    const picture = (image, caption, name) => h("figure", {},
      showPicture(h("img", { alt: caption }), address(image, pane.index)),
      h("figcaption", {}, caption, name && h("span", { dir: "auto" }, name)));
    $("save-body").replaceChildren(...(why ? [] : [h("div", { class: "triplet" },
      picture({ id: reference }, "reference"),
      h("blockquote", { dir: "auto" }, text),
      picture(item, words.caption, title(item)))]));
    $("save-dialog").showModal();
  }

  async #save() {
    const { item, pane, kind, reference, text, before, saved: taken } = this.wanted;
    $("save-ok").disabled = true;
    try {
      if (before) await this.#takeBack(before); // right and wrong at once is neither
      if (taken) {
        $("save-dialog").close();
        this.app.toast(`Taken back. ${this.count(this.app.info.clicks)}`);
        return;
      }
      const body = { index: pane.index, reference, text, [kind]: item.id };
      const { triplet, clicks } = await ask("triplets", { method: "POST", body });
      const saved = { index: pane.index, reference, text, id: item.id, kind, key: triplet };
      this.done.push(saved);
      $("save-dialog").close();
      this.#changed(clicks);
      this.app.toast(`${KINDS[kind].done} ${this.count(clicks)}`, "Undo", () => this.undo(saved));
    } catch (error) {
      $("save-wrong").textContent = error.message;
    } finally {
      $("save-ok").disabled = false;
    }
  }

  /** Takes back what was saved, by default the last. */
  async undo(saved = this.done.at(-1)) {
    if (!saved) {
      this.app.toast("There is nothing to undo.");
      return;
    }
    try {
      await this.#takeBack(saved);
      this.app.toast(`Undone. ${this.count(this.app.info.clicks)}`);
    } catch (error) {
      this.app.toast(error.message);
    }
  }

  async #takeBack(saved) {
    const { clicks } = await ask(`triplets/${encodeURIComponent(saved.key)}`, { method: "DELETE" });
    this.done = this.done.filter((other) => other !== saved);
    this.#changed(clicks);
  }

  #changed(clicks) {
    this.app.info.clicks = clicks;
    this.showCount();
    this.app.redraw();
  }

  /** "2 triplets, 1 wrong answer" */
  count({ triplets, excluded }) {
    return `${counted(triplets, "triplet")}${excluded ? `, ${counted(excluded, "wrong answer")}` : ""}.`;
  }

  showCount() {
    const { clicks } = this.app.info;
    const any = clicks && (clicks.triplets || clicks.excluded);
    $("clicks").textContent = any ? `Saved: ${this.count(clicks)}` : "";
  }
}
