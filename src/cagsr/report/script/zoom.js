// A range of steps: dragged across any curve or typed above them, and then shown by all of them.
const TOP = 12,
  AIR = 0.06,
  SMOOTHED_FROM = 30;

// Round numbers between the ends, at distances of 1, 2 or 5 times a power of ten.
function ticks(low, high, about) {
  const power = 10 ** Math.floor(Math.log10((high - low) / about));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= ((high - low) / about) * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * (high - low); n++)
    found.push(Number((n * step).toPrecision(12)));
  return found;
}
function tick(value) {
  const size = Math.abs(value);
  const shown = size >= 10000 ? `${Number((size / 1000).toPrecision(6))}k` : `${Number(size.toPrecision(6))}`;
  return (value < 0 ? "−" : "") + shown.replace(/^0\./, ".");
}

// A little air; values of one sign keep 0 in sight where it is near. As plot.py pads the whole curve.
function padded(values) {
  const low = Math.min(...values),
    high = Math.max(...values);
  const width = high - low || Math.abs(high) * 0.2 || 1;
  if (low >= 0 && low < width) return [0, high + AIR * width];
  if (high <= 0 && high > -width) return [low - AIR * width, 0];
  return [low - AIR * width, high + AIR * width];
}

// The points of a line from ``low`` to ``high``, with those where it enters and leaves.
function cut(xs, ys, low, high) {
  const found = [];
  xs.forEach((x, at) => {
    for (const edge of [low, high])
      if (at && xs[at - 1] < edge && x > edge)
        found.push([edge, ys[at - 1] + ((ys[at] - ys[at - 1]) * (edge - xs[at - 1])) / (x - xs[at - 1])]);
    if (x >= low && x <= high) found.push([x, ys[at]]);
  });
  return found;
}

// What had passed of an axis up to a step, between two that are known in proportion.
function passed(known, name, step) {
  if (name === "step") return step;
  const steps = known.step,
    values = known[name];
  const after = steps.findIndex((one) => one >= step);
  if (after < 0) return values[values.length - 1];
  if (after === 0) return values[0];
  const share = (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
  return values[after - 1] + share * (values[after] - values[after - 1]);
}

function smoothed(points) {
  const reach = Math.max(3, Math.floor(points.length / 15)) >> 1;
  return points.map(([x], at) => {
    const near = points.slice(Math.max(0, at - reach), at + reach + 1);
    return [x, near.reduce((sum, [, y]) => sum + y, 0) / near.length];
  });
}

function drawn(chart, low, high) {
  const [, , left, right] = chart.x,
    bottom = chart.y[2];
  const lines = chart.lines.map((line) => ({
    points: cut(line.x, line.y, low, high),
    inside: line.x.map((x, at) => [x, at]).filter(([x]) => x >= low && x <= high),
    ...line,
  }));
  const values = lines.flatMap((line) => [
    ...line.points.map(([, y]) => y),
    ...(line.low ? line.inside.flatMap(([, at]) => [line.low[at], line.high[at]]) : []),
  ]);
  if (!values.length) return [];
  const [least, most] = padded(values);
  const x = (value) => place([low, high, left, right], value).toFixed(1),
    y = (value) => place([least, most, bottom, TOP], value).toFixed(1);
  const path = (points) => points.map(([at, value]) => `${x(at)},${y(value)}`).join(" ");
  const across = (kind, value) =>
    make("line", { class: kind, x1: left, x2: right, y1: y(value), y2: y(value) });
  const label = (kind, at, height, anchor, text) =>
    make("text", { class: kind, x: at, y: height, "text-anchor": anchor }, text);
  return [
    ...ticks(least, most, 4).flatMap((value) => [
      across("grid", value),
      label("tick", left - 6, Number(y(value)) + 3.5, "end", tick(value)),
    ]),
    ...ticks(low, high, 4)
      .filter((at) => across !== ACROSS.step || Number.isInteger(at))
      .map((step) => label("tick", x(step), bottom + 17, "middle", tick(step))),
    ...chart.limits
      .filter(([value]) => value >= least && value <= most)
      .flatMap(([value, says]) => [
        across("limit", value),
        label("limit-text", right - 2, Number(y(value)) + (y(value) > 24 ? -4 : 11), "end", says),
      ]),
    ...lines.flatMap((line) => {
      const many = line.points.length >= SMOOTHED_FROM && !line.low,
        run = `run-${line.run}`;
      return [
        ...(line.low ? line.inside : []).map(([at, n]) =>
          make("line", {
            class: `bar ${run}`,
            x1: x(at),
            x2: x(at),
            y1: y(line.low[n]),
            y2: y(line.high[n]),
          }),
        ),
        make("polyline", { class: `line ${run}${many ? " faint" : ""}`, points: path(line.points) }),
        many ? make("polyline", { class: `line ${run}`, points: path(smoothed(line.points)) }) : null,
        ...(line.inside.length <= 12 ? line.inside : []).map(([at, n]) =>
          make("circle", { class: `dot ${run}`, cx: x(at), cy: y(line.y[n]), r: 2.6 }),
        ),
      ].filter((one) => one !== null);
    }),
  ];
}

function showZoom() {
  const form = byId("zoom");
  if (!form || !charts.length) return;
  const [axis, from, to, all, says] = ["axis", "from", "to", "all", "says"].map((name) => byId(`zoom-${name}`));
  // Time and tokens are known where every run that is drawn recorded them.
  const counted = data.axes.every((one) => one.step.length > 1) ? Object.keys(ACROSS) : ["step"];
  choices(
    axis,
    counted.map((name) => [name, ACROSS[name].title]),
  );
  axis.parentElement.hidden = counted.length < 2;
  for (const chart of charts) chart.steps = chart.lines.map((line) => line.x);
  let first, last;

  function measure() {
    across = ACROSS[axis.value];
    for (const chart of charts) {
      chart.lines.forEach((line, at) => {
        line.x = chart.steps[at].map((step) => passed(data.axes[line.run], axis.value, step));
      });
      const ends = chart.lines.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
      const [low, high] = [Math.min(...ends), Math.max(...ends)];
      chart.x = [...(low < high ? [low, high] : [low - 0.5, low + 0.5]), ...chart.x.slice(2)];
    }
    first = Math.min(...charts.map((chart) => chart.x[0]));
    last = Math.max(...charts.map((chart) => chart.x[1]));
    from.placeholder = tick(Math.ceil(first));
    to.placeholder = tick(Math.floor(last));
    from.value = to.value = "";
    update();
  }

  function update() {
    const low = from.value === "" ? first : Number(from.value),
      high = to.value === "" ? last : Number(to.value);
    const chosen = from.value !== "" || to.value !== "",
      zoomed = chosen && low < high;
    all.disabled = !chosen;
    for (const chart of charts) {
      chart.view = zoomed ? [low, high, chart.x[2], chart.x[3]] : chart.x;
      const anew = zoomed || across !== ACROSS.step;
      chart.zoomed.replaceChildren(...(anew ? drawn(chart, chart.view[0], chart.view[1]) : []));
      chart.whole.setAttribute("display", anew ? "none" : "inline");
    }
    readAll(null);
    says.textContent = zoomed
      ? `${across.unit} ${tick(low)} to ${tick(high)}.`
      : chosen
        ? "The first must be below the last."
        : "Drag across a curve, or type here from where to where, to look closer.";
  }
  function choose(low, high) {
    from.value = low;
    to.value = high;
    update();
  }
  for (const chart of charts) {
    const { svg } = chart;
    chart.whole = svg.querySelector(".whole");
    chart.zoomed = make("g");
    chart.whole.after(chart.zoomed);
    const band = make("rect", { class: "band", y: TOP, height: chart.y[2] - TOP, width: 0 });
    let begun = null;
    const end = () => {
      begun = null;
      band.remove();
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      begun = pointed(chart, event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (begun === null) return;
      const ends = [begun, pointed(chart, event)].map((step) => place(chart.view, step));
      band.setAttribute("x", Math.min(...ends));
      band.setAttribute("width", Math.abs(ends[1] - ends[0]));
      svg.append(band);
    });
    svg.addEventListener("pointerup", (event) => {
      if (begun === null) return;
      const [low, high] = [begun, pointed(chart, event)].sort((a, b) => a - b);
      const wide = Number(band.getAttribute("width")) > 6;
      end();
      const [start, stop] =
        across === ACROSS.step ? [Math.floor(low), Math.ceil(high)] : [low, high].map((at) => Number(at.toPrecision(4)));
      if (wide && start < stop) choose(start, stop);
    });
    svg.addEventListener("pointercancel", end);
    svg.addEventListener("keydown", (event) => event.key === "Escape" && choose("", ""));
  }
  all.addEventListener("click", () => {
    choose("", "");
    from.focus();
  });
  form.hidden = false;
  form.addEventListener("input", (event) => (event.target === axis ? measure() : update()));
  form.addEventListener("submit", (event) => event.preventDefault());
  measure();
}
