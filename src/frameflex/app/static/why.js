// The room Why: where the network looked, what each frame adds, and the clip backwards.

import { clip, onNewClip } from "./clip.js";
import { $, el, percent, showBars } from "./dom.js";
import { on, send } from "./talk.js";

let isOpen = () => false;
let asked = ""; // clip, T and class of what is shown or on its way
let shown = null;

export function askWhy() {
  if (!isOpen() || !clip.facts) return;
  const frames = Number($("frames").value);
  const chosen = $("why-class").value;
  const key = `${clip.number} ${frames} ${chosen}`;
  if (key === asked) return;
  const index = chosen === "" ? null : Number(chosen);
  if (send({ type: "explain", video: clip.number, frames, index })) asked = key;
}

function showWhy(message) {
  if (message.video !== clip.number) return;
  shown = message;
  $("why-empty").hidden = true;
  $("why").hidden = false;
  $("why-frames").textContent = `${message.frames} frame${message.frames === 1 ? "" : "s"}`;
  $("why-text").textContent = message.text;
  $("why-text").hidden = !message.text;
  showBars($("why-forwards"), message.predictions);
  showBars($("why-backwards"), message.backwards);
  $("why-order").textContent = aboutOrder(message);
  const picked = $("why-class").value;
  $("why-class").replaceChildren(
    el("option", { value: "" }, `likeliest: ${message.predictions[0].label}`),
    ...message.predictions.map((one) => el("option", { value: one.index }, one.label)),
  );
  $("why-class").value = picked;
  $("why-strip").replaceChildren(
    ...message.pictures.map((source, i) =>
      el(
        "li",
        {},
        el("img", { src: source, alt: `frame ${message.frame_numbers[i] + 1}` }),
        `${message.frame_numbers[i] + 1}`,
        el("span", { class: "lost" }, "…"),
      ),
    ),
  );
}

function aboutOrder(message) {
  const [now, back] = [message.predictions[0], message.backwards[0]];
  if (now.label !== back.label) return `Backwards it is ${back.label}: the network goes by the order of the frames.`;
  const change = Math.abs(now.probability - back.probability);
  if (change < 0.02) return "Backwards it says the same: the order of the frames hardly matters for this clip.";
  return `Backwards it is the same class, by ${(100 * change).toFixed(1)} points ${back.probability > now.probability ? "more" : "less"} likely.`;
}

function showImportance(message) {
  if (!shown || message.video !== clip.number || message.frames !== shown.frames) return;
  if (message.index !== shown.index) return;
  const note = $("why-strip").children[message.frame]?.querySelector(".lost");
  if (!note) return;
  note.textContent = `${message.lost >= 0 ? "+" : "−"}${percent(Math.abs(message.lost))}`;
  note.classList.add(message.lost > 0.005 ? "more" : message.lost < -0.005 ? "less" : "same");
}

export function setUpWhy(open) {
  isOpen = open;
  on("why", showWhy);
  on("importance", showImportance);
  on("look", () => setTimeout(askWhy)); // the clip's facts are known when all have heard of it
  on("hello", () => (asked = ""));
  onNewClip(() => {
    asked = "";
    shown = null;
    $("why").hidden = true;
    $("why-empty").hidden = false;
    $("why-class").replaceChildren(el("option", { value: "" }, ""));
  });
  $("why-class").addEventListener("change", askWhy);
}
