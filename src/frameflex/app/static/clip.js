// The clip that Try and Why look at: dropped, pasted, chosen or recorded.

import { closeCamera, openCamera, record } from "./camera.js";
import { $, allIsWell, complain, el, sizeOf } from "./dom.js";
import { on, sendFile } from "./talk.js";

export const clip = { number: 0, file: null, facts: null };
const listeners = [];
let limits = { max_bytes: Infinity };
let camera = null;

/** Be told when another clip takes the place of the one before. */
export function onNewClip(listener) {
  listeners.push(listener);
}

export function load(file) {
  if (!file) return;
  if (file.size > limits.max_bytes) {
    complain(`${file.name} has ${sizeOf(file.size)}; expected at most ${sizeOf(limits.max_bytes)}. Cut it first.`);
    return;
  }
  if (file.size === 0) {
    complain(`${file.name} is empty, or a folder; expected a video.`);
    return;
  }
  allIsWell();
  clip.number += 1;
  clip.file = file;
  clip.facts = null;
  show(file);
  for (const listener of listeners) listener();
  upload();
}

function upload() {
  const number = clip.number;
  sendFile(clip.file, {
    then: { type: "uploaded", video: number, frames: Number($("frames").value) || null },
    wanted: () => clip.number === number,
    onProgress: (share) => {
      const big = clip.file.size > 2 ** 24;
      $("clip-facts").textContent = share < 1 && big ? `handing over ${Math.round(100 * share)} %` : "looking…";
    },
  }).catch((error) => complain(`${clip.file.name} can't be read (${error.message}).`));
}

function showInvite(text, quiet) {
  $("player").hidden = true;
  $("invite").hidden = false;
  $("drop").classList.remove("full");
  $("invite").replaceChildren(el("p", {}, el("strong", {}, text)), el("p", { class: "quiet" }, quiet));
}

function show(file) {
  const player = $("player");
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  player.hidden = false;
  $("invite").hidden = true;
  $("drop").classList.add("full");
  $("clip-facts").textContent = "looking…";
  player.play().catch(() => {}); // a browser that waits for a click shows its controls
}

/** What can't be shown here may still be a video for the network. */
function showNoPicture() {
  if (!clip.file || $("player").hidden) return;
  showInvite("This browser can't play it", "Below is what the network saw of it, if it can be decoded.");
}

async function recordClip() {
  const button = $("record");
  if (camera) {
    stopCamera();
    return;
  }
  try {
    camera = await openCamera();
  } catch (error) {
    complain(error.message);
    return;
  }
  allIsWell();
  const mine = camera;
  button.textContent = "Stop";
  $("player").pause();
  $("player").hidden = true;
  $("invite").hidden = true;
  $("drop").classList.add("full");
  $("preview").srcObject = camera;
  $("preview").hidden = false;
  await $("preview").play().catch(() => {});
  $("countdown").hidden = false;
  const file = await record(camera, Number($("record-seconds").value), {
    show: (text) => ($("countdown").textContent = text),
    stopped: () => camera !== mine,
  });
  if (camera === mine) stopCamera();
  if (file) load(file);
}

function stopCamera() {
  closeCamera(camera);
  camera = null;
  $("preview").hidden = true;
  $("preview").srcObject = null;
  $("countdown").hidden = true;
  $("record").textContent = "Record";
  $("player").hidden = !clip.file;
  $("invite").hidden = Boolean(clip.file);
  $("drop").classList.toggle("full", Boolean(clip.file));
}

/** Take dropped files anywhere in an element; `take` gets the list of them. */
export function takesDrops(element, take) {
  let depth = 0;
  const mark = () => element.classList.toggle("over", depth > 0);
  element.addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    mark();
  });
  element.addEventListener("dragleave", () => {
    depth -= 1;
    mark();
  });
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    depth = 0;
    mark();
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
    else complain("What was dropped is no file; expected a video.");
  });
}

export function setUpClip(isOpen) {
  on("hello", (message) => {
    limits = message;
    if (clip.file) upload(); // the process on the other side is a new one, or has let go of it
  });
  on("look", (message) => {
    if (message.video !== clip.number) return;
    clip.facts = message;
    const [height, width] = message.size;
    const frames = `${message.num_frames} frame${message.num_frames === 1 ? "" : "s"}`;
    $("clip-facts").textContent = `${clip.file.name}: ${message.seconds.toFixed(1)} s, ${frames}, ${width} × ${height}`;
  });
  on("error", (message) => {
    const ours = message.about !== null && message.video === clip.number;
    if (!ours && message.about !== "talk") return;
    complain(message.text.replace(/^the (video|file)(?=:? )/, clip.file ? clip.file.name : "the $1"));
    if (clip.file && !clip.facts && message.about === "uploaded") {
      clip.file = null;
      $("clip-facts").textContent = "";
      showInvite("Drop another video here", "or paste one, choose a file, or record yourself");
    }
  });
  $("player").addEventListener("error", showNoPicture);
  $("file").addEventListener("change", () => {
    load($("file").files[0]);
    $("file").value = ""; // so that the same file can be chosen again
  });
  $("record").addEventListener("click", recordClip);
  takesDrops($("drop"), (files) => load(files[0]));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // beside the field: the browser would leave the page for the file
    if (isOpen() && event.dataTransfer.files.length) load(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (!isOpen()) return;
    if (file) load(file);
    else if (!event.target.matches("input")) complain("What was pasted is no file; expected a video.");
  });
}

