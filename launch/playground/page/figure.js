// What the page shows, as a picture to keep: the head's lines between the tokens, and the next-token table.

import { drawn, number, probability } from "./dom.js";
import { printable } from "./vocabulary.js";

const INK = "#1c2024", QUIET = "#5f6770", BLUE = "#3b82e0", ORANGE = "#e8710a", LINE = "#d9dde2";
const STEP = 20, TOP = 84, MOST_TOKENS = 48, MOST_CANDIDATES = 16;

// The figure as a string of SVG.
//   title, subtitle: text. look: {title, queries, keys, weights, looking} or null. table: [{label, p, own, cut}], tail.
export function svg({ title, subtitle, look, table, tail }) {
  const left = look ? 470 : 0;
  const tokens = look ? Math.min(MOST_TOKENS, Math.max(look.queries.length, look.keys.length)) : 0;
  const height = TOP + STEP * Math.max(tokens, Math.min(MOST_CANDIDATES, table.length) + 2) + 24;
  const width = left + 470;
  const root = drawn("svg", {
    viewBox: `0 0 ${width} ${height}`, width, height,
    "font-family": "system-ui, sans-serif", "font-size": 13,
  }, drawn("rect", { width, height, fill: "#ffffff" }), text(24, 30, title, { "font-size": 17, "font-weight": 600 }),
    text(24, 50, subtitle, { fill: QUIET, "font-size": 12 }));
  if (look) root.append(...lines(look));
  root.append(...candidates(left, table, tail));
  return new XMLSerializer().serializeToString(root);
}

function lines({ title, queries, keys, weights, looking }) {
  // Of a long text, what ends with the token that looks.
  const first = Math.max(0, (looking ?? queries.length - 1) - MOST_TOKENS + 1);
  const from = keys.length > MOST_TOKENS ? Math.min(first, keys.length - MOST_TOKENS) : 0;
  const parts = [text(24, TOP - 12, title, { "font-weight": 600 })];
  const y = (place, start) => TOP + STEP * (place - start) + 14;
  const shown = (names, start) => names.slice(start, start + MOST_TOKENS).map((name, at) => [name, start + at]);
  for (const [, t] of shown(queries, first)) {
    for (const [, s] of shown(keys, from)) {
      const weight = Math.min(1, Math.abs(weights[t * keys.length + s]));
      const chosen = t === looking;
      if (weight < 0.01 || (looking !== null && !chosen && weight < 0.05)) continue;
      parts.push(drawn("line", {
        x1: 164, x2: 316, y1: y(t, first) - 4, y2: y(s, from) - 4, stroke: chosen ? ORANGE : BLUE,
        "stroke-width": 0.5 + 4 * weight, "stroke-opacity": (chosen || looking === null ? Math.sqrt(weight) : 0.12 * Math.sqrt(weight)).toFixed(3),
      }));
    }
  }
  for (const [name, t] of shown(queries, first)) {
    parts.push(text(156, y(t, first), clipped(name), { "text-anchor": "end", fill: t === looking ? ORANGE : INK }));
  }
  for (const [name, s] of shown(keys, from)) parts.push(text(324, y(s, from), clipped(name)));
  return parts;
}

function candidates(left, table, tail) {
  const parts = [text(left + 24, TOP - 12, "What comes next", { "font-weight": 600 })];
  table.slice(0, MOST_CANDIDATES).forEach(({ label, p, own, cut }, at) => {
    const y = TOP + STEP * at;
    parts.push(
      text(left + 134, y + 14, clipped(label), { "text-anchor": "end", ...(cut ? { fill: QUIET, "text-decoration": "line-through" } : {}) }),
      drawn("rect", { x: left + 144, y: y + 3, width: 230, height: 14, rx: 3, fill: LINE, "fill-opacity": 0.5 }),
      drawn("rect", { x: left + 144, y: y + 3, width: 230 * own, height: 14, rx: 3, fill: BLUE, "fill-opacity": 0.25 }),
      drawn("rect", { x: left + 144, y: y + 6, width: 230 * p, height: 8, rx: 3, fill: BLUE }),
      text(left + 384, y + 14, cut ? "cut off" : probability(p), cut ? { fill: QUIET } : {}),
    );
  });
  const y = TOP + STEP * Math.min(MOST_CANDIDATES, table.length) + 16;
  parts.push(text(left + 144, y, `${number.format(tail.tokens)} others: ${probability(tail.mass)}`, { fill: QUIET, "font-size": 12 }));
  return parts;
}

function text(x, y, content, attributes = {}) {
  return drawn("text", { x, y, fill: INK, ...attributes }, printable(content));
}

function clipped(name) {
  const shown = [...printable(name)];
  return shown.length > 16 ? `${shown.slice(0, 15).join("")}…` : shown.join("");
}

// A string of SVG as a PNG of twice its size.
export async function png(markup) {
  const address = URL.createObjectURL(new Blob([markup], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
