// What the page shows, as a link: ?text=…&layer=…

const NUMBERS = { layer: 0, head: 0, temperature: 1, top_k: 0, top_p: 1, min_p: 0, seed: 0 };
const TEXTS = { model: "", compare: "", kind: "", colour: "probability" };

// What a link says, with null for a text that it does not give.
export function parsed(search) {
  const given = new URLSearchParams(search);
  const state = { text: given.get("text"), source: given.get("source"), greedy: given.get("greedy") === "1" };
  for (const [name, usual] of Object.entries(NUMBERS)) {
    const value = Number(given.get(name) ?? usual);
    state[name] = Number.isFinite(value) ? value : usual;
  }
  for (const [name, usual] of Object.entries(TEXTS)) state[name] = given.get(name) ?? usual;
  const list = (name) => (given.get(name) ?? "").split(",").filter(Boolean);
  state.ids = list("ids").map(Number).filter(Number.isInteger);
  state.off = list("off").filter((name) => /^(self|cross|encoder)\.\d+\.\d+$/.test(name));
  return state;
}

// The link's query; what is as usual is left out.
export function linked(state) {
  const given = new URLSearchParams();
  for (const name of ["text", "source"]) if (state[name] !== null) given.set(name, state[name]);
  for (const [name, usual] of Object.entries({ ...NUMBERS, ...TEXTS })) {
    if (state[name] !== usual && state[name] !== undefined) given.set(name, state[name]);
  }
  if (state.greedy) given.set("greedy", "1");
  if (state.ids.length) given.set("ids", state.ids.join(","));
  if (state.off.length) given.set("off", state.off.join(","));
  return `?${given}`;
}
