// SPDX-License-Identifier: Apache-2.0
// All that a search is, as the fragment of the address: a link reproduces it, and no log sees it.

/** The weights of a score, and how far the page's sliders go. */
export const WEIGHTS = {
  query: { key: "wq", usual: 1 },
  image: { key: "wi", usual: 0 },
  avoid: { key: "wa", usual: 0.5 },
};

/** A search that asks nothing: the gallery. */
export function empty(index = "") {
  return {
    index, compare: "", images: [], text: "", avoid: "", where: "", minScore: null, query: null,
    weights: Object.fromEntries(Object.entries(WEIGHTS).map(([name, w]) => [name, w.usual])),
    fold: true, keep: false, why: false,
    rounds: [], // earlier ones: {images, text}, oldest first
  };
}

/** Whether there is anything to rank by. */
export const asks = (state) => state.images.length > 0 || state.text.trim() !== "";

// An image is "12", "12@other index" or "u:HASH of an upload"; several are joined by commas, and a
// round has "~" between its images and its text.
const encode = (name) => encodeURIComponent(name).replaceAll("~", "%7E");

function writeImage({ id, index, upload }) {
  if (upload !== undefined) return `u:${encode(upload)}`;
  return index === undefined ? `${id}` : `${id}@${encode(index)}`;
}

function readImage(text) {
  try {
    if (text.startsWith("u:")) return { upload: decodeURIComponent(text.slice(2)) };
    const [, id, index] = /^(\d{1,15})(?:@(.+))?$/.exec(text);
    return index === undefined ? { id: +id } : { id: +id, index: decodeURIComponent(index) };
  } catch {
    return null; // somebody shortened the link: the rest of it still says something
  }
}

const writeImages = (images) => images.map(writeImage).join(",");
const readImages = (text) => (text ?? "").split(",").map(readImage).filter((x) => x !== null);
const number = (text, usual) =>
  text !== null && text.trim() !== "" && Number.isFinite(+text) ? +text : usual;

/** The fragment of a state, without "#"; what is as usual is left out. */
export function write(state) {
  const said = new URLSearchParams();
  const put = (key, value) => value !== "" && value !== null && said.append(key, value);
  put("index", state.index);
  put("compare", state.compare);
  put("query", state.query);
  for (const round of state.rounds) put("round", `${writeImages(round.images)}~${round.text}`);
  put("images", writeImages(state.images));
  put("text", state.text);
  put("not", state.avoid);
  for (const [name, { key, usual }] of Object.entries(WEIGHTS)) {
    if (state.weights[name] !== usual) put(key, state.weights[name]);
  }
  put("where", state.where);
  put("min", state.minScore);
  if (!state.fold) put("fold", 0);
  if (state.keep) put("keep", 1);
  if (state.why) put("why", 1);
  return said.toString();
}

/** The state of a fragment, with or without "#"; what makes no sense is as usual. */
export function read(fragment) {
  const said = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = empty(said.get("index") ?? "");
  const query = number(said.get("query"), null);
  Object.assign(state, {
    compare: said.get("compare") ?? "",
    query: Number.isSafeInteger(query) && query >= 0 ? query : null,
    images: readImages(said.get("images")),
    text: said.get("text") ?? "",
    avoid: said.get("not") ?? "",
    where: said.get("where") ?? "",
    minScore: number(said.get("min"), null),
    fold: said.get("fold") !== "0",
    keep: said.get("keep") === "1",
    why: said.get("why") === "1",
  });
  for (const [name, { key, usual }] of Object.entries(WEIGHTS)) {
    state.weights[name] = number(said.get(key), usual);
  }
  state.rounds = said.getAll("round").map((round) => {
    const cut = round.indexOf("~");
    return { images: readImages(round.slice(0, cut)), text: round.slice(cut + 1) };
  });
  return state;
}

/** The body of POST /search for one of the state's indexes. */
export function question(state, index, k, offset) {
  const from = index === state.index ? undefined : state.index;
  const body = {
    index, k, offset,
    images: state.images.map((image) =>
      image.upload === undefined && from !== undefined ? { index: from, ...image } : image),
    text: state.text,
    weights: { query: state.weights.query, image: state.weights.image },
    fold: state.fold, keep_reference: state.keep, why: state.why,
  };
  if (state.avoid.trim()) {
    body.not = state.avoid;
    body.weights.avoid = state.weights.avoid;
  }
  if (state.where.trim()) body.where = state.where;
  if (state.minScore !== null) body.min_score = state.minScore;
  if (state.query !== null) body.query = state.query;
  return body;
}
