// Curves: what a pointer or the arrow keys read off them.
// What their axis counts, and how a place on it is named.
const ACROSS = {
  step: { title: "steps", unit: "Steps", says: (x) => `step ${x}` },
  minutes: { title: "time", unit: "Minutes", says: (x) => `${say(x) || 0} minutes` },
  tokens: { title: "tokens", unit: "Tokens", says: (x) => `${say(x) || 0} tokens` },
};
let across = ACROSS.step;
const charts = Object.entries(data.charts).map(([id, chart]) => {
  const figure = byId(id);
  return {
    ...chart,
    view: chart.x, // the steps that are shown, and the pixels of the first and the last
    svg: figure.querySelector("svg"),
    read: figure.querySelector(".read"),
    cursor: figure.querySelector(".cursor"),
  };
});
const nearest = (xs, x) => {
  let low = 0,
    high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
};
const place = ([low, high, start, end], value) => start + ((value - low) / (high - low)) * (end - start);

function readAt(chart, x) {
  const asked = x === null ? chart.view[1] : x;
  const found = chart.lines.map((line) => [line, nearest(line.x, asked)]);
  chart.read.replaceChildren(
    ...(x === null ? [] : [make("span", {}, across.says(found[0][0].x[found[0][1]]))]),
    ...found.map(([line, at]) =>
      make("span", {}, data.runs.length > 1 ? `${data.runs[line.run]} ` : "", make("b", {}, say(line.y[at]))),
    ),
  );
  if (data.runs.length > 1 && x === null) chart.read.replaceChildren();
  const at = x === null ? -1 : place(chart.view, found[0][0].x[found[0][1]]);
  chart.cursor.setAttribute("x1", at);
  chart.cursor.setAttribute("x2", at);
  const seen = at >= chart.view[2] && at <= chart.view[3];
  chart.cursor.setAttribute("visibility", seen ? "visible" : "hidden");
}
const readAll = (x) =>
  charts.forEach((chart) => readAt(chart, x !== null && x >= chart.x[0] && x <= chart.x[1] ? x : null));
// The step that the pointer is at.
function pointed(chart, event) {
  const box = chart.svg.getBoundingClientRect();
  const [low, high, start, end] = chart.view;
  const at = ((event.clientX - box.left) / box.width) * chart.svg.viewBox.baseVal.width;
  return low + Math.min(1, Math.max(0, (at - start) / (end - start))) * (high - low);
}
readAll(null);
for (const chart of charts) {
  let at = null;
  chart.svg.addEventListener("pointermove", (event) => readAll(pointed(chart, event)));
  chart.svg.addEventListener("pointerleave", () => readAll(null));
  chart.svg.addEventListener("blur", () => {
    at = null;
    readAll(null);
  });
  chart.svg.addEventListener("keydown", (event) => {
    const xs = chart.lines[0].x.filter((x) => x >= chart.view[0] && x <= chart.view[1]),
      move = { ArrowLeft: -1, ArrowRight: 1, Home: -xs.length, End: xs.length }[event.key];
    if (!move || !xs.length) return;
    event.preventDefault();
    at = Math.min(xs.length - 1, Math.max(0, (at === null ? (move < 0 ? xs.length : -1) : at) + move));
    readAll(xs[at]);
    byId("announced").textContent = [...chart.read.children].map((one) => one.textContent).join(", ");
  });
}
