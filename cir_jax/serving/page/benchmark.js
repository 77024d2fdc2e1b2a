// SPDX-License-Identifier: Apache-2.0
// The queries of a benchmark, for an index that knows their right answers.

import { address, ask, showPicture } from "./api.js";
import { $, count, h, icon } from "./dom.js";

let listed = 0; // queries that the list shows
let listing = ""; // of which index

/** Joins the buttons with the search. */
export function setUp(app) {
  const step = (by) => () => open(app, (app.state.query ?? (by > 0 ? -1 : 0)) + by);
  const label = (id, name, sign, by) => {
    $(id).append(icon(sign));
    $(id).title = name;
    $(id).setAttribute("aria-label", name);
    $(id).addEventListener("click", step(by));
  };
  label("query-previous", "Query before", "previous", -1);
  label("query-next", "Next query", "next", 1);
  $("query-list").addEventListener("click", () => {
    $("queries-dialog").showModal();
    if (listing !== app.state.index) more(app, true);
  });
  $("queries-more").addEventListener("click", () => more(app, false));
}

/** Searches for the query of a number. */
async function open(app, number) {
  const { index } = app.state;
  const { queries } = await app.heed(ask(`api/queries?${new URLSearchParams({ index, offset: number, limit: 1 })}`)) ?? {};
  if (queries?.length) search(app, queries[0]);
}

function search(app, query) {
  app.go({ ...app.written(), images: [{ id: query.reference }], text: query.text, rounds: [],
    query: query.number });
}

/** Further queries in the list. */
async function more(app, first) {
  const { index } = app.state;
  if (first) {
    listed = 0;
    listing = index;
    $("queries").replaceChildren();
  }
  const answer = await app.heed(ask(`api/queries?${new URLSearchParams({ index, offset: listed })}`));
  if (!answer || listing !== index) return;
  listed += answer.queries.length;
  $("queries").append(...answer.queries.map((query) => h("li", {}, h("button", {
    type: "button",
    onclick: () => {
      $("queries-dialog").close();
      search(app, query);
    },
  }, showPicture(h("img", { alt: "" }), address({ id: query.reference }, index, 64)),
  h("span", { class: "muted" }, count(query.number + 1)), h("span", { dir: "auto" }, query.text)))));
  $("queries-more").hidden = listed >= answer.total || !answer.queries.length;
}

/** Shows the number of the query; hidden for an index that has none. */
export function sync(app, state, info) {
  const total = info?.queries ?? 0;
  $("benchmark").hidden = total === 0;
  $("query-list").textContent =
    state.query === null ? `${count(total)} queries` : `Query ${count(state.query + 1)} of ${count(total)}`;
  $("query-previous").disabled = !state.query;
  $("query-next").disabled = state.query !== null && state.query >= total - 1;
}
