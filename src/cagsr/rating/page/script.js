"use strict";

// What is shown comes from the server as text and is put on the page as text, never as markup.

const mode = document.body.dataset.mode;
const byId = (id) => document.getElementById(id);
const groups = [...document.querySelectorAll("[data-question]")];
// The last answer stays in sight for a moment before the next item takes its place.
const PAUSE = window.matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 280;
const VALUES = {
  scores: { 1: 1, 2: 2, 3: 3, 4: 4, 5: 5 },
  pairs: { a: 1, ArrowLeft: 1, b: -1, ArrowRight: -1, n: 0 },
}[mode];

let state = null;
let active = 0; // the question that a number key answers
let busy = true; // an answer is on its way, or its item is about to leave
let leaving = false; // the answer on its way is the item's last one
let failed = null; // what was not saved, to be tried again
let typed = []; // keys pressed while an answer was on its way

async function ask(path, body) {
  const options = { headers: { Accept: "application/json" }, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the program that serves this page does not answer");
  }
  if (response.status === 403) throw new Error("your link is no longer good; ask for a new one");
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.problem || `the server answered ${response.status}`);
  return content;
}

// Nothing else can be done while an answer is not saved: it is tried again until it is.
async function attempt(path, body, kept) {
  busy = true;
  failed = null;
  let received;
  try {
    received = await ask(path, body);
  } catch (error) {
    failed = () => attempt(path, body, kept);
    typed = [];
    byId("saved").textContent = "";
    byId("problem-text").textContent = (body === undefined ? "" : "Not saved: ") + error.message + ".";
    if (byId("problem").hidden) {
      byId("problem").hidden = false;
      byId("again").focus();
    }
    return;
  }
  byId("problem").hidden = true;
  kept(received);
}

function answer(group, value) {
  if (busy || !state.item) return;
  const question = group.dataset.question;
  leaving = groups.every((one) => one === group || one.dataset.question in state.item.answers);
  mark(group, value);
  attempt("answer", { item: state.item.number, question, value }, (received) => {
    byId("saved").textContent = "Saved";
    const moved = !received.item || received.item.number !== state.item.number;
    setTimeout(() => show(received, moved), moved ? PAUSE : 0);
  });
}

function undo() {
  if (busy || state.last === null) return;
  attempt("undo", { answer: state.last }, (received) => {
    byId("saved").textContent = "Taken back";
    show(received, !state.item || received.item.number !== state.item.number);
  });
}

function mark(group, value) {
  for (const button of group.querySelectorAll("[data-value]"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.value) === value));
}

function text(element, content) {
  element.textContent = content.trim() ? content : "(nothing was written)";
  element.classList.toggle("empty", !content.trim());
}

function show(received, moved) {
  state = received;
  busy = leaving = false;
  const { item, done, total } = state;
  byId("progress").max = total;
  byId("progress").value = done;
  byId("count").textContent = item ? `${done + 1} of ${total}` : `${total} of ${total}`;
  byId("undo").disabled = state.last === null;
  byId("main").hidden = !item;
  byId("finished").hidden = Boolean(item);
  if (!item) {
    byId("thanks").focus();
    return;
  }
  text(byId("prompt"), item.prompt);
  item.responses.forEach((response, side) => text(byId(`response-${side}`), response));
  for (const group of groups) mark(group, item.answers[group.dataset.question]);
  const open = groups.findIndex((group) => !(group.dataset.question in item.answers));
  activate(open < 0 ? groups.length - 1 : open);
  if (!moved) {
    while (typed.length && !busy) press(typed.shift());
    return;
  }
  typed = [];
  byId("heading").textContent = `Item ${done + 1} of ${total}`;
  byId("heading").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function activate(number) {
  active = number;
  groups.forEach((group, place) => group.classList.toggle("active", place === active));
}

for (const group of groups) {
  for (const button of group.querySelectorAll("[data-value]"))
    button.addEventListener("click", () => answer(group, Number(button.dataset.value)));
}
byId("undo").addEventListener("click", undo);
byId("again").addEventListener("click", () => failed && failed());

function press(key) {
  if (key === "u" || key === "backspace") undo();
  else if (Object.hasOwn(VALUES, key)) answer(groups[active], VALUES[key]);
  else activate(groups.findIndex((group) => group.dataset.key === key));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !byId("keys").checked) return;
  const key = event.key.length === 1 || event.key === "Backspace" ? event.key.toLowerCase() : event.key;
  const known = ["u", "backspace", ...Object.keys(VALUES), ...groups.map((group) => group.dataset.key)];
  if (!known.includes(key)) return;
  event.preventDefault();
  if (!busy) press(key);
  else if (!failed && !leaving) typed.push(key); // for what is in sight; the next item was not seen yet
});

window.addEventListener("beforeunload", (event) => {
  if (failed || (busy && state)) event.preventDefault();
});
// A server that was stopped comes back: what is not saved is sent as soon as it does.
setInterval(() => failed && failed(), 5000);

attempt("state", undefined, (received) => show(received, true));
