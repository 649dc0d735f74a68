// The settings of how a token is chosen.

import { byId, element } from "./dom.js";

export const DEFAULTS = { temperature: 1, topK: 0, topP: 1, minP: 0, greedy: false };

// Each slider moves over 0..1000; how that becomes a value, and back.
const linear = (most, step) => ({
  value: (at) => Number((Math.round((at / 1000) * (most / step)) * step).toFixed(4)),
  at: (value) => Math.round((value / most) * 1000),
});

function logarithmic(most) {
  // 0 is off, at the right end, where a filter that takes fewer and fewer starts.
  const scale = Math.log(most);
  return {
    value: (at) => (at >= 1000 ? 0 : Math.max(1, Math.round(Math.exp((at / 1000) * scale)))),
    at: (value) => (value === 0 || value >= most ? 1000 : Math.round((Math.log(value) / scale) * 1000)),
  };
}

export class Sliders {
  constructor(vocabulary, change) {
    this.settings = { ...DEFAULTS };
    this.change = change;
    this.rows = [
      ["temperature", "temperature", linear(2, 0.01), (t) => t.toFixed(2), "Logits are divided by it: below 1 safer, above 1 wilder"],
      ["topK", "top-k", logarithmic(vocabulary), (k) => (k ? `${k}` : "off"), "Keep the k likeliest tokens"],
      ["topP", "top-p", linear(1, 0.005), (p) => (p < 1 ? p.toFixed(3) : "off"), "Keep the fewest tokens whose probabilities add up to p"],
      ["minP", "min-p", linear(1, 0.005), (p) => (p > 0 ? p.toFixed(3) : "off"), "Keep tokens at least this times as likely as the likeliest"],
    ];
    this.inputs = {};
    this.greedy = element("input", { type: "checkbox", id: "greedy", role: "switch" });
    this.greedy.addEventListener("change", () => this.set({ greedy: this.greedy.checked }));
    const reset = element("button", { type: "button", id: "reset", class: "quiet", onclick: () => this.set(DEFAULTS) }, "Reset");
    byId("sliders").replaceChildren(
      ...this.rows.map((row) => this.row(...row)),
      element("div", { class: "slider" },
        element("label", { for: "greedy", title: "Always the likeliest token; the sliders rest" }, "greedy"),
        element("span", {}, this.greedy), reset),
    );
    this.show();
  }

  row(name, label, scale, text, title) {
    const input = element("input", { type: "range", id: `slider-${name}`, min: 0, max: 1000, step: 1 });
    const output = element("output", { for: input.id });
    input.addEventListener("input", () => {
      let value = scale.value(Number(input.value));
      if (name === "topP") value = Math.max(0.005, value); // 0 would keep nothing.
      if (name === "temperature") value = Math.max(0.01, value); // 0 is the switch below.
      this.set({ [name]: value });
    });
    this.inputs[name] = { input, output, scale, text };
    return element("div", { class: "slider" }, element("label", { for: input.id, title }, label), input, output);
  }

  set(settings) {
    Object.assign(this.settings, settings);
    this.show();
    this.change();
  }

  show() {
    for (const [name, { input, output, scale, text }] of Object.entries(this.inputs)) {
      // Several places can mean one value: a slider that says the right one stays, or arrow keys would not move it.
      if (scale.value(Number(input.value)) !== this.settings[name]) input.value = scale.at(this.settings[name]);
      input.setAttribute("aria-valuetext", text(this.settings[name]));
      input.disabled = this.settings.greedy;
      output.value = text(this.settings[name]);
    }
    this.greedy.checked = this.settings.greedy;
  }
}
