// Draws the charts of a page: Vega-Embed has no way to find them by itself.

// Base64 of deflated bytes (see packed.py).
async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// All heads as rows of the data sets "heads" and "pictures" (see attention_panels.py).
//   names: of the heads; queries, keys: numbers of tokens; blue: the color of a weight of 1 as #rrggbb;
//   merge: the first token of each piece of the queries and of the keys, or null to show the tokens themselves.
function unpacked(bytes, { layers, names, queries: T, keys: S, causal, merge, blue }) {
  const cells = causal ? (T * (T + 1)) / 2 : T * S;
  const heads = [], pictures = [];
  for (let layer = 0; layer < layers; layer++) {
    names.forEach((head, at) => {
      const first = (layer * names.length + at) * cells;
      const table = { T, S, weights: unfolded(bytes.subarray(first, first + cells), T, S, causal) };
      const shown = merge ? merged(table, ...merge) : table;
      heads.push({ layer, head, units: folded(shown, causal) });
      pictures.push({ layer, head, picture: picture(shown, causal, blue) });
    });
  }
  return { heads, pictures };
}

// The weights of one head, T x S, from its bytes.
function unfolded(bytes, T, S, causal) {
  const weights = new Float32Array(T * S);
  let at = 0;
  for (let t = 0; t < T; t++) {
    for (let s = 0; s < (causal ? t + 1 : S); s++) weights[t * S + s] = (bytes[at++] / 255) ** 2;
  }
  return weights;
}

// Sums over the tokens of a piece that is read, means over those of a piece that reads: `merged` of pieces.py.
function merged({ T, S, weights }, rows, columns) {
  const [P, Q] = [rows.length, columns.length];
  const sums = new Float32Array(P * Q);
  const ends = (starts, end) => [...starts.slice(1), end];
  const [rowEnds, columnEnds] = [ends(rows, T), ends(columns, S)];
  for (let p = 0; p < P; p++) {
    for (let q = 0; q < Q; q++) {
      let sum = 0;
      for (let t = rows[p]; t < rowEnds[p]; t++) for (let s = columns[q]; s < columnEnds[q]; s++) sum += weights[t * S + s];
      sums[p * Q + q] = sum / (rowEnds[p] - rows[p]);
    }
  }
  return { T: P, S: Q, weights: sums };
}

// The cells that are shown, in thousandths.
function folded({ T, S, weights }, causal) {
  const units = [];
  for (let t = 0; t < T; t++) for (let s = 0; s < (causal ? t + 1 : S); s++) units.push(Math.round(1000 * weights[t * S + s]));
  return units;
}

// One head as a small picture in a data URL: each pixel the largest of its weights, as opaque as its square root.
function picture({ T, S, weights }, causal, blue) {
  const pool = Math.ceil(Math.max(T, S) / 96);
  const [down, across] = [Math.ceil(T / pool), Math.ceil(S / pool)];
  const [small, large] = [document.createElement("canvas"), document.createElement("canvas")];
  [small.width, small.height] = [across, down];
  [large.width, large.height] = [across * Math.ceil(96 / across), down * Math.ceil(96 / down)];
  const context = small.getContext("2d");
  const image = context.createImageData(across, down);
  const color = parseInt(blue.slice(1), 16);
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < (causal ? y + 1 : across); x++) {
      let most = 0;
      for (let t = y * pool; t < Math.min(T, (y + 1) * pool); t++) {
        for (let s = x * pool; s < Math.min(S, (x + 1) * pool); s++) most = Math.max(most, weights[t * S + s]);
      }
      const opacity = 255 * (0.05 + 0.95 * Math.sqrt(Math.min(1, most)));
      image.data.set([color >> 16, (color >> 8) & 255, color & 255, opacity], 4 * (y * across + x));
    }
  }
  context.putImageData(image, 0, 0);
  const sharp = large.getContext("2d");
  sharp.imageSmoothingEnabled = false;
  sharp.drawImage(small, 0, 0, large.width, large.height);
  return large.toDataURL();
}

async function draw(script) {
  const spec = JSON.parse(script.textContent);
  const options = { mode: "vega-lite", renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } };
  const packed = spec.usermeta?.packed;
  const data = packed ? unpacked(await inflated(document.getElementById(packed.id).textContent), packed) : {};
  spec.datasets = { ...spec.datasets, ...data };
  return vegaEmbed(`#${script.dataset.chart}`, spec, options);
}

function start(script) {
  draw(script).catch((error) => {
    document.getElementById(script.dataset.chart).textContent = `This chart failed: ${error}`;
  });
}

for (const script of document.querySelectorAll("script[data-chart]")) {
  const closed = script.closest("details:not([open])");
  if (closed) closed.addEventListener("toggle", () => start(script), { once: true });
  else start(script);
}
