// Elements, and what is said to people. Names of files and classes only ever become text, never HTML.

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Something went wrong: in words, until the next thing goes right. */
export function complain(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
}

export function allIsWell() {
  $("notice").hidden = true;
}

/** For who doesn't see the page. */
export function announce(text) {
  $("status").textContent = text;
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export function clock(seconds) {
  const whole = Math.floor(seconds);
  const minutes = Math.floor(whole / 60);
  const rest = (whole % 60).toString().padStart(2, "0");
  return `${minutes}:${rest}.${Math.floor((seconds - whole) * 10)}`;
}

export function sizeOf(bytes) {
  if (bytes >= 2 ** 30) return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
  return bytes >= 2 ** 20 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${Math.ceil(bytes / 1024)} KiB`;
}

/** Bars of predictions, best first. */
export function showBars(list, predictions) {
  list.replaceChildren(
    ...predictions.map((one) => {
      const fill = el("div", { class: "fill" });
      fill.style.width = `${100 * one.probability}%`;
      return el(
        "li",
        {},
        el("span", { class: "label" }, one.label),
        el("span", { class: "value" }, percent(one.probability)),
        el("div", { class: "track" }, fill),
      );
    }),
  );
}

export function showStrip(list, pictures, captions) {
  list.replaceChildren(
    ...pictures.map((source, i) => el("li", {}, el("img", { src: source, alt: "" }), captions[i])),
  );
}
