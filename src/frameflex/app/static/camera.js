// The webcam, and what may be wrong with it.

const REASONS = {
  NotAllowedError: "The browser may not use the camera. Allow it beside the address, then try again, or choose a file.",
  NotFoundError: "No camera was found. Connect one and try again, or choose a file.",
  NotReadableError: "The camera is used by another program. Close that and try again, or choose a file.",
  OverconstrainedError: "The camera has no picture size that fits. Choose a file instead.",
};

/** A stream of pictures; throws an Error in words for people. */
export async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("This browser gives no camera to pages at this address. Open http://localhost, or choose a file.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 640 }, height: { ideal: 480 } },
      audio: false,
    });
  } catch (error) {
    throw new Error(REASONS[error.name] || `The camera can't be used (${error.message || error.name}).`);
  }
}

export function closeCamera(stream) {
  for (const track of stream?.getTracks() || []) track.stop();
}

const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));

/** Count down, record, and give a file; null if it was stopped before. */
export async function record(stream, seconds, { show, countFrom = 3, stopped = () => false }) {
  for (let left = countFrom; left > 0; left -= 1) {
    show(`${left}`);
    await pause(700);
    if (stopped()) return null;
  }
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
  const ended = new Promise((go) => recorder.addEventListener("stop", go));
  recorder.start();
  const end = performance.now() + 1000 * seconds;
  while (performance.now() < end && !stopped()) {
    show(`● ${((end - performance.now()) / 1000).toFixed(1)} s`);
    await pause(100);
  }
  recorder.stop();
  await ended;
  show("");
  if (stopped()) return null;
  return new File(pieces, "recording", { type: recorder.mimeType.split(";")[0] });
}
