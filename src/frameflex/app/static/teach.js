// The room Teach: classes, clips of them, and the first answer.

import { closeCamera, openCamera, record } from "./camera.js";
import { takesDrops } from "./clip.js";
import { $, allIsWell, announce, complain, el, percent, showBars, showStrip, sizeOf } from "./dom.js";
import { on, send, sendFile } from "./talk.js";

const SECONDS = 2;
let limits = { max_bytes: Infinity };
let classes = [];
let thrown = null;
let camera = null;
const pictures = new Map(); // by class and file

const keyOf = (label, file) => `${label}\n${file}`;

// Files are sent one after the other: pieces of two must not mix.

export function sendClip(file, message) {
  if (file.size > limits.max_bytes) {
    complain(`${file.name} has ${sizeOf(file.size)}; expected at most ${sizeOf(limits.max_bytes)}. Cut it first.`);
    return Promise.resolve();
  }
  if (file.size === 0) {
    complain(`${file.name} is empty, or a folder; expected a video.`);
    return Promise.resolve();
  }
  return sendFile(file, { wanted: () => true, then: message });
}

export function teachFiles(files, label) {
  allIsWell();
  for (const file of files) sendClip(file, { type: "teach", label, name: file.name });
}

/** Record some clips, a countdown before each; `take` gets each file. */
async function recordSome(number, take) {
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
  const stopped = () => camera !== mine;
  $("teach-preview").srcObject = camera;
  $("teach-camera").hidden = false;
  markRecording(true);
  await $("teach-preview").play().catch(() => {});
  for (let i = 0; i < number && !stopped(); i += 1) {
    const show = (text) => ($("teach-countdown").textContent = number > 1 ? `${text}   (${i + 1} of ${number})` : text);
    const file = await record(camera, SECONDS, { show, stopped });
    if (file) take(file);
  }
  if (!stopped()) stopCamera();
}

export function stopCamera() {
  closeCamera(camera);
  camera = null;
  $("teach-preview").srcObject = null;
  $("teach-camera").hidden = true;
  markRecording(false);
}

function markRecording(now) {
  for (const button of document.querySelectorAll(".record")) button.textContent = now ? "Stop" : "Record";
  $("teach-ask").textContent = now ? "Stop" : "Record a new clip and ask";
}

// Classes

function showLessons(message) {
  classes = message.classes;
  $("teach-folder").textContent = message.folder;
  const focused = document.activeElement?.id;
  $("teach-classes").replaceChildren(...classes.map(showClass));
  if (focused) $(focused)?.focus(); // the list was drawn anew under who uses the keyboard
  const picked = $("cut-class").value;
  $("cut-class").replaceChildren(...classes.map((one) => el("option", { value: one.name }, one.name)));
  if (classes.some((one) => one.name === picked)) $("cut-class").value = picked;
}

function showClass(one, i) {
  const number = one.clips.length;
  const chooser = el("input", { type: "file", class: "hidden-input", id: `class-file-${i}`, multiple: true, accept: "video/*" });
  chooser.addEventListener("change", () => teachFiles([...chooser.files], one.name));
  const recorder = el("button", { class: "record", id: `class-record-${i}`, "aria-label": `Record ${one.name}` }, camera ? "Stop" : "Record");
  recorder.addEventListener("click", () =>
    recordSome(Number($("teach-count").value), (file) => sendClip(file, { type: "teach", label: one.name, name: "the recording" })),
  );
  const out = el("button", { id: `class-out-${i}`, "aria-label": `Throw out the class ${one.name}` }, "Throw out");
  out.addEventListener("click", () => {
    if (number && !confirm(`Throw out "${one.name}" with ${number} clips? They stay in the folder .thrown-out.`)) return;
    send({ type: "throw-out-class", name: one.name });
  });
  const item = el(
    "li",
    {},
    el(
      "div",
      { class: "head" },
      el("span", { class: "name" }, one.name),
      el("span", { class: "quiet" }, `${number} clip${number === 1 ? "" : "s"}`),
      el("span", { class: "buttons" }, recorder, el("label", { class: "button plain", htmlFor: chooser.id }, "Files"), chooser, out),
    ),
    el("ul", { class: "thumbs" }, ...one.clips.map((file, j) => showClip(one.name, file, `${i}-${j}`))),
  );
  takesDrops(item, (files) => teachFiles(files, one.name));
  return item;
}

function showClip(label, file, place) {
  const known = pictures.get(keyOf(label, file));
  const out = el("button", { id: `clip-out-${place}`, "aria-label": `Throw out ${file} of ${label}`, title: "Throw out" }, "×");
  out.addEventListener("click", () => {
    send({ type: "throw-out", label, file });
    thrown = { label, file };
    $("teach-thrown").textContent = `A clip of ${label} was thrown out.`;
    $("teach-undo").hidden = false;
  });
  const shown = known?.picture ? el("img", { src: known.picture, alt: file }) : known?.error ? "not a video" : "…";
  return el("li", { title: known?.error || file }, shown, out);
}

function showPicture(message) {
  const key = keyOf(message.label, message.file);
  const before = pictures.get(key);
  pictures.set(key, message);
  if (before?.picture === message.picture && before?.error === message.error) return;
  const i = classes.findIndex((one) => one.name === message.label);
  const j = i < 0 ? -1 : classes[i].clips.indexOf(message.file);
  const place = j < 0 ? null : $("teach-classes").children[i].querySelector(".thumbs").children[j];
  place?.replaceWith(showClip(message.label, message.file, `${i}-${j}`));
}

// The first answer

function showStanding(message) {
  if (message.text) {
    $("teach-standing").textContent = message.text;
    $("teach-confusions").replaceChildren();
    return;
  }
  const share = message.right / message.number;
  const [low, high] = message.interval;
  $("teach-standing").replaceChildren(
    el("strong", {}, `${message.right} of ${message.number} clips`),
    ` are told right by the others: ${percent(share)}, somewhere from ${percent(low)} to ${percent(high)} `,
    el("span", { class: "quiet" }, "(Wilson's 95 % interval; for people and places as recorded)"),
  );
  $("teach-confusions").replaceChildren(
    ...(message.confusions.length ? [el("h3", {}, "Taken for another")] : []),
    ...message.confusions.map((one) =>
      el(
        "div",
        { class: "confusion" },
        el("img", { src: one.picture, alt: one.clip.file }),
        el("span", {}, `is ${one.clip.label}`),
        el("img", { src: one.said_picture, alt: one.said.file }),
        el("span", {}, `looks like this ${one.said.label}`),
      ),
    ),
  );
}

function showTold(message) {
  showBars($("teach-told"), message.predictions);
  showStrip($("teach-nearest"), message.nearest.map((one) => one.picture), message.nearest.map((one) => one.label));
  announce(`${message.predictions[0].label}, ${percent(message.predictions[0].probability)}`);
}

// Cutting

function loadLonger(file) {
  if (!file) return;
  const player = $("cut-player");
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  player.hidden = false;
  $("cut-controls").hidden = true;
  allIsWell();
  sendClip(file, { type: "source", name: file.name });
}

function setUpCutting() {
  $("cut-file").addEventListener("change", () => {
    loadLonger($("cut-file").files[0]);
    $("cut-file").value = "";
  });
  on("source-kept", () => ($("cut-controls").hidden = false));
  const now = () => $("cut-player").currentTime.toFixed(1);
  $("cut-start").addEventListener("click", () => ($("cut-from").value = now()));
  $("cut-end").addEventListener("click", () => ($("cut-to").value = now()));
  $("cut-add").addEventListener("click", () => {
    if (!$("cut-class").value) {
      complain("There is no class yet; add one first.");
      return;
    }
    allIsWell();
    const [start, end] = [Number($("cut-from").value), Number($("cut-to").value)];
    send({ type: "cut", label: $("cut-class").value, start, end });
  });
}

const OURS = ["add-class", "throw-out-class", "throw-out", "put-back", "teach", "source", "cut", "ask", "lessons"];

export function setUpTeach(isOpen) {
  on("hello", (message) => {
    limits = message;
    if (isOpen()) openTeach();
  });
  on("lessons", showLessons);
  on("picture", showPicture);
  on("standing", showStanding);
  on("told", showTold);
  on("taught", (message) => announce(`A clip of ${message.label} is saved`));
  on("class-added", (message) => {
    allIsWell();
    announce(`The class ${message.name} is added`);
    $("teach-name").value = "";
  });
  on("error", (message) => {
    if (OURS.includes(message.about)) complain(message.text.replace(/^the (video|file)(?=:? )/, message.name || "the $1"));
  });
  $("teach-add").addEventListener("submit", (event) => {
    event.preventDefault();
    send({ type: "add-class", name: $("teach-name").value });
  });
  $("teach-put-back").addEventListener("click", () => {
    send({ type: "put-back", ...thrown });
    $("teach-undo").hidden = true;
  });
  const ask = (file) => sendClip(file, { type: "ask", name: file.name });
  $("teach-ask").addEventListener("click", () => recordSome(1, ask));
  $("teach-ask-file").addEventListener("change", () => {
    const [file] = $("teach-ask-file").files;
    if (file) ask(file);
    $("teach-ask-file").value = "";
  });
  setUpCutting();
}

export function openTeach() {
  send({ type: "lessons" });
}
