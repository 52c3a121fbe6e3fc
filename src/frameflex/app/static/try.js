// The room Try: answers, the dial for T, and the curve over it.

import { clip, onNewClip } from "./clip.js";
import { $, allIsWell, announce, el, percent, showBars, showStrip, svg } from "./dom.js";
import { on, send } from "./talk.js";
import { startTimeline } from "./timeline.js";

const LONG_SECONDS = 6;
let trained = [];
let asking = false;
let curve = null; // {classes: [{label, index}], points: Map of T -> values}

function ask() {
  if (!clip.facts || asking) return;
  asking = send({ type: "look", video: clip.number, frames: Number($("frames").value) });
}

function showDial() {
  const frames = Number($("frames").value);
  $("frames-value").textContent = `${frames}`;
  $("frames").setAttribute("aria-valuetext", `${frames} frame${frames === 1 ? "" : "s"}`);
}

function showLook(message) {
  if (message.video !== clip.number) return;
  const first = !curve;
  asking = false;
  allIsWell();
  const wanted = Number($("frames").value);
  showBars($("bars"), message.predictions);
  $("bars-empty").hidden = true;
  $("gflops").textContent = message.gflops === null ? "unknown" : `${message.gflops.toPrecision(3)} GFLOPs`;
  $("milliseconds").textContent = `${message.milliseconds.toPrecision(3)} ms`;
  showStrip($("strip"), message.strip, message.frame_numbers.map((number) => `${number + 1}`));
  const several = message.frames > 1 ? `The ${message.frames} frames` : "The one frame";
  $("strip-title").textContent = `${several} of ${message.num_frames} that the network saw`;
  $("strip-card").hidden = false;
  const [best] = message.predictions;
  announce(`${best.label}, ${percent(best.probability)}, at ${message.frames} frames`);
  if (first) follow(message);
  drawCurve();
  if (wanted !== message.frames) ask();
}

/** What comes after the first answer of a clip. */
function follow(message) {
  curve = { classes: message.predictions.slice(0, 4), points: new Map() };
  send({ type: "curve", video: clip.number, classes: curve.classes.map((one) => one.index) });
  if (message.seconds >= LONG_SECONDS) startTimeline();
}

export function drawCurve() {
  if (!curve || !curve.points.size) return;
  const width = Math.max(260, $("room-try").clientWidth - 42); // drawn at its own size: letters stay readable
  const [height, left, bottom, right, top] = [220, 44, 26, 12, 8];
  const largest = Number($("frames").max);
  const x = (t) => left + ((width - left - right) * Math.log2(t)) / Math.max(1, Math.log2(largest));
  const y = (share) => top + (height - top - bottom) * (1 - share);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  picture.setAttribute("aria-label", "Probability of the likeliest classes at each number of frames");
  for (const share of [0, 0.5, 1]) {
    picture.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(share), y2: y(share) }));
    picture.append(svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`));
  }
  for (let t = 1; t <= largest; t *= 2) {
    picture.append(svg("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, `${t}`));
  }
  const counts = [...curve.points.keys()].sort((a, b) => a - b);
  curve.classes.forEach((one, i) => {
    const at = counts.map((t) => `${x(t).toFixed(1)},${y(curve.points.get(t)[i]).toFixed(1)}`);
    picture.append(svg("polyline", { class: `stroke m${i}`, points: at.join(" ") }));
    for (const t of counts.filter((count) => trained.includes(count))) {
      picture.append(svg("circle", { class: `dot m${i}`, cx: x(t), cy: y(curve.points.get(t)[i]), r: 4.5 }));
    }
  });
  const now = x(Number($("frames").value));
  picture.append(svg("line", { class: "cursor", x1: now, x2: now, y1: top, y2: height - bottom }));
  const legend = el("div", { class: "legend" });
  curve.classes.forEach((one, i) => legend.append(el("span", { class: `m${i}` }, one.label)));
  $("curve").replaceChildren(picture, legend, el("p", { class: "quiet" }, "A dot: a number of frames it was trained at."));
  $("curve-card").hidden = false;
}

export function setUpTry() {
  on("hello", (message) => {
    trained = message.frame_counts;
    asking = false;
    const slider = $("frames");
    slider.max = message.max_frames;
    if (!slider.dataset.set) slider.value = Math.min(Math.max(...trained), message.max_frames);
    slider.dataset.set = "yes"; // a connection that comes back leaves it
    $("trained").replaceChildren(...trained.map((count) => el("option", { value: count })));
    $("trained-at").textContent = trained.join(", ");
    showDial();
  });
  on("look", showLook);
  on("point", (message) => {
    if (message.video !== clip.number || !curve) return;
    curve.points.set(message.frames, message.values);
    drawCurve();
  });
  on("error", (message) => {
    if (message.about === "look") asking = false;
  });
  onNewClip(() => {
    curve = null;
    asking = false;
    $("curve-card").hidden = true;
    $("strip-card").hidden = true;
    $("bars").replaceChildren();
    $("bars-empty").hidden = false;
    $("gflops").textContent = $("milliseconds").textContent = "–";
  });
  $("frames").addEventListener("input", () => {
    showDial();
    drawCurve();
    ask();
  });
}
