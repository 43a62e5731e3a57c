"use strict";
// The page of tools/gallery.py. REPORT comes from data.js. Names of files and methods reach the page as text
// (textContent, alt), never as HTML.

const {sources, pairs, title = "", metrics = [], means = []} = REPORT;
const FIRST_METHOD = 2;             // sources 0 and 1 are infrared and visible
const LARGEST = 40;                 // largest zoom; 1 fits the image into the stage
const BLINK = 500;                  // milliseconds; two changes per second are safe for photosensitive people
const SETTLED = 200;                // milliseconds; browsers limit how often the address changes, a held key does not

const $ = id => document.getElementById(id);
const stage = $("stage"), screen_ = $("screen");

const state = {
  pair: 0, left: 0, right: Math.min(FIRST_METHOD, sources.length - 1),
  grid: false, blinking: false, table: "this", method: "",
};
const view = {x: 0, y: 0, scale: 1};        // the image's corner in pane sizes, and zoom: the same in all panes
let listed = pairs.map((_, index) => index);        // the pairs that pass the filter

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const address = (pair, source) => `images/${sources[source].folder}/${pair.file}.png`;

// ------------------------------------------------------------------------------------------------
// Images

let painted = 0, asked = 0;
let shown = pairs[0];               // the pair whose images are on the screen
let ahead = [];

function pane(pair, source, side) {
  const {label} = sources[source], caption = element("figcaption", {textContent: label});
  if (!pair.shown.includes(source)) return element("figure", {className: `pane ${side} missing`}, caption);
  const image = element("img", {alt: `${label}, ${pair.name}`, src: address(pair, source), draggable: false});
  return element("figure", {className: `pane ${side}`}, image, caption);
}

/** Show the images of the state. The old ones stay until the new ones are decoded, so nothing flashes. */
async function paint() {
  const number = ++asked, pair = pairs[state.pair];
  const panes = state.grid ? pair.shown.map(source => pane(pair, source, ""))
    : [pane(pair, state.left, "left"), pane(pair, state.right, "right")];
  const images = panes.map(box => box.querySelector("img")).filter(Boolean);
  await Promise.allSettled(images.map(image => image.decode()));
  if (number < painted) return;     // a later call has already painted
  painted = number;
  shown = pair;
  screen_.replaceChildren(...panes);
  stage.classList.toggle("grid", state.grid);
  arrange();
  if (number === asked) fetchAhead();
}

/** The images that the next key may ask for. */
function fetchAhead() {
  const pair = pairs[state.pair], next = neighbours().filter(index => index !== undefined).map(index => pairs[index]);
  const sides = [state.left, state.right];
  const wanted = [...pair.shown.map(source => [pair, source]),
    ...next.flatMap(other => sides.filter(side => other.shown.includes(side)).map(side => [other, side]))];
  ahead = wanted.map(([other, source]) => element("img", {src: address(other, source)}));
}

/** Columns of the side-by-side view that make the images largest, then the zoom for the new sizes. */
function arrange() {
  const {width, height} = shown, count = screen_.children.length;
  let best = 0;
  for (let columns = 1; state.grid && columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const size = Math.min(stage.clientWidth / columns / width, stage.clientHeight / rows / height);
    if (size > best) {
      best = size;
      screen_.style.gridTemplate = `repeat(${rows}, minmax(0, 1fr)) / repeat(${columns}, minmax(0, 1fr))`;
    }
  }
  zoom(1);      // the limits depend on the sizes
}

// ------------------------------------------------------------------------------------------------
// Zoom and pan

/** Size of a pane in pixels of the screen. A CSS pixel can be several of them. */
function paneSize() {
  const box = screen_.firstElementChild ?? stage;
  return {across: box.clientWidth * devicePixelRatio, down: box.clientHeight * devicePixelRatio};
}

/** Screen pixels for each image pixel at zoom 1. */
function fitted() {
  const {across, down} = paneSize(), {width, height} = shown;
  return Math.min(across / width, down / height);
}

/** Lay out the images. They begin at whole screen pixels, because browsers blur what begins between two. */
function transform(size) {
  const {across, down} = paneSize(), {width, height} = shown;
  const left = Math.round(across * (view.x + view.scale / 2) - size * width / 2);
  const top = Math.round(down * (view.y + view.scale / 2) - size * height / 2);
  const css = pixels => `${pixels / devicePixelRatio}px`;
  stage.style.setProperty("--move", `translate(${css(left)}, ${css(top)}) scale(${size / devicePixelRatio})`);
}

/** Pan. An image smaller than its pane stays in the middle. */
function move(dx = 0, dy = 0) {
  const middle = (1 - view.scale) / 2, room = Math.max(-middle, 0);
  view.x = clamp(view.x + dx, middle - room, middle + room);
  view.y = clamp(view.y + dy, middle - room, middle + room);
  const size = fitted() * view.scale;
  transform(size);
  stage.classList.toggle("zoomed", view.scale > 1);
  stage.classList.toggle("pixels", size >= 3);
  $("actual").textContent = `${Math.round(100 * size)} %`;
}

/** Zoom and keep the image point at (x, y) in place. x and y are in units of the pane size. */
function zoomTo(wanted, x = 0.5, y = 0.5) {
  const scale = clamp(wanted, Math.min(1, 1 / fitted()), LARGEST), change = scale / view.scale;
  view.scale = scale;
  move((x - view.x) * (1 - change), (y - view.y) * (1 - change));
}

const zoom = (factor, x, y) => zoomTo(view.scale * factor, x, y);

/** Position of an event in a pane, in units of the pane size. A pressed pointer belongs to the pane of its press. */
function place(event, box) {
  return {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height};
}

/** The event's target is not used: it is the stage after the stage has captured a pointer. */
function boxOf({clientX, clientY}) {
  return (document.elementFromPoint(clientX, clientY)?.closest(".pane") ?? stage).getBoundingClientRect();
}

const pressed = new Map();          // pressed pointers: position, and the box of their pane

function gesture() {
  const points = [...pressed.values()];
  const x = points.reduce((sum, point) => sum + point.x, 0) / points.length;
  const y = points.reduce((sum, point) => sum + point.y, 0) / points.length;
  return {x, y, spread: points.reduce((sum, point) => sum + Math.hypot(point.x - x, point.y - y), 0)};
}

function listenToPointers() {
  stage.addEventListener("pointerdown", event => {
    if (event.button || event.target === $("divider")) return;
    const box = boxOf(event);
    pressed.set(event.pointerId, {...place(event, box), box});
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", event => {
    const point = pressed.get(event.pointerId);
    if (!point) return;
    const before = gesture();
    Object.assign(point, place(event, point.box));
    const after = gesture();
    zoom(before.spread ? after.spread / before.spread : 1, before.x, before.y);
    move(after.x - before.x, after.y - before.y);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, event => pressed.delete(event.pointerId));
  }
  stage.addEventListener("wheel", event => {
    event.preventDefault();
    const {x, y} = place(event, boxOf(event));
    zoom(2 ** (-event.deltaY * (event.deltaMode ? 20 : 1) / 250), x, y);
  }, {passive: false});
  stage.addEventListener("dblclick", event => {
    const {x, y} = place(event, boxOf(event));
    zoomTo(view.scale > 1 ? 1 : 4, x, y);
  });
  new ResizeObserver(arrange).observe(stage);
}

// ------------------------------------------------------------------------------------------------
// Divider and blinking

let timer = 0, blinkRight = false;

function cut() {
  const percent = state.blinking ? (blinkRight ? 0 : 100) : $("divider").value;
  stage.style.setProperty("--cut", `${percent}%`);
  $("divider").ariaValueText = `${Math.round(percent)} % ${sources[state.left].label}`;
}

function setBlinking(on) {
  clearInterval(timer);
  state.blinking = on && !state.grid;
  if (state.blinking) {
    timer = setInterval(() => { blinkRight = !blinkRight; cut(); }, BLINK);
  }
  stage.classList.toggle("blinking", state.blinking);
  cut();
}

// ------------------------------------------------------------------------------------------------
// Tables

const ROW = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--row"));
const SPARE = 12;                   // rows drawn above and below those in sight

function write(value, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value === "string") return value;
  return Number.isFinite(value) ? value.toFixed(digits) : value > 0 ? "∞" : "−∞";
}

/** A sortable table. Only the visible rows are in the document.
 * columns: {title, text, digits, lower, wide}; rows: {cells, marks, pair, source}, where a click on it leads. */
class Table {
  constructor(box, columns) {
    Object.assign(this, {box, columns, rows: [], drawn: new Map(), column: -1, descending: false});
    this.heads = columns.map((column, index) => {
      const arrow = column.metric ? (column.lower ? " ↓" : " ↑") : "";
      const button = element("button", {textContent: column.title + arrow, onclick: () => this.choose(index),
        title: column.metric ? `${column.title}: ${column.lower ? "lower" : "higher"} is better. Sort` : "Sort"});
      return element("th", {scope: "col", className: column.text ? "text" : ""}, button);
    });
    this.above = element("tbody", {className: "space"});
    this.body = element("tbody");
    this.below = element("tbody", {className: "space"});
    const widths = element("colgroup", {}, ...columns.map(column => {
      const col = element("col");
      col.style.width = `${column.wide}px`;
      return col;
    }));
    this.table = element("table", {}, widths, element("thead", {}, element("tr", {}, ...this.heads)),
      this.above, this.body, this.below);
    this.table.style.minWidth = `${columns.reduce((sum, column) => sum + column.wide, 0)}px`;
    box.append(this.table);
    box.addEventListener("scroll", () => this.draw(), {passive: true});
    new ResizeObserver(() => this.draw()).observe(box);
  }

  fill(rows) {
    this.natural = rows;
    this.sort();
  }

  /** Sort by a column, the best first; again: the worst first; again: as before. */
  choose(index) {
    const first = Boolean(this.columns[index].metric) && !this.columns[index].lower;
    if (this.column !== index) {
      Object.assign(this, {column: index, descending: first});
    } else if (this.descending === first) {
      this.descending = !first;
    } else {
      this.column = -1;
    }
    this.box.scrollTop = 0;
    this.sort();
  }

  sort() {
    const {column, descending} = this;
    this.rows = [...this.natural];
    if (column >= 0) this.rows.sort((a, b) => compare(a.cells[column], b.cells[column], descending));
    this.heads.forEach((head, index) => {
      head.ariaSort = index === column ? (descending ? "descending" : "ascending") : null;
    });
    this.table.ariaRowCount = this.rows.length + 1;
    this.body.replaceChildren();
    this.drawn.clear();
    this.draw();
  }

  draw() {
    const count = this.rows.length;
    const first = clamp(Math.floor(this.box.scrollTop / ROW) - SPARE, 0, count);
    const last = Math.min(count, first + Math.ceil(this.box.clientHeight / ROW) + 2 * SPARE);
    // Rows that stay visible are not replaced, because one of them may have the focus.
    for (const [index, row] of this.drawn) {
      if (index < first || index >= last) {
        row.remove();
        this.drawn.delete(index);
      }
    }
    let next = null;
    for (let index = last - 1; index >= first; index--) {
      let row = this.drawn.get(index);
      if (!row) {
        row = this.row(index);
        this.drawn.set(index, row);
        this.body.insertBefore(row, next);
      }
      next = row;
    }
    space(this.above, first);
    space(this.below, count - last);
    this.highlight();
  }

  row(index) {
    const {cells, marks, pair, source} = this.rows[index];
    const href = linkTo(pair, {right: sources[source].label});
    const link = element("a", {href, textContent: cells[0], title: cells[0]});
    const head = element("th", {scope: "row", className: "text"}, link);
    const rest = this.columns.map(({text, digits}, column) => element("td",
      {className: text ? "text" : marks[column] ?? "", textContent: write(cells[column], digits)})).slice(1);
    const row = element("tr", {ariaRowIndex: index + 2}, head, ...rest);
    Object.assign(row.dataset, {pair, source});
    return row;
  }

  highlight() {
    for (const row of this.body.rows) {
      const here = +row.dataset.source === state.right && +row.dataset.pair === state.pair;
      row.ariaCurrent = here && !state.grid ? "true" : null;
    }
  }
}

function space(body, rows) {
  const cell = element("td");
  cell.style.height = `${rows * ROW}px`;
  body.replaceChildren(...(rows ? [element("tr", {ariaHidden: "true"}, cell)] : []));
}

const collator = new Intl.Collator(undefined, {numeric: true});     // 2 before 10

/** Missing values come last in both directions. */
function compare(a, b, descending) {
  const missing = value => value === null || Number.isNaN(value);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const order = typeof a === "string" ? collator.compare(a, b) : a === b ? 0 : a - b;
  return descending ? -order : order;
}

/** Mark the best and the second best value of each metric. `takes(row, index)` tells whether a cell takes part. */
function mark(rows, columns, takes = () => true) {
  columns.forEach((column, index) => {
    if (!column.metric) return;
    const taking = rows.filter(row => takes(row, index));
    if (rows.length < 2) return;
    const values = [...new Set(taking.map(row => row.cells[index]).filter(value => !Number.isNaN(value)))];
    values.sort((a, b) => column.lower ? a - b : b - a);
    for (const row of taking) {
      const rank = values.indexOf(row.cells[index]);
      row.marks[index] = rank === 0 ? "best" : rank === 1 ? "second" : "";
    }
  });
  return rows;
}

const names = {
  image: {title: "image", text: true, wide: 140},
  method: {title: "method", text: true, wide: 110},
  images: {title: "images", digits: 0, wide: 70},
  rank: {title: "RoR", digits: 0, wide: 60},
};
const scored = metrics.map((metric, index) => {
  const small = means.length && means.every(row => !(Math.abs(row.values[index]) >= 0.1));
  const wide = Math.max(72, 9 * metric.name.length + 40);
  return {title: metric.name, lower: metric.lower, metric: true, digits: small ? 4 : 3, wide};
});
const columnsOf = {
  this: [names.method, ...scored],
  mean: [names.method, ...scored, names.images, names.rank],
  each: [names.image, names.method, ...scored],
};
const tables = {};

/** Rows of one pair: the method and its values, after the cells in `first`. */
function rowsOfPair(index, columns, ...first) {
  const rows = pairs[index].scores.map((values, method) => ({values, source: method + FIRST_METHOD}));
  return mark(rows.filter(({values}) => values).map(({values, source}) => (
    {cells: [...first, sources[source].label, ...values], marks: [], pair: index, source})), columns);
}

/** As in metrics.py, a mean over fewer images than others is not marked, because its images may be easier. */
function rowsOfMeans() {
  const most = metrics.map((_, index) => Math.max(...means.map(row => row.counts[index])));
  const rows = means.map(({source, images, counts, values, rank}) => (
    {cells: [sources[source].label, ...values, images, rank], marks: [], pair: state.pair, source, counts}));
  return mark(rows, columnsOf.mean, (row, index) => row.counts[index - 1] === most[index - 1]);   // cell 0: the method
}

function fillTables() {
  tables.this.fill(rowsOfPair(state.pair, columnsOf.this));
  tables.mean.fill(rowsOfMeans());
}

function fillEach() {
  const rows = listed.flatMap(index => rowsOfPair(index, columnsOf.each, pairs[index].name));
  tables.each.fill(rows.filter(row => state.method === "" || row.source === +state.method));
}

// ------------------------------------------------------------------------------------------------
// Which pair and images

const links = [];

/** #name, or #name?left=label&right=label. All names are encoded. */
function linkTo(index, labels) {
  const query = labels ? `?${new URLSearchParams(labels)}` : "";
  return `#${encodeURIComponent(pairs[index].name)}${query}`;
}

function neighbours() {
  return [listed.findLast(index => index < state.pair), listed.find(index => index > state.pair)];
}

/** Follow the address, see linkTo. A side that it does not give stays as it is. */
function follow() {
  let [, name, query] = /^#?(.*?)(?:\?((?:left|right)=.*))?$/.exec(location.hash);
  try {
    name = decodeURIComponent(name);
  } catch {
    // The address is not percent-encoded, so it is used unchanged.
  }
  const index = pairs.findIndex(pair => pair.name === name), changes = {pair: Math.max(index, 0)};
  let problem = name && index < 0 ? `No pair is named ${name}` : "";
  for (const [side, wanted] of new URLSearchParams(query)) {
    if (side !== "left" && side !== "right") continue;
    const source = sources.findIndex(({label}) => label === wanted);
    if (source < 0) problem ||= `No image is named ${wanted}`;
    else Object.assign(changes, {[side]: source, grid: false});
  }
  update(changes);
  if (!problem) return;
  clearTimeout(writing);            // the address stays as it was given
  writing = 0;
  $("status").textContent = problem;
}

let writing = 0;

/** Put what is shown into the address. It adds no entry to the browser's history. */
function writeAddress() {
  const [left, right] = [state.left, state.right].map(source => sources[source].label);
  clearTimeout(writing);
  writing = setTimeout(() => {
    writing = 0;
    history.replaceState(null, "", linkTo(state.pair, {left, right}));
  }, SETTLED);
}

function step(direction) {
  const index = neighbours()[direction > 0 ? 1 : 0];
  if (index !== undefined) update({pair: index});
}

function filter() {
  const wanted = $("filter").value.trim().toLowerCase();
  listed = pairs.flatMap((pair, index) => pair.name.toLowerCase().includes(wanted) ? [index] : []);
  const passing = new Set(listed);
  links.forEach((link, index) => { link.parentElement.hidden = !passing.has(index); });
  fillEach();
}

// ------------------------------------------------------------------------------------------------
// State, buttons, keys

/** Change the state and update the page. */
function update(changes) {
  const before = {...state};
  Object.assign(state, changes);
  const pair = pairs[state.pair];
  if (state.pair !== before.pair || !tables.this.natural) {
    links[before.pair].ariaCurrent = null;
    links[state.pair].ariaCurrent = "true";
    links[state.pair].scrollIntoView({block: "nearest", inline: "nearest"});
    fillTables();
  }
  if (state.method !== before.method) fillEach();
  writeAddress();
  document.title = `${pair.name} – image fusion gallery`;
  $("status").textContent = `${pair.name} · ${pair.width} × ${pair.height} · ${state.pair + 1} of ${pairs.length}`;
  $("left").value = state.left;
  $("right").value = state.right;
  for (const side of ["left", "right", "swap", "blink"]) $(side).disabled = state.grid;
  setBlinking(state.blinking);
  $("blink").ariaPressed = state.blinking;
  $("grid").ariaPressed = state.grid;
  for (const [name, table] of Object.entries(tables)) {
    $(name).hidden = name !== state.table;
    table.highlight();
  }
  for (const button of document.querySelectorAll("[data-table]")) {
    button.ariaPressed = button.dataset.table === state.table;
  }
  $("method").hidden = state.table !== "each";
  if (!asked || ["pair", "left", "right", "grid"].some(name => state[name] !== before[name])) paint();
}

const swap = () => update({left: state.right, right: state.left});
const toggle = name => update({[name]: !state[name]});

const keys = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  x: swap, b: () => toggle("blinking"), g: () => toggle("grid"),
  "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoomTo(1),
  "/": () => $("filter").focus(), "?": () => $("help").toggleAttribute("open"),
};

let byPointer = false;              // whether the last press was of a pointer, not of a key

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Shift") return;
  const {target} = event, arrow = event.key.startsWith("Arrow");
  const pointed = byPointer && target.matches("select");      // such a menu leaves the keys to the viewer
  byPointer = false;
  const typing = target.matches("input[type=search]") || (target.matches("select") && !arrow && !pointed);
  if (typing || (target === $("divider") && arrow)) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];    // Shift changes event.key
  if (digit) {
    if (digit <= sources.length) update({[event.shiftKey ? "left" : "right"]: digit - 1, grid: false});
  } else if (!Object.hasOwn(keys, key)) {
    return;
  } else if (!event.repeat || arrow) {      // holding a key must not make the image flash
    keys[key]();
  }
  if (pointed) target.blur();
  event.preventDefault();
}

function listen() {
  $("left").onchange = event => update({left: +event.target.value});
  $("right").onchange = event => update({right: +event.target.value});
  $("method").onchange = event => update({method: event.target.value});
  $("swap").onclick = swap;
  $("blink").onclick = () => toggle("blinking");
  $("grid").onclick = () => toggle("grid");
  $("in").onclick = () => zoom(1.5);
  $("out").onclick = () => zoom(1 / 1.5);
  $("fit").onclick = () => zoomTo(1);
  $("actual").onclick = () => zoomTo(1 / fitted());
  $("divider").oninput = cut;
  $("divider").onpointerup = () => $("divider").blur();       // so that the arrow keys change the pair again
  $("filter").oninput = filter;
  for (const button of document.querySelectorAll("[data-table]")) {
    button.onclick = () => update({table: button.dataset.table});
  }
  listenToPointers();
  document.addEventListener("pointerdown", () => { byPointer = true; }, true);
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", follow);
}

function start() {
  const labels = sources.map(source => source.label);
  $("about").textContent = `${pairs.length} pairs · ${labels.slice(FIRST_METHOD).join(", ")}`;
  $("protocol").textContent = `${title} · bold: best, underlined: second`;
  for (const side of ["left", "right"]) {
    $(side).append(...labels.map((label, index) => new Option(`${index + 1}  ${label}`, index)));
  }
  $("method").append(new Option("all methods", ""),
    ...labels.slice(FIRST_METHOD).map((label, index) => new Option(label, index + FIRST_METHOD)));
  for (const [index, pair] of pairs.entries()) {
    const image = element("img", {loading: "lazy", decoding: "async", alt: "", src: `thumbs/${pair.file}.jpg`});
    links.push(element("a", {href: linkTo(index), title: pair.name}, image, element("span", {textContent: pair.name})));
  }
  $("pairs").append(...links.map(link => element("li", {}, link)));
  for (const [name, columns] of Object.entries(columnsOf)) tables[name] = new Table($(name), columns);
  fillEach();
  listen();
  follow();
}

if (pairs.length && pairs[0].shown) {
  start();
} else {
  $("about").textContent = "No pair could be shown; run tools/gallery.py again.";
}
