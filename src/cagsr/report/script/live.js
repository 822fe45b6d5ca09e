// Last of all: show what there is, and keep it fresh where it is served.
showZoom();
showPairs();
showCandidates();

// A report that is served asks its server, and nobody else, whether the run has moved on. It is then loaded again with
// what was chosen in it, and never under a reader's hand: not while something is focused or pointed at.
const KEPT = "kept over a reload";

function keep() {
  const chosen = [...document.querySelectorAll("select, input")].map((one) => [one.id, one.value]);
  const opened = [...document.querySelectorAll("details")].map((one) => one.open);
  sessionStorage.setItem(KEPT, JSON.stringify({ chosen, opened, at: scrollY }));
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) || "null");
  sessionStorage.removeItem(KEPT);
  if (!kept) return;
  for (const [id, value] of kept.chosen) {
    const one = byId(id);
    if (!one || one.value === value) continue;
    one.value = value;
    one.dispatchEvent(new Event("input", { bubbles: true }));
  }
  document.querySelectorAll("details").forEach((one, at) => (one.open = kept.opened[at] ?? one.open));
  scrollTo({ top: kept.at, behavior: "instant" });
}

async function look(state) {
  const pointed = "#browse-detail:hover, .pairs:hover, .chart:hover";
  try {
    const now = await (await fetch("changed")).text();
    const moved = state.known !== null && now !== state.known;
    byId("live").textContent = moved ? "new rows" : "live";
    state.known ??= now;
    if (moved && document.activeElement === document.body && !document.querySelector(pointed)) {
      keep();
      location.reload();
    }
  } catch {
    byId("live").textContent = "the server has stopped";
  }
}

if (data.live) {
  const state = { known: null };
  restore();
  look(state);
  setInterval(look, 2000, state);
}
