"use strict";
// Tables sort by a click or a key on a column's head: rising, falling, as written. Long ones can be searched.
const FILTER_FROM = 13; // rows
const inWords = new Intl.Collator(undefined, {numeric: true}).compare;

function compared(column, number) {
  const key = (row) => {
    const cell = row.cells[column];
    return number ? parseFloat((cell.dataset.value ?? cell.textContent).replaceAll(",", "")) : cell.textContent.trim();
  };
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!number) return inWords(x, y);
    return Number.isNaN(x) || Number.isNaN(y) ? NaN : x - y;
  };
}

function sorted(rows, column, number, direction) {
  const order = compared(column, number);
  const known = (row) => !Number.isNaN(order(row, row));
  const ranked = rows.filter(known).sort((a, b) => direction * order(a, b));
  return [...ranked, ...rows.filter((row) => !known(row))]; // what has no number comes last either way
}

function makeSortable(table, say) {
  const body = table.tBodies[0], written = [...body.rows], heads = [...table.tHead.rows[0].cells];
  table.classList.add("sortable");
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    const small = head.querySelector(".small");
    button.append(...[...head.childNodes].filter((node) => node !== small));
    head.prepend(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const next = before === null ? "ascending" : before === "ascending" ? "descending" : null;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const number = head.classList.contains("number");
      body.append(...(next ? sorted(written, column, number, next === "ascending" ? 1 : -1) : written));
      say(next ? `sorted by ${button.textContent.trim()}, ${next}` : "in the order of the study");
    });
  });
}

function makeSearchable(table, say, tools) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < FILTER_FROM) return;
  const label = document.createElement("label"), input = document.createElement("input");
  input.type = "search";
  label.append("Rows with ", input);
  tools.prepend(label);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    say(wanted ? `${shown} of ${rows.length} rows` : "");
  });
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const tools = document.createElement("div"), status = document.createElement("span");
  tools.className = "tools";
  status.className = "soft";
  status.setAttribute("role", "status");
  tools.append(status);
  (table.closest(".scroll") ?? table).before(tools);
  const say = (text) => { status.textContent = text; };
  makeSortable(table, say);
  makeSearchable(table, say, tools);
}

// The part of the page that is being read is marked in the contents.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const watch = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) target.toggleAttribute("data-seen", isIntersecting);
  const first = [...links.keys()].find((id) => document.getElementById(id)?.hasAttribute("data-seen"));
  for (const [id, link] of links) {
    if (id === first) link.setAttribute("aria-current", "location");
    else link.removeAttribute("aria-current");
  }
}, {rootMargin: "-15% 0px -60% 0px"});
for (const id of links.keys()) {
  const part = document.getElementById(id);
  if (part) watch.observe(part);
}

// Paper has nothing to open: details that are worth it are opened for it.
const closed = () => [...document.querySelectorAll("details[data-print]:not([open])")];
let opened = [];
addEventListener("beforeprint", () => { opened = closed(); opened.forEach((part) => { part.open = true; }); });
addEventListener("afterprint", () => { opened.forEach((part) => { part.open = false; }); });
