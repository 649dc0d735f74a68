// The texts that were written, as a tree of tokens: what is common to two texts is there once.

export class Tree {
  constructor() {
    this.root = { token: null, parent: null, children: [], depth: 0, typed: false };
  }

  // The child with this token, made if there is none.
  add(node, token, typed = false) {
    let child = node.children.find((other) => other.token === token);
    if (!child) {
      child = { token, parent: node, children: [], depth: node.depth + 1, typed };
      node.children.push(child);
    }
    if (!typed) child.typed = false;
    return child;
  }

  // The node at the end of a text that was typed.
  follow(tokens) {
    return tokens.reduce((node, token) => this.add(node, token, true), this.root);
  }

  // Forget what was only typed and has been typed over: from `node` up to the path of `still`.
  forget(node, still) {
    const stays = new Set(path(still));
    while (node.parent && node.typed && !node.children.length && !stays.has(node)) {
      node.parent.children.splice(node.parent.children.indexOf(node), 1);
      node = node.parent;
    }
  }

  get leaves() {
    const found = [];
    const visit = (node) => (node.children.length ? node.children.forEach(visit) : found.push(node));
    visit(this.root);
    return found;
  }
}

// The nodes from the first token to `node`.
export function path(node) {
  const nodes = [];
  for (; node.parent; node = node.parent) nodes.push(node);
  return nodes.reverse();
}

export const tokensOf = (node) => path(node).map((step) => step.token);

// The end of the text through `node` that was visited last.
export function tipOf(node, tip) {
  for (let other = tip; other; other = other.parent) if (other === node) return tip;
  while (node.children.length) node = node.children[node.children.length - 1];
  return node;
}
