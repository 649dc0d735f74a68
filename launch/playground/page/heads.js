// All heads as small pictures, and one of them as a heat map, both on canvases.

import { byId } from "./dom.js";

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A canvas of so many points, sharp on any screen.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

// A picture of one pixel per weight: blue, as opaque as `root(at)`, the square root of the weight, says; below 0 is empty.
function painted(width, height, root) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const blue = parseInt(colourOf("--blue").slice(1), 16);
  for (let at = 0; at < width * height; at++) {
    const opacity = root(at);
    image.data.set([blue >> 16, (blue >> 8) & 255, blue & 255, opacity < 0 ? 0 : 12 + 243 * opacity], 4 * at);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export class Grid {
  // `act` is called with (layer, head, what): "pick" or "off" or null for what a click does now.
  constructor(act) {
    this.canvas = byId("grid");
    this.act = act;
    this.canvas.addEventListener("click", (event) => {
      const cell = this.at(event);
      if (cell) act(...cell, event.altKey ? "off" : null);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const cell = this.at(event);
      this.canvas.title = cell ? `layer ${cell[0]}, head ${cell[1]}` : "";
    });
    this.canvas.addEventListener("keydown", (event) => this.keys(event));
    new ResizeObserver(() => this.data && this.draw()).observe(byId("heads"));
  }

  // pictures: as of api.grid; picked: [layer, head]; off: set of "layer.head".
  show(pictures, picked, off) {
    const fresh = this.data?.pictures !== pictures;
    this.data = { pictures, picked, off };
    // All pictures, one below another.
    if (fresh) this.sheet = painted(pictures.across, pictures.down * pictures.layers * pictures.heads, (at) => pictures.pixels[at] / 255);
    this.draw();
  }

  draw() {
    const { pictures: { layers, heads, down, across }, picked, off } = this.data;
    const room = byId("heads").clientWidth - 8;
    const label = 26;
    // The longer side goes across, where there is room for it.
    this.flipped = layers > heads && (room - label) / layers >= 20;
    const [columns, rows] = this.flipped ? [layers, heads] : [heads, layers];
    const widest = columns > 16 ? room : Math.min(room, 460);
    this.cell = Math.max(16, Math.min(56, Math.floor((widest - label) / columns)));
    this.label = label;
    const context = sized(this.canvas, label + columns * this.cell, label + rows * this.cell);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = colourOf("--quiet");
    context.textAlign = "center";
    context.textBaseline = "middle";
    const every = this.cell < 19 ? 2 : 1;
    for (let column = 0; column < columns; column += every) context.fillText(column, label + (column + 0.5) * this.cell, 16);
    for (let row = 0; row < rows; row += every) context.fillText(row, 16, label + (row + 0.5) * this.cell);
    context.fillText(this.flipped ? "layer →" : "head →", label + 24, 5);
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const [x, y] = this.place(layer, head);
        const size = this.cell - 3;
        context.fillStyle = colourOf("--panel");
        context.fillRect(x, y, size, size);
        context.imageSmoothingEnabled = across > size;
        context.drawImage(this.sheet, 0, (layer * heads + head) * down, across, down, x, y, size, size);
        if (off.has(`${layer}.${head}`)) this.crossOut(context, x, y, size);
        if (layer === picked[0] && head === picked[1]) {
          context.strokeStyle = colourOf("--orange");
          context.lineWidth = 2.5;
          context.strokeRect(x - 1, y - 1, size + 2, size + 2);
        }
      }
    }
    this.canvas.setAttribute("aria-label", `All heads: ${layers} layers of ${heads}. Layer ${picked[0]}, head ${picked[1]} `
      + `is picked${off.size ? `; ${off.size} knocked out` : ""}. Arrows move, X knocks out.`);
  }

  crossOut(context, x, y, size) {
    context.fillStyle = colourOf("--ground");
    context.globalAlpha = 0.72;
    context.fillRect(x, y, size, size);
    context.globalAlpha = 1;
    context.strokeStyle = colourOf("--ink");
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x + 3, y + 3);
    context.lineTo(x + size - 3, y + size - 3);
    context.moveTo(x + size - 3, y + 3);
    context.lineTo(x + 3, y + size - 3);
    context.stroke();
  }

  place(layer, head) {
    const [column, row] = this.flipped ? [layer, head] : [head, layer];
    return [this.label + column * this.cell, this.label + row * this.cell];
  }

  at(event) {
    if (!this.data) return null;
    const column = Math.floor((event.offsetX - this.label) / this.cell);
    const row = Math.floor((event.offsetY - this.label) / this.cell);
    const [layer, head] = this.flipped ? [column, row] : [row, column];
    const { layers, heads } = this.data.pictures;
    return layer >= 0 && head >= 0 && layer < layers && head < heads ? [layer, head] : null;
  }

  keys(event) {
    if (!this.data || event.ctrlKey || event.metaKey) return;
    const { pictures: { layers, heads }, picked: [layer, head] } = this.data;
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    const move = moves[event.key];
    if (move) {
      const [columns, rows] = this.flipped ? [move[0], move[1]] : [move[1], move[0]];
      this.act((layer + columns + layers) % layers, (head + rows + heads) % heads, "pick");
    } else if (event.key === "x" || event.key === "X") this.act(layer, head, "off");
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

export class HeatMap {
  // `look` is called with the number of a query that is pointed at, or null.
  constructor(look) {
    this.canvas = byId("map");
    this.canvas.addEventListener("pointermove", (event) => {
      const cell = this.at(event);
      byId("map-hint").textContent = cell ? this.told(...cell) : "";
      look(cell ? cell[0] : null);
    });
    this.canvas.addEventListener("pointerleave", () => { byId("map-hint").textContent = ""; look(null); });
    new ResizeObserver(() => this.data && this.draw()).observe(byId("heads"));
  }

  // weights: as of api.head; queries, keys: labels of the tokens; causal: nothing is above the diagonal.
  show(weights, queries, keys, causal) {
    this.data = { weights, queries, keys, causal };
    this.row = null;
    this.draw();
  }

  // Frame the row of a query, or none.
  mark(row) {
    if (!this.data || this.row === row) return;
    this.row = row;
    this.stamp();
  }

  // The cells are painted once; framing a row only stamps them again.
  draw() {
    const { weights: { queries: T, keys: S, weights }, queries, keys, causal } = this.data;
    const hidden = (at) => causal && at % S > Math.floor(at / S);
    this.cells = painted(S, T, (at) => (hidden(at) ? -1 : Math.sqrt(Math.min(1, Math.abs(weights[at])))));
    this.named = T <= 48 && S <= 48;
    this.label = this.named ? labelWidth([...queries, ...keys]) : 6;
    const room = Math.min(byId("map-figure").clientWidth || 400, 640) - this.label - 4;
    this.cell = room / S >= 8 ? Math.min(26, Math.floor(room / S)) : room / S;
    this.size = [this.label + S * this.cell + 2, this.label + T * this.cell + 2];
    this.context = sized(this.canvas, ...this.size);
    this.canvas.setAttribute("aria-label", `Weights of ${T} tokens over ${S}`);
    this.stamp();
  }

  stamp() {
    const { context, label, cell } = this;
    const { weights: { queries: T, keys: S }, queries, keys } = this.data;
    context.clearRect(0, 0, ...this.size);
    context.imageSmoothingEnabled = cell < 1;
    context.drawImage(this.cells, label, label, S * cell, T * cell);
    if (this.named && cell >= 8) this.drawNames(queries, keys);
    if (this.row === null || this.row >= T) return;
    context.strokeStyle = colourOf("--orange");
    context.lineWidth = 2;
    context.strokeRect(label, label + this.row * cell, S * cell, cell);
  }

  drawNames(queries, keys) {
    const { context, label, cell } = this;
    const [quiet, ink] = ["--quiet", "--ink"].map(colourOf);
    context.font = `${Math.min(12, cell * 0.9)}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    queries.forEach((name, t) => {
      context.fillStyle = t === this.row ? ink : quiet;
      context.fillText(shortened(name), label - 4, label + (t + 0.5) * cell);
    });
    context.fillStyle = quiet;
    context.textAlign = "left";
    keys.forEach((name, s) => {
      context.save();
      context.translate(label + (s + 0.5) * cell, label - 4);
      context.rotate(-Math.PI / 2);
      context.fillText(shortened(name), 0, 0);
      context.restore();
    });
  }

  at(event) {
    if (!this.data) return null;
    const { weights: { queries: T, keys: S } } = this.data;
    const s = Math.floor((event.offsetX - this.label) / this.cell), t = Math.floor((event.offsetY - this.label) / this.cell);
    return t >= 0 && t < T && s < S ? [t, Math.max(0, s)] : null;
  }

  told(t, s) {
    const { weights: { keys: S, weights }, queries, keys, causal } = this.data;
    if (causal && s > t) return `${queries[t]} cannot see ${keys[s]}, which comes later.`;
    return `${queries[t]} (${t}) reads ${weights[t * S + s].toFixed(3)} from ${keys[s]} (${s})`;
  }
}

function labelWidth(names) {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.font = "12px system-ui, sans-serif";
  return 12 + Math.ceil(Math.max(12, ...names.map((name) => context.measureText(shortened(name)).width)));
}

function shortened(name) {
  const shown = [...name];
  return shown.length > 10 ? `${shown.slice(0, 9).join("")}…` : shown.join("");
}
