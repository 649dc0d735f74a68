// What the page asks the server for. Answers are kept: a text that was read is not read again.

import { ranked, own } from "./filters.js";

const MOST = 96; // Answers that are kept; each has the logits of a whole vocabulary.

async function ask(name, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(`/playground/api/${name}`, options || {});
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new Error(answer?.error?.message ?? `The server answered ${response.status}.`);
}

const kept = new Map();

function once(key, make) {
  let found = kept.get(key);
  if (found) kept.delete(key);
  else {
    found = make();
    found.catch(() => kept.delete(key));
  }
  kept.set(key, found);
  if (kept.size > MOST) kept.delete(kept.keys().next().value);
  return found;
}

export const models = async () => (await ask("models")).json();
export const model = async (name) => (await ask(`model?model=${encodeURIComponent(name)}`)).json();
export const vocabulary = async (name) => (await ask(`vocabulary?model=${encodeURIComponent(name)}`)).arrayBuffer();

export const encode = (model, text) =>
  once(`encode ${model} ${text}`, async () => (await (await ask("encode", { model, text })).json()).ids);
export const encodeSource = (model, text) =>
  once(`source ${model} ${text}`, async () => (await (await ask("source", { model, text })).json()).ids);

// { logits, order, own, logprobs, entropies } of a question { model, ids, source, off }.
export function read(question, size) {
  return once(`read ${JSON.stringify(question)}`, async () => {
    const numbers = new Float32Array(await (await ask("read", question)).arrayBuffer());
    const T = question.ids.length;
    const logits = numbers.subarray(0, size);
    const order = ranked(logits);
    return {
      logits, order, own: own(logits, order),
      logprobs: numbers.subarray(size, size + T), entropies: numbers.subarray(size + T),
    };
  });
}

// { layers, heads, down, across, pixels }: all heads as small pictures, 255 for a weight of 1, square roots.
export function grid(question) {
  return once(`grid ${JSON.stringify(question)}`, async () => {
    const buffer = await (await ask("grid", question)).arrayBuffer();
    const [layers, heads, down, across] = new Uint32Array(buffer, 0, 4);
    return { layers, heads, down, across, pixels: new Uint8Array(buffer, 16) };
  });
}

// { queries, keys, weights }: one head, row after row.
export function head(question) {
  return once(`head ${JSON.stringify(question)}`, async () => {
    const buffer = await (await ask("head", question)).arrayBuffer();
    const [queries, keys] = new Uint32Array(buffer, 0, 2);
    return { queries, keys, weights: new Float32Array(buffer, 8) };
  });
}
