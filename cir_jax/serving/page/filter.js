// SPDX-License-Identifier: Apache-2.0
// The filter: choices for the fields that have few values or are numbers, written as its text.

import { $, h } from "./dom.js";

const RESERVED = new Set(["and", "or", "not", "in", "contains", "is", "null", "true", "false", "like", "between"]);
const TOKEN = /\s*('(?:[^']|'')*'|"(?:[^"]|"")*"|[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[a-z_]\w*|<=|>=|=|\(|\)|,)\s*/iy;

/** The values of a field that can be chosen. */
const values = (field) =>
  (field.type === "boolean" ? [true, false] : field.values ?? []).filter((v) => v !== null);

/** Whether they are worth choosing one by one: not many numbers, and no name that each image has. */
function listed(field, images) {
  const n = values(field).length;
  if (field.type === "boolean") return true;
  return n > 1 && 2 * n <= images && (field.type === "text" || (field.type === "integer" && n <= 12));
}

const numeric = (type) => type === "number" || type === "integer";
const quoted = (name) =>
  /^[A-Za-z_]\w*$/.test(name) && !RESERVED.has(name.toLowerCase()) ? name : `"${name.replaceAll('"', '""')}"`;
const literal = (value) => (typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value));

/** The text of choices: field -> {values: [...]} or {from, to}. */
export function compose(choices) {
  const parts = [];
  for (const [name, { values = [], from = null, to = null }] of choices) {
    const field = quoted(name);
    if (values.length === 1) parts.push(`${field} = ${literal(values[0])}`);
    if (values.length > 1) parts.push(`${field} in (${values.map(literal).join(", ")})`);
    if (from !== null) parts.push(`${field} >= ${from}`);
    if (to !== null) parts.push(`${field} <= ${to}`);
  }
  return parts.join(" and ");
}

/** The choices of a text that `compose` could have written; null of any other. */
export function parse(text) {
  const tokens = [];
  for (TOKEN.lastIndex = 0; TOKEN.lastIndex < text.length; ) {
    const found = TOKEN.exec(text);
    if (!found) return null;
    tokens.push(found[1]);
  }
  const choices = new Map();
  while (tokens.length) {
    const name = unquoted(tokens.shift());
    const choice = choices.get(name) ?? {};
    if (!test(choice, tokens)) return null;
    choices.set(name, choice);
    if (tokens.length && tokens.shift().toLowerCase() !== "and") return null;
  }
  return compose(choices) === text.trim() ? choices : null;
}

/** Reads one test into a choice. */
function test(choice, tokens) {
  const sign = tokens.shift()?.toLowerCase();
  if (sign === "=") choice.values = [value(tokens.shift())];
  else if (sign === ">=") choice.from = value(tokens.shift());
  else if (sign === "<=") choice.to = value(tokens.shift());
  else if (sign === "in" && tokens.shift() === "(") {
    const end = tokens.indexOf(")");
    if (end < 0) return false;
    choice.values = tokens.splice(0, end + 1).filter((t) => t !== "," && t !== ")").map(value);
  } else return false;
  return true;
}

const unquoted = (token) => (token.startsWith('"') ? token.slice(1, -1).replaceAll('""', '"') : token);

function value(token = "") {
  if (token.startsWith("'")) return token.slice(1, -1).replaceAll("''", "'");
  if (token === "true" || token === "false") return token === "true";
  return Number(token);
}

/** Joins the filter with the search. */
export function setUp(app) {
  $("where").addEventListener("change", () => app.go(app.written()));
  $("where").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("where").blur(); // the change is heard then
    $("where").focus();
  });
}

/** Shows the fields of an index and what a state has chosen of them. */
export function sync(app, state, info) {
  const fields = (info?.fields ?? []).filter((f) =>
    listed(f, info.images) || (numeric(f.type) && f.max !== null));
  const choices = parse(state.where);
  $("choices-note").hidden = choices !== null || !fields.length;
  const names = (info?.fields ?? []).map((f) => quoted(f.name));
  $("where-hint").textContent = names.length ? `Fields: ${names.join(", ")}` : "";
  const chosen = choices ?? new Map();
  const change = (name, choice) => {
    const next = new Map(chosen).set(name, choice);
    app.go({ ...app.written(), where: compose(next) });
  };
  $("choices").replaceChildren(...fields.map((field) => {
    const choice = chosen.get(field.name) ?? {};
    const parts = listed(field, info.images) ? boxes(field, choice, change) : range(field, choice, change);
    return h("fieldset", { class: "choice", disabled: choices === null }, h("legend", { dir: "auto" }, field.name), parts);
  }));
}

function boxes(field, { values: on = [] }, change) {
  const all = values(field);
  return h("div", { class: "boxes" }, all.map((value) => h("label", { class: "check" },
    h("input", {
      type: "checkbox", checked: on.includes(value),
      onchange: ({ target }) => change(field.name, {
        values: all.filter((v) => (v === value ? target.checked : on.includes(v))),
      }),
    }),
    h("span", { dir: "auto" }, String(value)))));
}

function range(field, choice, change) {
  const input = (end, label, hint) => h("label", {}, label, h("input", {
    type: "number", step: "any", value: choice[end] ?? "", placeholder: hint ?? "",
    "aria-label": `${field.name} ${label}`,
    onchange: ({ target }) => change(field.name,
      { ...choice, [end]: target.value === "" ? null : +target.value }),
  }));
  return h("div", { class: "range" }, input("from", "from", field.min), input("to", "to", field.max));
}
