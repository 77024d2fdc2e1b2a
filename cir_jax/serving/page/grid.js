// SPDX-License-Identifier: Apache-2.0
// The keys of a grid of cards: one card at a time is in the tab order, arrows go to the others.

const LETTERS = { a: "add", d: "details", s: "good", x: "bad" };

/** Makes a list of cards walkable by keys. */
export class Grid {
  /**
   * @param list the <ul> of the cards.
   * @param acts what a key does with the item of a card: add, details, good, bad.
   * @param more loads further cards; true if there came any.
   * @param letters whether keys of one letter are wanted.
   */
  constructor(list, acts, more, letters) {
    Object.assign(this, { list, acts, more, letters });
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("focusin", (event) => this.#enter(event.target.closest(".card")));
  }

  /** To be called when cards came or went: one of them is reachable by Tab. */
  refresh() {
    if (!this.current?.isConnected) this.#enter(this.list.querySelector(".card"));
  }

  /** Puts the focus on the card of an image, or on the current one. */
  focus(id) {
    const wanted = id === undefined ? null : this.list.querySelector(`.card[data-id="${id}"]`);
    this.refresh();
    (wanted ?? this.current)?.querySelector(".pick").focus();
  }

  #enter(card) {
    if (!card || card === this.current) return;
    for (const button of this.current?.querySelectorAll("button") ?? []) button.tabIndex = -1;
    for (const button of card.querySelectorAll("button")) button.tabIndex = 0;
    this.current = card;
  }

  async #key(event) {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
    const letter = LETTERS[event.key.toLowerCase()];
    if (letter && this.letters()) {
      event.preventDefault();
      event.stopPropagation(); // of two lists inside each other, and of the keys of the page
      this.acts[letter](card.item);
      return;
    }
    const cards = [...this.list.querySelectorAll(":scope > .card")];
    const to = this.#target(event.key, cards, cards.indexOf(card));
    if (to === null) return;
    event.preventDefault();
    if (to >= cards.length && (await this.more())) {
      this.list.querySelectorAll(":scope > .card")[to]?.querySelector(".pick").focus();
    } else {
      cards[Math.min(Math.max(to, 0), cards.length - 1)].querySelector(".pick").focus();
    }
  }

  /** The number of the card that a key leads to, perhaps beyond the last; null of other keys. */
  #target(key, cards, at) {
    const columns = cards.filter((c) => c.offsetTop === cards[0].offsetTop).length;
    const forward = getComputedStyle(this.list).direction === "rtl" ? -1 : 1;
    switch (key) {
      case "ArrowRight": return at + forward;
      case "ArrowLeft": return at - forward;
      case "ArrowDown": return at + columns;
      case "ArrowUp": return at - columns < 0 ? at : at - columns;
      case "Home": return 0;
      case "End": return cards.length - 1;
      default: return null;
    }
  }
}
