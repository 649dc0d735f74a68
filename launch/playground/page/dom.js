// Elements without a framework. Text goes in as text: nothing that a network wrote can become markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A group of buttons of which one is chosen: arrows move, as in any group of radio buttons.
export function segments(host, value, choose) {
  const buttons = [...host.querySelectorAll("[role=radio]")];
  for (const button of buttons) {
    const on = button.dataset.value === value;
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
    button.onclick = () => choose(button.dataset.value);
    button.onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const next = buttons[(buttons.indexOf(button) + by + buttons.length) % buttons.length];
      choose(next.dataset.value);
      next.focus();
    };
  }
}

export const number = new Intl.NumberFormat("en");

export function probability(p) {
  if (p === 0) return "0";
  return p < 0.0005 ? "<0.001" : p.toFixed(3);
}
