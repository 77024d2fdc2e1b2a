// SPDX-License-Identifier: Apache-2.0
// The reference pictures: dropped, pasted, chosen, or dragged from the results.

import { address, ask, showPicture } from "./api.js";
import { DRAGGED } from "./cards.js";
import { $, count, h, icon } from "./dom.js";

const LINK = "That is a link and not a file. Save the picture and drop the file: this page asks no other host.";

/** Makes the whole page take pictures; `app` is told of them. */
export function setUp(app) {
  let adds = false;
  const choose = (another) => () => {
    adds = another;
    $("file").click();
  };
  $("choose").addEventListener("click", choose(false));
  $("another").addEventListener("click", choose(true));
  $("file").addEventListener("change", async () => {
    const files = [...$("file").files];
    $("file").value = ""; // the same file may be chosen again
    await take(app, files, adds);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return; // words, for the field that has the focus
    event.preventDefault();
    take(app, files, false);
  });
  setUpDrop(app);
}

function setUpDrop(app) {
  let depth = 0; // of the elements that a drag has entered and not left
  const end = () => {
    depth = 0;
    $("dropping").hidden = true;
    $("drop").classList.remove("over");
  };
  const has = (event, kind) => [...event.dataTransfer.types].includes(kind);
  const wanted = (event) => ["Files", "text/uri-list", DRAGGED].some((kind) => has(event, kind));
  document.addEventListener("dragenter", (event) => {
    if (!wanted(event)) return;
    depth++;
    if (has(event, "Files")) $("dropping").hidden = false;
    else $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (wanted(event) && --depth <= 0) end();
  });
  document.addEventListener("dragover", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  document.addEventListener("drop", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    end();
    const onReferences = event.target.closest?.("#drop") !== null;
    const dragged = event.dataTransfer.getData(DRAGGED);
    if (dragged) {
      if (onReferences) add(app, [JSON.parse(dragged)]);
    } else if (event.dataTransfer.files.length) {
      take(app, [...event.dataTransfer.files], onReferences && app.state.images.length > 0);
    } else {
      wrong(LINK);
    }
  });
}

const wrong = (message) => ($("images-wrong").textContent = message);

/** Files become uploads, and these the references: beside those that are there, or instead. */
async function take(app, files, adds) {
  wrong("");
  const limit = app.info.limits.upload_bytes;
  for (const file of files) {
    if (file.type && !file.type.startsWith("image/")) {
      wrong(`${file.name} is not a picture.`);
      return;
    }
    if (file.size > limit) {
      wrong(`${file.name} has ${size(file.size)}, and this server takes ${size(limit)}.`);
      return;
    }
  }
  const tiles = files.map(() => h("li", { class: "waiting", "aria-hidden": "true" }));
  $("references").append(...tiles);
  app.say("Sending the picture ...");
  try {
    const uploads = [];
    for (const file of files) {
      const body = new FormData();
      body.append("image", file, file.name || "picture");
      const { upload, ids } = await ask("api/uploads", { method: "POST", body });
      // A picture of the index is that one: its link holds, and triplets can be saved of it.
      const id = ids[app.state.index];
      uploads.push(id === undefined ? { upload } : { id });
    }
    if (adds) add(app, uploads);
    else app.go({ ...app.written(), images: uploads, rounds: [], query: null }, { text: true });
  } catch (error) {
    wrong(error.message);
  } finally {
    for (const tile of tiles) tile.remove();
  }
}

const size = (bytes) =>
  bytes < 1e6 ? `${count(Math.ceil(bytes / 1e3))} kB` : `${count(Math.round(bytes / 1e5) / 10)} MB`;

/** More reference pictures, each once. */
export function add(app, images) {
  const state = app.written();
  const fresh = images
    .map((image) => (image.index === state.index ? { id: image.id } : image))
    .filter((image) => !state.images.some((i) => JSON.stringify(i) === JSON.stringify(image)));
  if (fresh.length) app.go({ ...state, images: [...state.images, ...fresh], query: null });
}

/** Shows the reference pictures of a state. */
export function sync(app, state) {
  wrong("");
  const { images } = state;
  $("references").replaceChildren(...images.map((image, n) => {
    const label = images.length > 1 ? `Reference picture ${n + 1}` : "Reference picture";
    const img = h("img", { alt: label });
    return h("li", {}, showPicture(img, address(image, state.index)),
      h("button", {
        type: "button", class: "remove", "aria-label": `Remove: ${label}`, title: "Remove",
        onclick: () => app.go({ ...app.written(), query: null, images: images.filter((i) => i !== image) }),
      }, icon("bad")));
  }));
  $("choose").textContent = images.length ? "Replace" : "Choose a picture";
  $("another").hidden = images.length === 0;
  $("drop-hint").hidden = images.length > 0;
}
