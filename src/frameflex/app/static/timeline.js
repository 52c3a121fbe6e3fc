// What happens when in a long video: labels over time that play along.

import { clip, onNewClip } from "./clip.js";
import { $, clock, el, percent, svg } from "./dom.js";
import { on, send } from "./talk.js";

const [WIDTH, HEIGHT, BARS] = [1000, 120, 84];
let state = null; // {duration, windows, events, labels}

export function startTimeline() {
  $("timeline-card").hidden = false;
  state = { duration: clip.facts.seconds, windows: [], events: [], labels: [] };
  $("timeline-progress").textContent = "looking…";
  $("troubles").replaceChildren();
  draw();
  send({
    type: "timeline",
    video: clip.number,
    window: Number($("window").value),
    threshold: Number($("threshold").value) / 100,
    frames: Number($("frames").value),
  });
}

function markOf(label) {
  if (!state.labels.includes(label)) state.labels.push(label);
  return `m${state.labels.indexOf(label) % 6}`;
}

const x = (seconds) => (WIDTH * seconds) / Math.max(state.duration, 1e-6);

function draw() {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  picture.setAttribute("aria-label", "Labels over time; the list below says the same");
  for (const [i, one] of state.windows.entries()) {
    const [best] = one.predictions;
    const height = (BARS - 4) * best.probability;
    const end = state.windows[i + 1]?.start ?? one.end; // windows overlap: each is drawn up to the next
    const shape = { x: x(one.start), width: Math.max(1, x(end) - x(one.start)), y: BARS - height, height };
    picture.append(svg("rect", { class: `area ${markOf(best.label)}`, opacity: 0.35, ...shape }));
  }
  picture.append(svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: BARS, y2: BARS }));
  for (const one of state.events) {
    const shape = { x: x(one.start_seconds), width: Math.max(2, x(one.end_seconds) - x(one.start_seconds)) };
    const bar = svg("rect", { class: `area ${markOf(one.label)}`, ...shape, y: BARS + 8, height: 22, rx: 3 });
    bar.append(svg("title", {}, `${one.label}, ${clock(one.start_seconds)} to ${clock(one.end_seconds)}`));
    picture.append(bar);
  }
  picture.append(svg("line", { class: "playhead", y1: 0, y2: HEIGHT, x1: 0, x2: 0, id: "playhead" }));
  picture.addEventListener("click", (event) => {
    const place = picture.getBoundingClientRect();
    seek((state.duration * (event.clientX - place.left)) / place.width);
  });
  $("timeline").replaceChildren(picture);
  $("events").replaceChildren(
    ...state.events.map((one) => {
      const text = `${clock(one.start_seconds)} – ${clock(one.end_seconds)}  ${one.label}  ${percent(one.probability)}`;
      const button = el("button", { class: markOf(one.label) }, text);
      button.addEventListener("click", () => seek(one.start_seconds));
      return el("li", {}, button);
    }),
  );
  playAlong();
}

function seek(seconds) {
  $("player").currentTime = seconds;
  playAlong();
}

function playAlong() {
  const line = $("playhead");
  if (!state || !line) return;
  const at = $("player").currentTime || 0;
  line.setAttribute("x1", x(at));
  line.setAttribute("x2", x(at));
  const event = state.events.find((one) => at >= one.start_seconds && at < one.end_seconds);
  $("now").textContent = event ? event.label : "–";
}

export function setUpTimeline() {
  const current = (message) => message.video === clip.number && state;
  on("timeline", (message) => {
    if (current(message) && message.duration) state.duration = message.duration;
  });
  on("window", (message) => {
    if (!current(message)) return;
    state.windows.push(message);
    $("timeline-progress").textContent = `looked at ${clock(message.end)} of ${clock(state.duration)}`;
    draw();
  });
  on("event", (message) => {
    if (!current(message)) return;
    state.events.push(message);
    draw();
  });
  on("timeline-done", (message) => {
    if (!current(message)) return;
    state.duration = message.duration_seconds;
    const number = state.events.length;
    $("timeline-progress").textContent = number ? `${number} event${number === 1 ? "" : "s"}` : "no event";
    $("troubles").replaceChildren(...message.troubles.map((text) => el("li", {}, text)));
    draw();
  });
  onNewClip(() => {
    state = null;
    $("timeline-card").hidden = true;
  });
  $("timeline-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (clip.facts) startTimeline();
  });
  $("player").addEventListener("timeupdate", playAlong);
  const follow = () => {
    playAlong();
    if (!$("player").paused) requestAnimationFrame(follow);
  };
  $("player").addEventListener("play", follow);
}
