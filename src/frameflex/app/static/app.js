// The page: its rooms, and which of them is open.

import { setUpClip } from "./clip.js";
import { $ } from "./dom.js";
import { setUpLive, stop as stopLive } from "./live.js";
import { connect, on } from "./talk.js";
import { drawCurve as drawTraining, setUpTrain } from "./train.js";
import { openTeach, setUpTeach, stopCamera } from "./teach.js";
import { setUpTimeline } from "./timeline.js";
import { drawCurve, setUpTry } from "./try.js";
import { askWhy, setUpWhy } from "./why.js";

const ROOMS = [...document.querySelectorAll("[role=tab]")].map((tab) => tab.id.slice(4));
const openers = new Map();
let open = "try";

export function onOpen(room, listener) {
  openers.set(room, listener);
}

function openRoom(room, { focus = false } = {}) {
  open = room;
  for (const name of ROOMS) {
    const chosen = name === room;
    $(`tab-${name}`).setAttribute("aria-selected", chosen);
    $(`tab-${name}`).tabIndex = chosen ? 0 : -1;
    $(`room-${name}`).hidden = !chosen;
  }
  if (room !== "live") stopLive();
  if (room !== "teach") stopCamera();
  const withClip = room === "try" || room === "why";
  $("stage").hidden = !withClip;
  document.body.dataset.room = room;
  if (focus) $(`tab-${room}`).focus();
  openers.get(room)?.();
}

for (const [i, room] of ROOMS.entries()) {
  $(`tab-${room}`).addEventListener("click", () => openRoom(room));
  $(`tab-${room}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) openRoom(ROOMS[(i + step + ROOMS.length) % ROOMS.length], { focus: true });
  });
}

on("hello", (message) => {
  $("network").textContent = message.network.split("/").pop();
  $("network").title = message.network;
});
window.addEventListener("resize", () => ({ try: drawCurve, teach: drawTraining })[open]?.());
setUpClip(() => open === "try" || open === "why");
setUpTry();
setUpTimeline();
setUpLive();
setUpTeach(() => open === "teach");
setUpTrain();
setUpWhy(() => open === "why");
onOpen("try", drawCurve);
onOpen("why", askWhy);
onOpen("teach", openTeach);
openRoom("try");
connect();
