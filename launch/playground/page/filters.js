// The distribution that is drawn from, as model/generate/choose.py makes it: temperature, top-k, top-p, min-p, in this
// order, each on what the one before it left. A test holds both to the same numbers.

// Token ids from the likeliest to the least likely; of equals, the smaller id first. Temperature and filters keep it.
export function ranked(logits) {
  const order = Uint32Array.from(logits, (_, id) => id);
  return order.sort((a, b) => logits[b] - logits[a] || a - b);
}

// Probabilities by rank of the network's own distribution.
export function own(logits, order) {
  const z = Float64Array.from(order, (id) => Math.exp(logits[id] - logits[order[0]]));
  const sum = z.reduce((total, value) => total + value, 0);
  return z.map((value) => value / sum);
}

// { probabilities, cut, kept }: by rank, what is drawn from; "k", "p" or "m" for the filter that cut a token off, "g" for
// those that a greedy choice leaves out; and how many are left.
export function filtered(logits, order, { temperature, topK, topP, minP, greedy }) {
  const V = order.length;
  const probabilities = new Float64Array(V);
  if (greedy || temperature === 0) {
    probabilities[0] = 1;
    return { probabilities, kept: 1, cut: (rank) => (rank > 0 ? "g" : "") };
  }
  const z = Float64Array.from(order, (id) => (logits[id] - logits[order[0]]) / temperature);
  let afterK = V;
  if (topK > 0 && topK < V) {
    afterK = topK;
    while (afterK < V && z[afterK] === z[topK - 1]) afterK++; // Equals of the last one stay.
  }
  let afterP = afterK;
  if (topP < 1) {
    let sum = 0;
    for (let rank = 0; rank < afterK; rank++) sum += Math.exp(z[rank]);
    let before = 0;
    for (afterP = 0; afterP < afterK && before < topP; afterP++) before += Math.exp(z[afterP]) / sum;
  }
  let kept = afterP;
  if (minP > 0) {
    const least = Math.log(minP);
    while (kept > 0 && z[kept - 1] < least) kept--;
  }
  let sum = 0;
  for (let rank = 0; rank < kept; rank++) sum += probabilities[rank] = Math.exp(z[rank]);
  for (let rank = 0; rank < kept; rank++) probabilities[rank] /= sum;
  const cut = (rank) => (rank >= afterK ? "k" : rank >= afterP ? "p" : rank >= kept ? "m" : "");
  return { probabilities, kept, cut };
}

// The rank that `uniform`, from 0 to 1, draws.
export function drawn(probabilities, kept, uniform) {
  let sum = 0;
  for (let rank = 0; rank < kept; rank++) {
    sum += probabilities[rank];
    if (uniform < sum) return rank;
  }
  return kept - 1;
}

// A number from 0 to 1 that depends on the seed and the place only, so that a step can be repeated.
export function uniform(seed, place) {
  let x = (Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(place + 1, 0xc2b2ae35)) >>> 0;
  for (const [shift, factor] of [[16, 0x7feb352d], [15, 0x846ca68b]]) x = Math.imul(x ^ (x >>> shift), factor) >>> 0;
  return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32;
}

// Kullback-Leibler divergence from distribution p to q over the same ids, in bits; both are logits.
export function divergence(logits, others) {
  const logsum = (values) => {
    const highest = values.reduce((a, b) => Math.max(a, b), -Infinity);
    return highest + Math.log(values.reduce((total, value) => total + Math.exp(value - highest), 0));
  };
  const [ours, theirs] = [logsum(logits), logsum(others)];
  let sum = 0;
  for (let id = 0; id < logits.length; id++) {
    const logp = logits[id] - ours;
    sum += Math.exp(logp) * (logp - (others[id] - theirs));
  }
  return Math.max(0, sum) / Math.LN2;
}
