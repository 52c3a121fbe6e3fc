// The room Live: the camera of the browser, or a source of the machine, as it happens.

import { closeCamera, openCamera } from "./camera.js";
import { $, allIsWell, complain, el, percent, showBars } from "./dom.js";
import { on } from "./talk.js";

const WIDTH = 320; // pixels, of what is sent: networks see no more
const MOST_LOGGED = 200;
let socket = null;
let camera = null;
let sentAt = 0;
let answered = [];
let begunAt = 0; // performance.now() of second 0
let settings = { causal: false };

async function start() {
  if (socket) {
    stop();
    return;
  }
  const source = $("live-source").value;
  if (!source) {
    try {
      camera = await openCamera();
    } catch (error) {
      complain(error.message);
      return;
    }
    $("live-video").srcObject = camera;
    await $("live-video").play();
    camera.getVideoTracks()[0].addEventListener("ended", () => {
      complain("The camera is gone. Connect it and start again.");
      stop();
    });
  }
  allIsWell();
  $("live-video").hidden = Boolean(source);
  $("live-picture").hidden = true;
  $("live-empty").hidden = !source;
  $("live-empty").textContent = "waiting for the first picture…";
  $("live-start").textContent = "Stop";
  answered = [];
  connect(source);
}

function connect(source) {
  const mine = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket = mine;
  mine.binaryType = "arraybuffer";
  mine.addEventListener("open", () => {
    const nothing = $("live-nothing").value;
    mine.send(
      JSON.stringify({
        type: "start",
        source: source ? Number(source) : null,
        frames: Number($("live-frames").value),
        rate: Number($("live-rate").value),
        threshold: Number($("live-threshold").value) / 100,
        min_seconds: Number($("live-min").value),
        nothing: nothing || null,
      }),
    );
  });
  mine.addEventListener("message", (event) => {
    if (mine !== socket) return;
    const message = JSON.parse(event.data);
    ({ started: begin, seen: show, error: fail, notice: tell, "source-ended": end })[message.type]?.(message);
  });
  mine.addEventListener("close", () => {
    if (mine !== socket) return;
    complain("The connection to frameflex is lost; what was seen is in the list.");
    stop();
  });
}

function begin() {
  begunAt = performance.now();
  if (camera) sendPicture(socket);
}

/** One picture at a time: the next one goes when the answer is there, and not before its time. */
function sendPicture(through) {
  if (through !== socket || !camera) return;
  const video = $("live-video");
  if (!video.videoWidth) {
    setTimeout(() => sendPicture(through), 50);
    return;
  }
  const canvas = el("canvas", { width: WIDTH, height: Math.round((WIDTH * video.videoHeight) / video.videoWidth) });
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  sentAt = performance.now();
  const seconds = new Float64Array([(sentAt - begunAt) / 1000]);
  canvas.toBlob(
    async (picture) => {
      const data = new Blob([seconds, picture]);
      if (through === socket) through.send(await data.arrayBuffer());
    },
    "image/jpeg",
    0.85,
  );
}

function show(message) {
  const now = performance.now();
  answered = [...answered.filter((at) => now - at < 3000), now];
  if (camera) {
    $("live-latency").textContent = `${Math.round(now - sentAt)} ms`;
    const through = socket;
    const next = sentAt + 1000 / Math.max(0.5, Number($("live-rate").value) || 8);
    setTimeout(() => sendPicture(through), Math.max(0, next - now));
  }
  if (message.picture) {
    $("live-picture").src = message.picture;
    $("live-picture").hidden = false;
    $("live-empty").hidden = true;
    $("live-latency").textContent = `${Math.round(message.server_milliseconds)} ms`;
  }
  if (answered.length > 1) {
    const pace = (1000 * (answered.length - 1)) / (now - answered[0]);
    $("live-pace").textContent = `${pace.toFixed(1)} pictures a second`;
  }
  if (!message.predictions) return;
  $("live-network").textContent = `${message.network_milliseconds.toPrecision(3)} ms`;
  showBars($("live-bars"), message.predictions);
  for (const event of message.ended) endEvent(event);
  if (message.event) goOn(message.event);
  $("live-now").textContent = message.event?.label ?? "";
}

const wallClock = (seconds) => new Date(Date.now() - (performance.now() - begunAt) + 1000 * seconds);

function goOn(event) {
  const list = $("live-log");
  let row = list.firstElementChild;
  if (!row || row.dataset.start !== `${event.start_seconds}` || row.dataset.over) {
    row = el("li", {}, el("span", {}, wallClock(event.start_seconds).toLocaleTimeString()), el("span", { class: "on" }), el("span"));
    row.dataset.start = event.start_seconds;
    list.prepend(row);
    while (list.children.length > MOST_LOGGED) list.lastElementChild.remove();
    $("live-log-empty").hidden = true;
  }
  row.children[1].textContent = event.label;
  row.children[2].textContent = `${(event.end_seconds - event.start_seconds).toFixed(1)} s  ${percent(event.probability)}`;
  return row;
}

function endEvent(event) {
  const row = goOn(event);
  row.dataset.over = "yes";
  row.children[1].className = "";
}

function fail(message) {
  complain(message.text);
  stop();
}

function tell(message) {
  for (const event of message.ended) endEvent(event);
  $("live-empty").textContent = message.text;
}

function end(message) {
  for (const event of message.ended) endEvent(event);
  if (message.failed) complain(`The source failed: ${$("live-empty").textContent}`);
  stop();
}

export function stop() {
  const old = socket;
  socket = null;
  old?.close();
  closeCamera(camera);
  camera = null;
  $("live-video").srcObject = null;
  $("live-video").hidden = true;
  $("live-now").textContent = "";
  $("live-start").textContent = "Start";
  if ($("live-picture").hidden) {
    $("live-empty").hidden = false;
    $("live-empty").textContent = "Nothing is watched.";
  }
  const open = $("live-log").firstElementChild;
  if (open && !open.dataset.over) {
    open.dataset.over = "yes"; // it ended with the watching
    open.children[1].className = "";
  }
}

function restart() {
  if (!socket) return;
  stop();
  start();
}

export function setUpLive() {
  on("hello", (message) => {
    settings = message;
    const frames = $("live-frames");
    frames.max = message.max_frames;
    if (!frames.value) frames.value = Math.min(Math.max(...message.frame_counts), message.max_frames);
    $("live-frames-label").textContent = settings.causal ? "Parts of how many frames" : "Frames in the window";
    const [own] = $("live-source").options;
    $("live-source").replaceChildren(own, ...message.sources.map((name, i) => el("option", { value: `${i}` }, name)));
    $("live-source-label").hidden = message.sources.length === 0;
    const picked = $("live-nothing").value;
    $("live-nothing").replaceChildren(
      el("option", { value: "" }, "no class"),
      ...message.classes.map((name) => el("option", { value: name }, name)),
    );
    $("live-nothing").value = picked || (message.classes.includes("nothing") ? "nothing" : "");
  });
  $("live-start").addEventListener("click", start);
  $("live-settings").addEventListener("change", restart);
  $("live-settings").addEventListener("submit", (event) => event.preventDefault());
  $("live-source").addEventListener("change", restart);
}
