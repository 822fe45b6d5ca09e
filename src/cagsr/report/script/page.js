"use strict";
// What runs wrote comes into the page as text nodes only: nothing here makes markup of it.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "polyline", "circle", "text"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function say(value, sign = false) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  let text =
    size >= 100
      ? Math.round(size).toLocaleString("en")
      : size >= 10
        ? size.toFixed(1)
        : size >= 1
          ? size.toFixed(2)
          : size && size < 0.001
            ? size.toExponential(1)
            : size.toFixed(3).replace(/^0(?=\.)/, "");
  if (!/[1-9]/.test(text)) return "0";
  return (value < 0 ? "−" : sign ? "+" : "") + text;
}

function choices(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  return select;
}

// A list that grows by a page at a time, so that ten thousand entries cost no more than the first.
function paged(list, more, size, draw) {
  let found = [];
  const grow = () => {
    const from = list.children.length;
    list.append(...found.slice(from, from + size).map((entry, at) => draw(entry, from + at)));
    more.hidden = list.children.length >= found.length;
  };
  more.addEventListener("click", grow);
  return (entries) => {
    found = entries;
    list.replaceChildren();
    grow();
  };
}
