// SPDX-License-Identifier: Apache-2.0
// The server: JSON in, JSON out; what it refuses becomes an error with its own words.

const KEY = "cir_jax.token"; // in sessionStorage: gone with the tab
const TRIES = 6; // of one request that meets a busy server
const LONGEST_WAIT = 60; // seconds that a server may ask for

/** What the server refused, in words; `field` says which part of the question was wrong. */
export class ServerError extends Error {
  constructor(message, status = 0, field = "") {
    super(message);
    this.status = status;
    this.field = field;
  }
}

let token = "";
try {
  token = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage is closed to this page: the token is asked for after each reload.
}
let asking = null; // the one question for a token that all refused requests wait for
let wantToken = async () => null;
let say = () => {};

/** Tells how a person is asked for the token, and where "busy, trying again" is shown. */
export function connect(questions) {
  wantToken = questions.wantToken;
  say = questions.say;
}

/** A JSON answer, or a Blob with `as: "blob"`. Waits for the token and for a busy server. */
export async function ask(path, { method = "GET", body, signal, as = "json" } = {}) {
  const form = body instanceof FormData;
  for (let attempt = 1; ; attempt++) {
    const used = token;
    const headers = {};
    if (body && !form) headers["Content-Type"] = "application/json";
    if (token) headers.Authorization = `Bearer ${token}`;
    const response = await reach(path, {
      method, headers, signal, body: body && !form ? JSON.stringify(body) : body,
    });
    if (response.ok) {
      if (attempt > 1) say("");
      return as === "blob" ? response.blob() : response.json();
    }
    const error = await refusal(response);
    if (response.status === 401 && (await renewToken(used, error.message))) continue;
    const busy = response.status === 429 || response.status === 503;
    if (!busy || attempt === TRIES) throw error;
    const seconds = retryAfter(response, attempt);
    say(`The server is busy. Trying again in ${seconds} s ...`);
    await sleep(seconds, signal);
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?");
  }
}

async function refusal(response) {
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // A proxy in between answers in its own way.
  }
  const words = told.message || `The server answered ${response.status} ${response.statusText}.`;
  return new ServerError(words, response.status, told.param ?? "");
}

/** Asks for a token once, however many requests were refused. False: there is none. */
async function renewToken(used, message) {
  if (used !== token) return true; // another request has asked in the meantime
  asking ??= wantToken(used ? `This token was not taken: ${message}` : "").finally(() => (asking = null));
  const given = await asking;
  if (!given) return false;
  token = given;
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    // See above.
  }
  return true;
}

function retryAfter(response, attempt) {
  const told = response.headers.get("Retry-After");
  const seconds = /^\d+$/.test(told ?? "") ? Number(told) : (Date.parse(told) - Date.now()) / 1000;
  const wanted = Number.isFinite(seconds) ? seconds : 2 ** (attempt - 1);
  return Math.min(Math.max(Math.ceil(wanted), 1), LONGEST_WAIT);
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("another search has begun", "AbortError"));
    }, { once: true });
  });
}

/** Address of a picture of the index, or of an upload, relative to the page. */
export function address(image, index, size = 256) {
  if (image.upload !== undefined) return `api/uploads/${encodeURIComponent(image.upload)}`;
  return `images/${image.id}?${new URLSearchParams({ index: image.index ?? index, size })}`;
}

/** Shows a picture as it comes into view. */
export function showPicture(img, path) {
  if (token) {
    img.dataset.path = path;
    inView.observe(img);
    return img;
  }
  img.loading = "lazy";
  img.decoding = "async";
  // An element cannot wait for a busy server, but `ask` can.
  img.addEventListener("error", () => fetchPicture(img, path), { once: true });
  img.src = path;
  return img;
}

// An element cannot send the token either: then pictures are fetched, as they come near.
const inView = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    inView.unobserve(target);
    fetchPicture(target, target.dataset.path);
  }
}, { rootMargin: "400px" });

async function fetchPicture(img, path) {
  try {
    const url = URL.createObjectURL(await ask(path, { as: "blob" }));
    img.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    img.addEventListener("error", () => img.classList.add("broken"), { once: true });
    img.src = url;
  } catch {
    img.classList.add("broken"); // its alternative text is shown instead
  }
}
