// Follows a run: asks for its state every two seconds, and shows a new report when there is one.
// Everything that comes from the study is set as text, never as HTML.
"use strict";
const POLL_MS = 2000;
const STEADY_MS = 300;
const GIVE_UP_AFTER = 3; // unanswered questions in a row
const at = (id) => document.getElementById(id);
const reports = at("report");
const SCROLL = "scroll of " + location.pathname;
let shown = ""; // tag of the report that is shown or being loaded
let unanswered = 0;

function made(name, text, className) {
  const node = document.createElement(name);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

function bar(done, label) {
  const node = made("progress", "");
  node.max = 1;
  node.value = done;
  node.setAttribute("aria-label", label);
  return node;
}

function fill(list, section, nodes) {
  at(list).replaceChildren(...nodes);
  at(section).hidden = nodes.length === 0;
}

function step(one) {
  const node = made("li", "");
  node.append(bar(one.done, "Share of this step"), " ", made("bdi", one.what), " ", made("span", one.message, "soft"));
  return node;
}

function cell(name, text, className) {
  const node = made("td", text, className);
  node.dataset.name = name;
  return node;
}

function row(one) {
  const node = made("tr", "");
  const name = made("th", "");
  name.scope = "row";
  name.append(made("bdi", one.name));
  const count = cell("trainings", one.trained + " of " + one.of, one.trained === one.of ? "number whole" : "number");
  const known = cell("validation", one.validation.length ? "" : "–");
  for (const seed of one.validation) known.append(made("span", seed, "seed"), " ");
  const test = cell("test", one.test || "–");
  if (one.alarm) test.append(made("span", " alarm: " + one.alarm, "mark"));
  node.append(name, count, known, test);
  return node;
}

const PHASES = {
  preparing: "Preparing: data and weights are fetched, images decoded.",
  running: "Running.",
  lost: "The run has been stopped, or cannot be reached. What is finished is kept; the same command goes on with it. " +
    "Below is the last that was heard.",
};

function phase(name, text) {
  if (document.body.dataset.phase === name) return; // a status that is set again is read out again
  document.body.dataset.phase = name;
  at("phase").textContent = text || PHASES[name];
}

function show(state) {
  const share = Math.round(100 * state.fraction) + " %";
  document.title = (state.phase === "finished" ? "finished" : share) + " – " + state.study + " – regraft run";
  at("study").textContent = state.study;
  at("question").textContent = state.question || state.study;
  at("headline").textContent = state.headline;
  at("fraction").value = state.fraction;
  at("percent").textContent = share;
  const more = state.more ? [made("li", "and " + state.more + " more steps", "soft")] : [];
  fill("steps", "now", [...state.steps.map(step), ...more]);
  fill("lines", "said", state.lines.map((line) => {
    const node = made("li", line);
    node.dir = "auto";
    return node;
  }));
  fill("row-lines", "rows", state.rows.map(row));
  const over = state.phase === "finished";
  phase(state.phase, over ? "Finished. The report below is written to " + state.written + "; this page stays as it is." : "");
  if (over) at("tools").hidden = true;
  if (state.report && state.report !== shown && (over || !at("hold").checked)) showReport(state.report, over);
}

// The new report is loaded unseen and takes the old one's place once its height is steady: the page does not jump.
function showReport(tag, over) {
  shown = tag;
  const old = reports.querySelector("iframe.shown");
  for (const other of reports.querySelectorAll("iframe:not(.shown)")) other.remove();
  const next = made("iframe", "");
  next.title = over ? "Report" : "Report so far";
  next.src = "report?" + tag;
  next.addEventListener("load", () => {
    const inner = next.contentDocument;
    if (!inner || !inner.querySelector("main")) { // not the report: try again at the next state
      next.remove();
      shown = "";
      return;
    }
    if (old) keepOpen(old.contentDocument, inner);
    let steady = setTimeout(take, STEADY_MS);
    function take() {
      next.classList.add("shown");
      if (old) old.remove();
      else scrollTo(0, Number(sessionStorage.getItem(SCROLL) || 0));
      at("tools").hidden = over;
    }
    new ResizeObserver(() => {
      next.style.height = inner.documentElement.getBoundingClientRect().height + "px";
      if (next.classList.contains("shown")) return;
      clearTimeout(steady);
      steady = setTimeout(take, STEADY_MS);
    }).observe(inner.documentElement);
  });
  reports.append(next);
}

// What a reader has unfolded stays unfolded. Of details with the same title, the first is the first again.
function keepOpen(before, after) {
  const named = (inner) => {
    const times = new Map();
    return [...inner.querySelectorAll("details")].map((details) => {
      const title = details.firstElementChild.textContent.replace(/\d+/g, "");
      times.set(title, (times.get(title) || 0) + 1);
      return [title + times.get(title), details];
    });
  };
  const open = new Set(named(before).filter(([, details]) => details.open).map(([name]) => name));
  for (const [name, details] of named(after)) if (open.has(name)) details.open = true;
}

async function poll() {
  let next = POLL_MS;
  try {
    const answer = await fetch("state");
    if (!answer.ok) throw new Error(answer.status);
    const state = await answer.json();
    unanswered = 0;
    show(state);
    if (state.phase === "finished") return;
  } catch {
    unanswered += 1;
    if (unanswered >= GIVE_UP_AFTER) {
      phase("lost");
      next = 5 * POLL_MS;
    }
  }
  setTimeout(poll, next);
}

history.scrollRestoration = "manual"; // the browser would restore it before the report is there
addEventListener("pagehide", () => sessionStorage.setItem(SCROLL, String(scrollY)));
poll();
