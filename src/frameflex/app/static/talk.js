// Messages to and from the process on this machine, over one WebSocket, which comes back when it is lost.

import { allIsWell, complain } from "./dom.js";

const PIECE = 2 ** 20;
const MOST_WAITING = 8 * PIECE;
const handlers = new Map();
let socket = null;
let wait = 500;

export function on(type, handler) {
  handlers.set(type, [...(handlers.get(type) || []), handler]);
}

export function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/talk`);
  socket.addEventListener("open", () => {
    wait = 500;
    allIsWell();
  });
  socket.addEventListener("message", (event) => {
    const message = JSON.parse(event.data);
    for (const handler of handlers.get(message.type) || []) handler(message);
  });
  socket.addEventListener("close", () => {
    complain("The connection to frameflex is lost; is it still running? Trying again…");
    setTimeout(connect, wait);
    wait = Math.min(2 * wait, 8000);
  });
}

export function send(message) {
  if (socket.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(message));
  return true;
}

let sending = Promise.resolve();

/** Send a file in pieces, for as long as it is wanted, after those before it; then the message that says what for. */
export function sendFile(file, { wanted, onProgress, then }) {
  const mine = sending.then(() => pieces(file, wanted, onProgress, then));
  sending = mine.catch(() => {});
  return mine;
}

async function pieces(file, wanted, onProgress, then) {
  const through = socket;
  if (!wanted() || !send({ type: "upload" })) return;
  for (let start = 0; start < file.size; start += PIECE) {
    const piece = await file.slice(start, start + PIECE).arrayBuffer();
    while (through.bufferedAmount > MOST_WAITING) await new Promise((go) => setTimeout(go, 20));
    if (!wanted() || through !== socket || through.readyState !== WebSocket.OPEN) return;
    through.send(piece);
    onProgress?.(Math.min(1, (start + PIECE) / file.size));
  }
  send(then);
}
