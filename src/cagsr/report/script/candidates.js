// Candidates: a prompt, its responses by reward, and the attention between their words.
const MISSED = 1 / 3; // of the strongest attention that any prompt word got
const text = (group) =>
  (group.text ??= [group.u.join(""), ...group.w.map((one) => one.u.join(""))].join("\n").toLowerCase());
const spread = (group) => group.w[0].r - group.w[group.w.length - 1].r;

// What nobody covered. By knockout where it was made: segments of the prompt that explain no response; else by
// attention: pieces, or where none are known words that count, that nobody looked at. Of attention the strongest of any
// candidate for each word; a piece is looked at from a third of the strongest look at any piece of the prompt on.
function reached(group, run) {
  if (!group.best) {
    const covers = (one, at) => (one.d ? one.d[at] >= run.said : one.o[at] >= group.glance);
    group.best = group.u.map((_, at) => Math.max(0, ...group.w.map((one) => one.k[at] || 0)));
    group.limit = MISSED * Math.max(1, ...group.best);
    group.stare = Math.max(1e-9, ...group.w.flatMap((one) => one.o || []));
    group.glance = MISSED * group.stare;
    group.counts = group.g && group.g.map((_, at) => group.w.filter((one) => covers(one, at)).length);
    if (group.g) group.missed = group.g.filter((_, at) => !group.counts[at]);
    else
      group.missed = group.w.some((one) => one.k.length)
        ? group.c.filter((at) => group.best[at] < group.limit).map((at) => [at])
        : [];
    group.unsaid = new Set(group.missed.flat());
  }
  return group;
}

// A segment's words as they stand in the prompt: its tokens may leave out what is between them.
const written = (group, piece) =>
  group.u
    .slice(Math.min(...piece), Math.max(...piece) + 1)
    .join("")
    .trim();

function segmentsOf(group, run) {
  if (!group.g) return null;
  return make(
    "div",
    { class: "pieces" },
    make(
      "p",
      {},
      group.w[0].d
        ? `Explained by knockout: how many responses lose at least ${run.said} nats without this piece of the prompt`
        : "Looked at: how many responses look at this piece of the prompt, somewhere, at least a third as strongly " +
            "as any of them looks at any piece",
    ),
    make(
      "ul",
      {},
      ...group.g.map((piece, at) =>
        piece.length
          ? make(
              "li",
              { class: group.counts[at] ? null : "nobody" },
              make("span", { dir: "auto" }, written(group, piece)),
              make("b", {}, group.counts[at] ? ` ${group.counts[at]} of ${group.w.length}` : " nobody"),
            )
          : null,
      ),
    ),
  );
}

// How strongly one candidate looked at each piece.
function looksOf(candidate, group) {
  if (!candidate.o) return null;
  const item = (piece, at) => {
    if (!piece.length) return null;
    const passed = candidate.o[at] < group.glance,
      text = make("span", { dir: "auto" }, written(group, piece));
    shade(text, candidate.o[at], group.stare);
    return make(
      "li",
      { class: passed ? "nobody" : null, title: `${written(group, piece)}: ${say(candidate.o[at]) || 0}` },
      text,
      make("b", {}, passed ? " passed over" : ` ${say(candidate.o[at])}`),
    );
  };
  return make("ul", { class: "pieces", "aria-label": "Pieces it looked at" }, ...group.g.map(item));
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
  const at = (event) =>
    event.target.dataset && event.target.dataset.at ? Number(event.target.dataset.at) : null;
  line.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && at(event) !== null && pinned === null) point(at(event));
  });
  line.addEventListener("pointerleave", () => {
    if (pinned === null) point(null);
  });
  line.addEventListener("click", (event) => {
    pinned = at(event) === pinned ? null : at(event);
    point(pinned);
  });
  line.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") {
      pinned = null;
      point(null);
    }
    if (!move) return;
    event.preventDefault();
    pinned =
      pinned === null
        ? move > 0
          ? 0
          : pieces.length - 1
        : Math.min(pieces.length - 1, Math.max(0, pinned + move));
    point(pinned);
  });
  return {
    line,
    spans,
    free: () => {
      pinned = null;
    },
  };
}

function parts(candidate, group, signals) {
  const means = signals.map(
    (_, at) => group.w.reduce((sum, one) => sum + (one.p[at] || 0), 0) / group.w.length,
  );
  const widest = Math.max(
    1e-9,
    ...group.w.flatMap((one) => one.p.map((value, at) => Math.abs((value || 0) - means[at]))),
  );
  const rows = signals.map((name, at) => {
    const raw = candidate.x[at],
      added = candidate.p[at];
    if (raw === null && added === null) return null;
    const width = added === null ? 0 : ((added - means[at]) / widest) * 38;
    const bar = make(
      "svg",
      { viewBox: "0 0 80 11", "aria-hidden": "true" },
      make("line", { x1: 40, x2: 40, y1: 0, y2: 11 }),
      make("rect", {
        x: Math.min(40, 40 + width),
        y: 2,
        width: Math.abs(width),
        height: 7,
        class: width < 0 ? "less" : null,
      }),
    );
    return make(
      "tr",
      { title: `${name}: raw ${say(raw)}, adds ${say(added, true)} to the reward` },
      make("th", { scope: "row" }, name),
      make("td", {}, added === null ? say(raw) : say(added, true)),
      make("td", {}, bar),
    );
  });
  return make(
    "table",
    { class: "parts" },
    make("caption", { class: "skip" }, "What each signal added"),
    make("tbody", {}, ...rows),
  );
}

// The address of a prompt's candidates, or of one of them: whoever opens the page with it sees these.
const address = (run, group, rank = null) =>
  `candidates-${data.browse.indexOf(run)}-${group.s}-${group.i}` + (rank === null ? "" : `-${rank + 1}`);
const linked = (to, text, says) => make("a", { class: "link", href: `#${to}`, "aria-label": says }, text);

function detail(run, group) {
  const { best, limit, missed, unsaid } = reached(group, run),
    strongest = Math.max(1, ...best);
  const says = make("p", { class: "says", role: "status" });
  const known = group.w.some((one) => one.l),
    any = group.w.some((one) => one.k.length);
  const cards = [];
  const idle = () => {
    const by = group.w[0].d ? "knockout" : "attention",
      named = missed.filter((piece) => piece.length).map((piece) => written(group, piece));
    says.textContent =
      !any && !group.g
        ? "No attention was kept for this prompt."
        : named.length
          ? `By ${by}, not covered by any candidate: ${named.join(", ")}`
          : `By ${by}, every ${group.g ? "piece" : "word that counts"} was covered by some candidate.`;
    group.u.forEach((_, at) => shade(prompt.spans[at], best[at], strongest));
    mark(null);
  };
  const mark = (asked, card = null, at = null) => {
    prompt.spans.forEach((span, place) => {
      span.classList.toggle("at", place === asked);
      span.classList.toggle("missed", unsaid.has(place));
    });
    for (const one of cards) {
      one.words.spans.forEach((span, place) => {
        span.classList.toggle("at", one === card && place === at);
        shade(span, 0, 1);
      });
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
      one.seen.textContent =
        got < limit ? "does not cover it" : `covers it: .${String(Math.min(got, 99)).padStart(2, "0")}`;
      covering += got >= limit;
      (one.candidate.l || []).forEach((look, place) => {
        for (let k = 0; k < look.length; k += 2)
          if (look[k] === asked) shade(one.words.spans[place], look[k + 1], strongest);
      });
    }
    const at = group.g ? group.g.findIndex((piece) => piece.includes(asked)) : -1;
    const by = group.w[0].d ? "by knockout," : "the piece";
    says.textContent =
      `By attention, “${group.u[asked].trim()}” is covered by ${covering} of ${cards.length} candidates` +
      (at < 0 ? "." : `; ${by} “${written(group, group.g[at])}” by ${group.counts[at]}.`);
    if (at >= 0)
      for (const one of cards)
        one.seen.textContent += one.candidate.d
          ? `; explained: ${say(Math.max(0, one.candidate.d[at])) || 0} nats`
          : `; the piece: ${say(one.candidate.o[at])}`;
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
        if (named.length < 4)
          named.push(`${group.u[look[k]].trim()} .${String(Math.min(look[k + 1], 99)).padStart(2, "0")}`);
      }
      says.textContent = candidate.l
        ? `“${candidate.u[at].trim()}” looked at ${named.join(", ") || "nothing much of the prompt"}`
        : "Where single words looked was not kept at this step.";
    });
    if (candidate.l) one.words.spans.forEach((span) => span.classList.add("looks"));
    one.item = make(
      "li",
      { class: "card", id: address(run, group, rank) },
      make(
        "header",
        {},
        make("b", {}, say(candidate.r)),
        linked(address(run, group, rank), `#${rank + 1}`, `Link to candidate ${rank + 1}`),
        make("span", {}, `advantage ${say(candidate.a, true)}`),
        ...candidate.h.map((reason) => make("span", { class: "flag" }, `⚑ ${reason}`)),
        one.seen,
      ),
      candidate.u.length ? one.words.line : make("p", { class: "says" }, "(empty response)"),
      run.signals.length ? parts(candidate, group, run.signals) : null,
      looksOf(candidate, group),
    );
    cards.push(one);
    list.append(one.item);
  });
  byId("browse-detail").replaceChildren(
    make(
      "h3",
      {},
      `Step ${group.s}, prompt ${group.i}: ${group.w.length} candidates, the highest reward first `,
      linked(address(run, group), "#", "Link to this prompt"),
    ),
    make("div", { class: "prompt" }, prompt.line, says),
    segmentsOf(group, run) || "",
    list,
    make(
      "p",
      { class: "legend-line" },
      known
        ? make(
            "span",
            {},
            "Point at a word, tap it, or use Tab and ← →: where the model looked when it wrote it, or who covered it.",
          )
        : null,
      any
        ? make(
            "span",
            {},
            "Shade and underline: attention. Covered by attention: at least a third of the strongest that a word " +
              `of this prompt got. Wavy: what by ${group.w[0].d ? "knockout" : "attention"} no candidate covered.`,
          )
        : null,
      group.w[0].o
        ? make("span", {}, "Below a response: its strongest look at each piece of the prompt, shaded alike.")
        : null,
      make("span", {}, "Bars: what a signal added, against the mean of these candidates."),
    ),
  );
  for (const at of group.t || []) prompt.spans[at].classList.add("role");
  idle();
}

function showCandidates() {
  const controls = byId("browse-controls");
  if (!controls) return;
  const chosen = choices(
    byId("browse-run"),
    data.browse.map((run, at) => [at, run.name]),
  );
  chosen.parentElement.hidden = data.browse.length < 2;
  const order = choices(byId("browse-order"), [
    ["late", "latest step first"],
    ["early", "earliest step first"],
    ["spread", "largest spread of reward"],
    ["missed", "most that nobody covered"],
    ["low", "lowest best reward"],
  ]);
  const show = choices(byId("browse-show"), [
    ["all", "all prompts"],
    ["suspect", "suspected hacking"],
    ["missed", "something nobody covered"],
    ["attention", "with attention of each word"],
  ]);
  const search = byId("browse-search"),
    list = byId("browse-list");
  let run = null,
    low = 0,
    high = 1,
    current = null;

  function choose(group, button) {
    current = group;
    for (const one of list.querySelectorAll("[aria-current]")) one.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
    detail(run, group);
  }
  const draw = (group) => {
    const strip = make(
      "svg",
      { viewBox: "0 0 280 12", "aria-hidden": "true" },
      ...group.w.map((one) =>
        make("circle", { cx: 4 + (272 * (one.r - low)) / (high - low || 1), cy: 6, r: 3 }),
      ),
    );
    const flags = group.w[0].h;
    const button = make(
      "button",
      { type: "button" },
      make(
        "span",
        { class: "where" },
        `step ${group.s} · reward ${say(group.w[group.w.length - 1].r)} to ${say(group.w[0].r)}`,
        flags.length ? make("span", { class: "flag" }, ` ⚑ ${flags[0]}`) : "",
      ),
      make("span", { class: "asked", dir: "auto" }, group.u.join("").slice(0, 220)),
      strip,
    );
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
    const kept = {
      all: () => true,
      suspect: (g) => g.w[0].h.length > 0,
      missed: (g) => reached(g, run).missed.length > 0,
      attention: (g) => g.w.some((one) => one.l),
    }[show.value];
    const found = run.groups.filter((group) => kept(group) && (!wanted || text(group).includes(wanted)));
    found.sort(
      {
        late: (g, h) => h.s - g.s,
        early: (g, h) => g.s - h.s,
        spread: (g, h) => spread(h) - spread(g),
        missed: (g, h) => reached(h, run).missed.length - reached(g, run).missed.length,
        low: (g, h) => g.w[0].r - h.w[0].r,
      }[order.value],
    );
    byId("browse-count").textContent =
      `${found.length} of ${run.groups.length} prompts` +
      (run.left_out ? `; ${run.left_out} more are in candidates.jsonl` : "");
    if (!found.includes(current)) current = found[0] || null;
    fill(found);
    if (current) detail(run, current);
    else byId("browse-detail").replaceChildren();
  }
  function follow() {
    const [, at, step, prompt] = location.hash.match(/^#candidates-(\d+)-(\d+)-(\d+)(?:-\d+)?$/) || [];
    const groups = data.browse[at] ? data.browse[at].groups : [];
    const group = groups.find((one) => one.s === Number(step) && one.i === Number(prompt));
    if (!group) return;
    [chosen.value, show.value, search.value, current] = [at, "all", "", group];
    update();
    (byId(location.hash.slice(1)) || byId("browse-detail")).scrollIntoView();
  }
  controls.hidden = false;
  controls.addEventListener("input", update);
  controls.addEventListener("submit", (event) => event.preventDefault());
  update();
  addEventListener("hashchange", follow);
  follow();
}
