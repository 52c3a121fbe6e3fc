// Fine-tuning, in the room Teach: its curve, and what can be done with it.

import { $, allIsWell, complain, el, percent, svg } from "./dom.js";
import { on, send } from "./talk.js";

const WORDS = {
  none: "",
  running: "training",
  stopping: "saving what there is…",
  stopped: "stopped; what it has learned is kept",
  failed: "failed",
  done: "done",
};
let report = null;

function show(message) {
  report = message;
  const { state, steps, validations } = message;
  $("train-start").hidden = ["running", "stopping"].includes(state);
  $("train-stop").hidden = state !== "running";
  $("train-go-on").hidden = !["stopped", "failed"].includes(state);
  $("train-use").hidden = !message.usable;
  const [step] = steps.at(-1) ?? [0];
  const best = validations.length ? Math.max(...validations.map((one) => one.top1)) : null;
  const parts = [WORDS[state]];
  if (steps.length) parts.push(`step ${step} of ${message.num_steps}`);
  if (best !== null) parts.push(`best on held-out clips ${percent(best)}`);
  if (message.output && state !== "running") parts.push(`in ${message.output}`);
  $("train-state").textContent = parts.filter(Boolean).join(", ");
  const said = state === "failed" || (state === "running" && !steps.length);
  $("train-lines").textContent = message.lines.join("\n");
  $("train-lines").hidden = !said || !message.lines.length;
  $("train-lines").scrollTop = $("train-lines").scrollHeight; // why it failed is the last line
  drawCurve();
}

export function drawCurve() {
  const { steps, validations } = report ?? { steps: [] };
  if (steps.length < 2) {
    $("train-curve").replaceChildren();
    return;
  }
  const width = Math.max(240, $("train-curve").clientWidth);
  const [height, left, bottom, right, top] = [180, 44, 24, 40, 8];
  const total = Math.max(report.num_steps, steps.at(-1)[0]);
  const worst = Math.max(...steps.map(([, loss]) => (Number.isFinite(loss) ? loss : 0)), 0.1);
  const x = (step) => left + ((width - left - right) * step) / total;
  const y = (share) => top + (height - top - bottom) * (1 - share);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  picture.setAttribute("aria-label", "Loss and accuracy over the training's steps");
  for (const share of [0, 0.5, 1]) {
    picture.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(share), y2: y(share) }));
    picture.append(svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`));
    picture.append(svg("text", { x: width - right + 6, y: y(share) + 4 }, (worst * share).toFixed(1)));
  }
  picture.append(svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, `${total} steps`));
  const line = (points, mark) =>
    picture.append(svg("polyline", { class: `stroke ${mark}`, points: points.map((at) => at.join(",")).join(" ") }));
  line(steps.filter(([, loss]) => Number.isFinite(loss)).map(([step, loss]) => [x(step), y(loss / worst)]), "m1");
  line(steps.map(([step, , accuracy]) => [x(step), y(accuracy)]), "m0");
  for (const one of validations) picture.append(svg("circle", { class: "dot m2", cx: x(one.step), cy: y(one.top1), r: 4 }));
  const legend = el(
    "div",
    { class: "legend" },
    el("span", { class: "m0" }, "right in training"),
    el("span", { class: "m2" }, "right on held-out clips"),
    el("span", { class: "m1" }, "loss (scale at the right)"),
  );
  $("train-curve").replaceChildren(picture, legend);
}

export function setUpTrain() {
  on("training", show);
  on("error", (message) => {
    if (["train", "stop-training", "use"].includes(message.about)) complain(message.text);
  });
  $("train-start").addEventListener("click", () => {
    allIsWell();
    const minutes = $("train-minutes").value;
    send({ type: "train", minutes: minutes ? Number(minutes) : null });
  });
  $("train-go-on").addEventListener("click", () => send({ type: "train", go_on: true }));
  $("train-stop").addEventListener("click", () => send({ type: "stop-training" }));
  $("train-use").addEventListener("click", () => send({ type: "use" }));
}
