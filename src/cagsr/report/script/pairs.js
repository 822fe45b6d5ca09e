// Before and after: held-out responses side by side, with their differences marked.
// The longest common subsequence of words; texts too long for its table stay unmarked.
function differences(before, after) {
  const a = before.split(/(?<=\s)/),
    b = after.split(/(?<=\s)/);
  if (a.length * b.length > 250000) return [[[before, false]], [[after, false]]];
  const same = (i, j) => a[i].trim() === b[j].trim();
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      length[i][j] = same(i, j) ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
  const left = [],
    right = [];
  let i = 0,
    j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) {
      left.push([a[i++], false]);
      right.push([b[j++], false]);
    } else if (j >= b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1]))
      left.push([a[i++], true]);
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
  const all = data.pairs.flatMap((set) =>
    set.systems.map((system) => ({
      set,
      system,
      name: data.pairs.length > 1 ? `${set.run}: ${system.name}` : system.name,
    })),
  );
  const before = choices(
    byId("pairs-before"),
    all.map((one, at) => [at, one.name]),
  );
  const after = choices(
    byId("pairs-after"),
    all.map((one, at) => [at, one.name]),
  );
  const trained = all.findIndex((one) => one.name.startsWith("cagsr"));
  after.value = String(trained > 0 ? trained : all.length - 1);
  const metrics = all[0].set.metrics,
    primary = all[0].set.primary;
  const orders = [
    ["gain", "largest gain"],
    ["loss", "largest loss"],
    ["worst", `worst ${primary === null ? "" : metrics[primary].name} after`],
    ["prompt", "as in the file"],
  ];
  const order = choices(byId("pairs-order"), primary === null ? orders.slice(3) : orders);
  const show = choices(byId("pairs-show"), [
    ["all", "all pairs"],
    ["changed", "changed"],
    ...(primary === null
      ? []
      : [
          ["better", "better after"],
          ["worse", "worse after"],
        ]),
    ["suspect", "suspected hacking after"],
  ]);
  const search = byId("pairs-search");

  const repeated = (text) => {
    const words = text.split(/\s+/).filter(Boolean),
      seen = new Set();
    for (let at = 0; at + 2 < words.length; at++) seen.add(words.slice(at, at + 3).join(" "));
    return words.length > 2 ? 1 - seen.size / (words.length - 2) : 0;
  };
  const count = (text) => text.split(/\s+/).filter(Boolean).length;
  const suspect = (pair) =>
    repeated(pair.after) > 0.1 ||
    !pair.after.trim() ||
    count(pair.after) > 1.8 * Math.max(count(pair.before), 1) ||
    (pair.gain < 0 && count(pair.after) > 1.3 * count(pair.before));

  const draw = (pair) => {
    const [left, right] = differences(pair.before, pair.after);
    const chips = pair.metrics
      .map((metric, at) => {
        const [from, to] = [pair.values[0][at], pair.values[1][at]];
        const better = metric.higher === null || from === to ? null : to > from === metric.higher;
        return make(
          "li",
          { class: better === null ? null : better ? "better" : "worse" },
          `${metric.name} ${say(from)} → ${say(to)}${better === null ? "" : better ? " ▲" : " ▼"}`,
        );
      })
      .filter((_, at) => pair.values[0][at] !== pair.values[1][at]);
    return make(
      "li",
      {},
      make("p", { class: "asked", dir: "auto" }, pair.prompt),
      linked(`pairs-${before.value}-${after.value}-${pair.at}`, "#", "Link to this pair"),
      make(
        "div",
        { class: "sides" },
        make("div", {}, make("h3", {}, pair.names[0]), make("p", { dir: "auto" }, ...marked(left, "del"))),
        make("div", {}, make("h3", {}, pair.names[1]), make("p", { dir: "auto" }, ...marked(right, "ins"))),
      ),
      chips.length ? make("ul", { class: "chips", "aria-label": "What changed" }, ...chips) : null,
    );
  };
  let only = null; // the pair that a link asked for
  const list = paged(byId("pairs-list"), byId("pairs-more"), 8, draw);

  function update() {
    const [one, two] = [all[before.value], all[after.value]];
    if (one.set !== two.set) {
      byId("pairs-count").textContent = "These two did not answer the same prompts.";
      list([]);
      return;
    }
    const { prompts, metrics, primary } = one.set,
      wanted = search.value.trim().toLowerCase();
    let pairs = prompts.map((prompt, at) => {
      const values = [one.system.values[at], two.system.values[at]];
      const moved = primary === null ? 0 : values[1][primary] - values[0][primary];
      return {
        prompt,
        at,
        values,
        metrics,
        names: [one.name, two.name],
        before: one.system.responses[at],
        after: two.system.responses[at],
        gain: primary === null ? 0 : metrics[primary].higher ? moved : -moved,
        worst: primary === null ? 0 : (metrics[primary].higher ? -1 : 1) * values[1][primary],
      };
    });
    const kept = {
      all: () => true,
      changed: (p) => p.before !== p.after,
      better: (p) => p.gain > 0,
      worse: (p) => p.gain < 0,
      suspect,
    }[show.value];
    pairs = pairs.filter(
      (p) => (only === null || p.at === only) && kept(p) && (!wanted || `${p.prompt}\n${p.before}\n${p.after}`.toLowerCase().includes(wanted)),
    );
    pairs.sort(
      {
        gain: (p, q) => q.gain - p.gain || p.at - q.at,
        loss: (p, q) => p.gain - q.gain || p.at - q.at,
        worst: (p, q) => q.worst - p.worst || p.at - q.at,
        prompt: (p, q) => p.at - q.at,
      }[order.value],
    );
    byId("pairs-count").textContent = `${pairs.length} of ${prompts.length} prompts. ${one.set.what}`;
    list(pairs);
  }
  function follow() {
    const found = (location.hash.match(/^#pairs-(\d+)-(\d+)-(\d+)$/) || []).slice(1).map(Number);
    if (!found.length || !all[found[0]] || !all[found[1]]) return;
    [before.value, after.value, only] = found;
    [show.value, search.value] = ["all", ""];
    update();
    byId("pairs").scrollIntoView();
  }
  controls.hidden = false;
  controls.addEventListener("input", () => {
    only = null;
    update();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  update();
  addEventListener("hashchange", follow);
  follow();
}
