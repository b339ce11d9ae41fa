// Elements and numbers. Everything that comes from the router becomes a text node; nothing is parsed as HTML.

/** An element with attributes, listeners (`onclick`) and children; strings become text. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Sets a text, and touches the document only if it is another. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets a custom property, which the style sheet makes a length of. */
export function measure(element, name, value) {
  element.style.setProperty(`--${name}`, String(value));
}

/** Terms and what they are, as a definition list. */
export function facts(pairs) {
  return pairs.filter(([, value]) => value != null && value !== "" && value !== false)
    .map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value)));
}

const NONE = "–";
const isNumber = (n) => typeof n === "number" && Number.isFinite(n);
const digits = (n) => (n >= 100 ? 0 : n >= 10 ? 1 : 2);

export const count = (n) => (isNumber(n) ? n.toLocaleString("en-US") : NONE);

export const ratio = (n) => (isNumber(n) ? `${n.toFixed(n >= 100 ? 0 : 1)}×` : NONE);

export function bytes(n) {
  if (!isNumber(n)) return NONE;
  let value = Math.abs(n);
  let unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    unit += 1;
  }
  const sign = n < 0 ? "−" : "";
  return `${sign}${value.toFixed(unit === 0 ? 0 : digits(value))} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export function millis(n) {
  if (!isNumber(n)) return NONE;
  if (n >= 999.5) return `${(n / 1000).toFixed(n >= 99_950 ? 0 : n >= 9_995 ? 1 : 2)} s`;
  return `${n.toFixed(n >= 9.95 ? 0 : 1)} ms`;
}

export function speed(gbps) {
  if (!isNumber(gbps)) return NONE;
  return gbps < 1 ? `${(gbps * 1000).toFixed(digits(gbps * 1000))} Mb/s` : `${gbps.toFixed(digits(gbps))} Gb/s`;
}
