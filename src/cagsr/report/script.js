"use strict";
// What runs wrote comes into the page as text nodes only: nothing here makes markup of it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "rect", "line", "circle"].includes(tag);
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
    let text = size >= 100 ? Math.round(size).toLocaleString("en") : size >= 10 ? size.toFixed(1) : size >= 1 ? size.toFixed(2)
      : size && size < 0.001 ? size.toExponential(1) : size.toFixed(3).replace(/^0(?=\.)/, "");
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
    return (entries) => { found = entries; list.replaceChildren(); grow(); };
  }

  // Curves ---------------------------------------------------------------------------------------------------------
  const charts = Object.entries(data.charts).map(([id, chart]) => {
    const figure = byId(id);
    return { ...chart, svg: figure.querySelector("svg"), read: figure.querySelector(".read"), cursor: figure.querySelector(".cursor") };
  });
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] <= x) low = middle; else high = middle; }
    return x - xs[low] <= xs[high] - x ? low : high;
  };
  const place = ([low, high, start, end], value) => start + (value - low) / (high - low) * (end - start);

  function readAt(chart, x) {
    const asked = x === null ? chart.x[1] : x;
    const found = chart.lines.map((line) => [line, nearest(line.x, asked)]);
    chart.read.replaceChildren(...(x === null ? [] : [make("span", {}, `step ${found[0][0].x[found[0][1]]}`)]), ...found.map(([line, at]) =>
      make("span", {}, data.runs.length > 1 ? `${data.runs[line.run]} ` : "", make("b", {}, say(line.y[at])))));
    if (data.runs.length > 1 && x === null) chart.read.replaceChildren();
    if (x !== null) {
      const at = place(chart.x, found[0][0].x[found[0][1]]);
      chart.cursor.setAttribute("x1", at);
      chart.cursor.setAttribute("x2", at);
    }
    chart.cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
  }
  const readAll = (x) => charts.forEach((chart) => readAt(chart, x !== null && x >= chart.x[0] && x <= chart.x[1] ? x : null));
  readAll(null);
  for (const chart of charts) {
    let at = null;
    chart.svg.addEventListener("pointermove", (event) => {
      const box = chart.svg.getBoundingClientRect();
      const [low, high, start, end] = chart.x;
      const share = ((event.clientX - box.left) / box.width * chart.svg.viewBox.baseVal.width - start) / (end - start);
      readAll(low + Math.min(1, Math.max(0, share)) * (high - low));
    });
    chart.svg.addEventListener("pointerleave", () => readAll(null));
    chart.svg.addEventListener("blur", () => { at = null; readAll(null); });
    chart.svg.addEventListener("keydown", (event) => {
      const xs = chart.lines[0].x, move = { ArrowLeft: -1, ArrowRight: 1, Home: -xs.length, End: xs.length }[event.key];
      if (!move) return;
      event.preventDefault();
      at = Math.min(xs.length - 1, Math.max(0, (at === null ? (move < 0 ? xs.length : -1) : at) + move));
      readAll(xs[at]);
      byId("announced").textContent = [...chart.read.children].map((one) => one.textContent).join(", ");
    });
  }

  // Before and after -----------------------------------------------------------------------------------------------
  // The longest common subsequence of words; texts too long for its table stay unmarked.
  function differences(before, after) {
    const a = before.split(/(?<=\s)/), b = after.split(/(?<=\s)/);
    if (a.length * b.length > 250000) return [[[before, false]], [[after, false]]];
    const same = (i, j) => a[i].trim() === b[j].trim();
    const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--)
      length[i][j] = same(i, j) ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    const left = [], right = [];
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && same(i, j)) { left.push([a[i++], false]); right.push([b[j++], false]); }
      else if (j >= b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1])) left.push([a[i++], true]);
      else right.push([b[j++], true]);
    }
    return [left, right];
  }
  function marked(pieces, tag) {
    const runs = [];
    for (const [text, changed] of pieces) {
      if (runs.length && runs[runs.length - 1][1] === changed) runs[runs.length - 1][0] += text;
      else runs.push([text, changed]);
    }
    return runs.map(([text, changed]) => {
      const [, body, space] = text.match(/^([^]*?)(\s*)$/);
      return changed && body ? make("span", {}, make(tag, {}, body), space) : text;
    });
  }

  function showPairs() {
    const controls = byId("pairs-controls");
    if (!controls) return;
    const all = data.pairs.flatMap((set) => set.systems.map((system) => ({ set, system, name: data.pairs.length > 1 ? `${set.run}: ${system.name}` : system.name })));
    const before = choices(byId("pairs-before"), all.map((one, at) => [at, one.name]));
    const after = choices(byId("pairs-after"), all.map((one, at) => [at, one.name]));
    const trained = all.findIndex((one) => one.name.startsWith("cagsr"));
    after.value = String(trained > 0 ? trained : all.length - 1);
    const metrics = all[0].set.metrics, primary = all[0].set.primary;
    const orders = [["gain", "largest gain"], ["loss", "largest loss"], ["worst", `worst ${primary === null ? "" : metrics[primary].name} after`], ["prompt", "as in the file"]];
    const order = choices(byId("pairs-order"), primary === null ? orders.slice(3) : orders);
    const show = choices(byId("pairs-show"), [["all", "all pairs"], ["changed", "changed"], ...(primary === null ? [] : [["better", "better after"], ["worse", "worse after"]]), ["suspect", "suspected hacking after"]]);
    const search = byId("pairs-search");

    const repeated = (text) => {
      const words = text.split(/\s+/).filter(Boolean), seen = new Set();
      for (let at = 0; at + 2 < words.length; at++) seen.add(words.slice(at, at + 3).join(" "));
      return words.length > 2 ? 1 - seen.size / (words.length - 2) : 0;
    };
    const count = (text) => text.split(/\s+/).filter(Boolean).length;
    const suspect = (pair) => repeated(pair.after) > 0.1 || !pair.after.trim() || count(pair.after) > 1.8 * Math.max(count(pair.before), 1)
      || (pair.gain < 0 && count(pair.after) > 1.3 * count(pair.before));

    const draw = (pair) => {
      const [left, right] = differences(pair.before, pair.after);
      const chips = pair.metrics.map((metric, at) => {
        const [from, to] = [pair.values[0][at], pair.values[1][at]];
        const better = metric.higher === null || from === to ? null : (to > from) === metric.higher;
        return make("li", { class: better === null ? null : better ? "better" : "worse" }, `${metric.name} ${say(from)} → ${say(to)}${better === null ? "" : better ? " ▲" : " ▼"}`);
      }).filter((_, at) => pair.values[0][at] !== pair.values[1][at]);
      return make("li", {}, make("p", { class: "asked", dir: "auto" }, pair.prompt),
        make("div", { class: "sides" },
          make("div", {}, make("h3", {}, pair.names[0]), make("p", { dir: "auto" }, ...marked(left, "del"))),
          make("div", {}, make("h3", {}, pair.names[1]), make("p", { dir: "auto" }, ...marked(right, "ins")))),
        chips.length ? make("ul", { class: "chips", "aria-label": "What changed" }, ...chips) : null);
    };
    const list = paged(byId("pairs-list"), byId("pairs-more"), 8, draw);

    function update() {
      const [one, two] = [all[before.value], all[after.value]];
      if (one.set !== two.set) { byId("pairs-count").textContent = "These two did not answer the same prompts."; list([]); return; }
      const { prompts, metrics, primary } = one.set, wanted = search.value.trim().toLowerCase();
      let pairs = prompts.map((prompt, at) => {
        const values = [one.system.values[at], two.system.values[at]];
        const moved = primary === null ? 0 : values[1][primary] - values[0][primary];
        return { prompt, at, values, metrics, names: [one.name, two.name], before: one.system.responses[at], after: two.system.responses[at],
          gain: primary === null ? 0 : metrics[primary].higher ? moved : -moved, worst: primary === null ? 0 : (metrics[primary].higher ? -1 : 1) * values[1][primary] };
      });
      const kept = { all: () => true, changed: (p) => p.before !== p.after, better: (p) => p.gain > 0, worse: (p) => p.gain < 0, suspect }[show.value];
      pairs = pairs.filter((p) => kept(p) && (!wanted || `${p.prompt}\n${p.before}\n${p.after}`.toLowerCase().includes(wanted)));
      pairs.sort({ gain: (p, q) => q.gain - p.gain || p.at - q.at, loss: (p, q) => p.gain - q.gain || p.at - q.at, worst: (p, q) => q.worst - p.worst || p.at - q.at, prompt: (p, q) => p.at - q.at }[order.value]);
      byId("pairs-count").textContent = `${pairs.length} of ${prompts.length} prompts`;
      list(pairs);
    }
    controls.hidden = false;
    controls.addEventListener("input", update);
    controls.addEventListener("submit", (event) => event.preventDefault());
    update();
  }

  // Candidates -----------------------------------------------------------------------------------------------------
  const MISSED = 1 / 3; // of the strongest attention that any prompt word got
  const text = (group) => (group.text ??= [group.u.join(""), ...group.w.map((one) => one.u.join(""))].join("\n").toLowerCase());
  const spread = (group) => group.w[0].r - group.w[group.w.length - 1].r;

  // For each prompt word the strongest attention of any candidate; which words that count nobody reached.
  function reached(group) {
    if (!group.best) {
      group.best = group.u.map((_, at) => Math.max(0, ...group.w.map((one) => one.k[at] || 0)));
      group.limit = MISSED * Math.max(1, ...group.best);
      group.missed = group.w.some((one) => one.k.length) ? group.c.filter((at) => group.best[at] < group.limit) : [];
    }
    return group;
  }

  function shade(span, percent, strongest) {
    const share = strongest ? Math.min(1, percent / strongest) : 0;
    span.style.setProperty("--shade-of", (0.5 * share * share).toFixed(3));
    span.style.setProperty("--bar", share > 0.66 ? "3px" : share > MISSED ? "1.5px" : "0px");
  }

  // The words of a text as a line of spans; one Tab stop, arrow keys go from word to word.
  function words(pieces, label, point) {
    const line = make("p", { class: "words", tabindex: "0", dir: "auto", role: "group", "aria-label": label });
    const spans = pieces.map((piece, at) => {
      const [, body, space] = piece.match(/^([^]*?)(\s*)$/);
      const span = make("span", { "data-at": at }, body);
      line.append(span, space);
      return span;
    });
    let pinned = null;
    const at = (event) => (event.target.dataset && event.target.dataset.at ? Number(event.target.dataset.at) : null);
    line.addEventListener("pointerover", (event) => { if (event.pointerType === "mouse" && at(event) !== null && pinned === null) point(at(event)); });
    line.addEventListener("pointerleave", () => { if (pinned === null) point(null); });
    line.addEventListener("click", (event) => { pinned = at(event) === pinned ? null : at(event); point(pinned); });
    line.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") { pinned = null; point(null); }
      if (!move) return;
      event.preventDefault();
      pinned = pinned === null ? (move > 0 ? 0 : pieces.length - 1) : Math.min(pieces.length - 1, Math.max(0, pinned + move));
      point(pinned);
    });
    return { line, spans, free: () => { pinned = null; } };
  }

  function parts(candidate, group, signals) {
    const means = signals.map((_, at) => group.w.reduce((sum, one) => sum + (one.p[at] || 0), 0) / group.w.length);
    const widest = Math.max(1e-9, ...group.w.flatMap((one) => one.p.map((value, at) => Math.abs((value || 0) - means[at]))));
    const rows = signals.map((name, at) => {
      const raw = candidate.x[at], added = candidate.p[at];
      if (raw === null && added === null) return null;
      const width = added === null ? 0 : (added - means[at]) / widest * 38;
      const bar = make("svg", { viewBox: "0 0 80 11", "aria-hidden": "true" },
        make("line", { x1: 40, x2: 40, y1: 0, y2: 11 }),
        make("rect", { x: Math.min(40, 40 + width), y: 2, width: Math.abs(width), height: 7, class: width < 0 ? "less" : null }));
      return make("tr", { title: `${name}: raw ${say(raw)}, adds ${say(added, true)} to the reward` },
        make("th", { scope: "row" }, name), make("td", {}, added === null ? say(raw) : say(added, true)), make("td", {}, bar));
    });
    return make("table", { class: "parts" }, make("caption", { class: "skip" }, "What each signal added"), make("tbody", {}, ...rows));
  }

  function detail(run, group) {
    const { best, limit, missed } = reached(group), strongest = Math.max(1, ...best);
    const says = make("p", { class: "says", role: "status" });
    const known = group.w.some((one) => one.l), any = group.w.some((one) => one.k.length);
    const cards = [];
    const idle = () => {
      says.textContent = !any ? "No attention was kept for this prompt."
        : missed.length ? `Not covered by any candidate: ${missed.map((at) => group.u[at].trim()).join(", ")}` : "Every word that counts was covered by some candidate.";
      group.u.forEach((_, at) => shade(prompt.spans[at], best[at], strongest));
      mark(null);
    };
    const mark = (asked, card = null, at = null) => {
      prompt.spans.forEach((span, place) => { span.classList.toggle("at", place === asked); span.classList.toggle("missed", missed.includes(place)); });
      for (const one of cards) {
        one.words.spans.forEach((span, place) => { span.classList.toggle("at", one === card && place === at); shade(span, 0, 1); });
        one.item.classList.remove("aside");
        one.seen.textContent = "";
        if (one !== card) one.words.free();
      }
    };
    const prompt = words(group.u, "The prompt. Arrow keys point at its words.", (asked) => {
      if (asked === null || !any) return idle();
      mark(asked);
      let covering = 0;
      for (const one of cards) {
        const got = one.candidate.k[asked] || 0;
        one.item.classList.toggle("aside", got < limit);
        one.seen.textContent = got < limit ? "does not cover it" : `covers it: .${String(Math.min(got, 99)).padStart(2, "0")}`;
        covering += got >= limit;
        (one.candidate.l || []).forEach((look, place) => {
          for (let k = 0; k < look.length; k += 2) if (look[k] === asked) shade(one.words.spans[place], look[k + 1], strongest);
        });
      }
      says.textContent = `“${group.u[asked].trim()}” is covered by ${covering} of ${cards.length} candidates.`;
    });
    const list = make("ol", { class: "cards" });
    group.w.forEach((candidate, rank) => {
      const one = { candidate, seen: make("span", { class: "seen" }) };
      one.words = words(candidate.u, `Candidate ${rank + 1}. Arrow keys point at its words.`, (at) => {
        prompt.free();
        if (at === null) return idle();
        mark(null, one, at);
        const look = candidate.l ? candidate.l[at] || [] : [];
        prompt.spans.forEach((span) => shade(span, 0, 1));
        const named = [];
        for (let k = 0; k < look.length; k += 2) {
          shade(prompt.spans[look[k]], look[k + 1], strongest);
          if (named.length < 4) named.push(`${group.u[look[k]].trim()} .${String(Math.min(look[k + 1], 99)).padStart(2, "0")}`);
        }
        says.textContent = candidate.l ? `“${candidate.u[at].trim()}” looked at ${named.join(", ") || "nothing much of the prompt"}` : "Where single words looked was not kept at this step.";
      });
      if (candidate.l) one.words.spans.forEach((span) => span.classList.add("looks"));
      one.item = make("li", { class: "card" },
        make("header", {}, make("b", {}, say(candidate.r)), make("span", {}, `advantage ${say(candidate.a, true)}`),
          ...candidate.h.map((reason) => make("span", { class: "flag" }, `⚑ ${reason}`)), one.seen),
        candidate.u.length ? one.words.line : make("p", { class: "says" }, "(empty response)"),
        run.signals.length ? parts(candidate, group, run.signals) : null);
      cards.push(one);
      list.append(one.item);
    });
    byId("browse-detail").replaceChildren(
      make("h3", {}, `Step ${group.s}, prompt ${group.i}: ${group.w.length} candidates, the highest reward first`),
      make("div", { class: "prompt" }, prompt.line, says),
      list,
      make("p", { class: "legend-line" },
        known ? make("span", {}, "Point at a word, tap it, or use Tab and ← →: where the model looked when it wrote it, or who covered it.") : null,
        any ? make("span", {}, "Shade and underline: attention. Wavy: a word that counts and that no candidate covered.") : null,
        make("span", {}, "Bars: what a signal added, against the mean of these candidates.")));
    idle();
  }

  function showCandidates() {
    const controls = byId("browse-controls");
    if (!controls) return;
    const chosen = choices(byId("browse-run"), data.browse.map((run, at) => [at, run.name]));
    chosen.parentElement.hidden = data.browse.length < 2;
    const order = choices(byId("browse-order"), [["late", "latest step first"], ["early", "earliest step first"], ["spread", "largest spread of reward"], ["missed", "most words nobody covered"], ["low", "lowest best reward"]]);
    const show = choices(byId("browse-show"), [["all", "all prompts"], ["suspect", "suspected hacking"], ["missed", "a word nobody covered"], ["attention", "with attention of each word"]]);
    const search = byId("browse-search"), list = byId("browse-list");
    let run = null, low = 0, high = 1, current = null;

    function choose(group, button) {
      current = group;
      for (const one of list.querySelectorAll("[aria-current]")) one.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
      detail(run, group);
    }
    const draw = (group) => {
      const strip = make("svg", { viewBox: "0 0 280 12", "aria-hidden": "true" },
        ...group.w.map((one) => make("circle", { cx: 4 + 272 * (one.r - low) / (high - low || 1), cy: 6, r: 3 })));
      const flags = group.w[0].h;
      const button = make("button", { type: "button" }, make("span", { class: "where" }, `step ${group.s} · reward ${say(group.w[group.w.length - 1].r)} to ${say(group.w[0].r)}`, flags.length ? make("span", { class: "flag" }, ` ⚑ ${flags[0]}`) : ""),
        make("span", { class: "asked", dir: "auto" }, group.u.join("").slice(0, 220)), strip);
      button.addEventListener("click", () => choose(group, button));
      const item = make("li", {}, button);
      if (group === current) button.setAttribute("aria-current", "true");
      return item;
    };
    const fill = paged(list, byId("browse-more"), 40, draw);
    list.addEventListener("keydown", (event) => {
      const move = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const next = move && event.target.closest("li")[move];
      if (!next) return;
      event.preventDefault();
      next.firstChild.focus();
      next.firstChild.click();
    });

    function update() {
      run = data.browse[chosen.value];
      const rewards = run.groups.flatMap((group) => group.w.map((one) => one.r));
      low = rewards.reduce((a, b) => Math.min(a, b), Infinity);
      high = rewards.reduce((a, b) => Math.max(a, b), -Infinity);
      const wanted = search.value.trim().toLowerCase();
      const kept = { all: () => true, suspect: (g) => g.w[0].h.length > 0, missed: (g) => reached(g).missed.length > 0, attention: (g) => g.w.some((one) => one.l) }[show.value];
      const found = run.groups.filter((group) => kept(group) && (!wanted || text(group).includes(wanted)));
      found.sort({ late: (g, h) => h.s - g.s, early: (g, h) => g.s - h.s, spread: (g, h) => spread(h) - spread(g), missed: (g, h) => reached(h).missed.length - reached(g).missed.length, low: (g, h) => g.w[0].r - h.w[0].r }[order.value]);
      byId("browse-count").textContent = `${found.length} of ${run.groups.length} prompts` + (run.left_out ? `; ${run.left_out} more are in candidates.jsonl` : "");
      if (!found.includes(current)) current = found[0] || null;
      fill(found);
      if (current) detail(run, current);
      else byId("browse-detail").replaceChildren();
    }
    controls.hidden = false;
    controls.addEventListener("input", update);
    controls.addEventListener("submit", (event) => event.preventDefault());
    update();
  }

  showPairs();
  showCandidates();

  // A report that is served asks its server, and nobody else, whether the run has moved on.
  if (data.live) {
    let known = null, waiting = false;
    setInterval(async () => {
      try {
        const now = await (await fetch("changed")).text();
        if (known !== null && now !== known) waiting = true;
        known = now;
        byId("live").textContent = waiting ? "new rows" : "live";
        // Never under a reader's hand: not while something is focused or pointed at.
        if (waiting && document.activeElement === document.body && !document.querySelector("#browse-detail:hover, .pairs:hover, .chart:hover")) location.reload();
      } catch { byId("live").textContent = "the server has stopped"; }
    }, 2000);
  }
})();
