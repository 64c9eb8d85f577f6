"use strict";

/**
 * The live table. Only rows that can be seen are elements: each update touches those, however many streams there are.
 *
 * The grid itself has the focus and names the chosen row by `aria-activedescendant`, so that rows may come and go under
 * it. `on` has `sort(name, order)`, `open(row)` and `stop(row)`.
 */
class Grid {
  // Name, title, sort, kind, and what a row shows.
  static COLUMNS = [
    ["user", "User", "user", "", (row) => row.user],
    ["plan", "Plan", "plan", "", (row) => row.plan],
    ["upstream", "Upstream", "upstream", "", (row) => row.upstream],
    ["model", "Model", "model", "", (row) => row.model],
    ["phase", "Phase", "phase", "", (row) => Grid.PHASES[row.phase] ?? row.phase],
    ["age", "Age", "age", "number", (row, now) => words.age(now - row.started_ms)],
    ["first", "First byte", "first_byte", "number", (row) => words.milliseconds(row.first_byte_ms)],
    ["rate", "Events/s", "rate", "number", (row) => words.rate(row.events_per_s)],
    ["bytes", "Bytes", "bytes", "number", (row) => words.bytes(row.bytes)],
    ["tokens", "Tokens", "tokens", "number", (row) => Grid.tokens(row)],
    ["cost", "Cost", "cost", "number", (row) => words.usd(row.cost_usd)],
    ["tries", "Tries", "attempts", "number", (row) => words.number(row.attempts)],
  ];
  static PHASES = {
    receiving: "Receiving", connecting: "Connecting", waiting: "Waiting",
    streaming: "Streaming", paused: "Paused", ending: "Ending",
  };
  static #FIELDS = {
    user: "user", plan: "plan", upstream: "upstream", model: "model", phase: "phase", age: "started_ms",
    first_byte: "first_byte_ms", rate: "events_per_s", bytes: "bytes", tokens: "tokens_out", cost: "cost_usd", attempts: "attempts",
  };
  // Rows above and below what can be seen.
  static #MARGIN = 4;

  #element;
  #body;
  #on;
  #order = [];
  #rows = new Map();
  #pool = [];
  #chosen = null;
  #chosenAt = 0;
  #rowHeight = 38;
  #now = 0;

  constructor(element, head, body, on) {
    this.#element = element;
    this.#body = body;
    this.#on = on;
    this.sort = "age";
    this.direction = "desc";
    this.#makeHead(head);
    element.addEventListener("scroll", () => this.#paint(), {passive: true});
    element.addEventListener("keydown", (event) => this.#key(event));
    body.addEventListener("click", (event) => this.#click(event));
    element.setAttribute("aria-colcount", String(Grid.COLUMNS.length + 1));
    new ResizeObserver(() => this.#measure()).observe(element);
  }

  /** Tokens so far; those that the vendor has not told yet are estimated. */
  static tokens(row) {
    if (row.usage === "none") return words.UNKNOWN;
    return `${row.usage === "estimated" ? "~" : ""}${words.compact(row.tokens_in)} → ${words.compact(row.tokens_out)}`;
  }

  get chosen() {
    return this.#rows.get(this.#chosen) ?? null;
  }

  /** Show these rows. While the pointer is over them they keep their places: nobody stops a stream that slipped there. */
  show(rows, now) {
    this.#rows = rows;
    this.#now = now;
    const sorted = [...rows.values()].sort(this.#compare()).map((row) => row.key);
    if (this.#body.matches(":hover")) {
      const kept = this.#order.filter((key) => rows.has(key));
      const known = new Set(kept);
      this.#order = [...kept, ...sorted.filter((key) => !known.has(key))];
    } else {
      this.#order = sorted;
    }
    if (this.#chosen !== null && !rows.has(this.#chosen)) {
      this.#chosen = this.#order[Math.min(this.#chosenAt, this.#order.length - 1)] ?? null;
    }
    this.#element.setAttribute("aria-rowcount", String(this.#order.length + 1));
    this.#body.style.height = `${this.#order.length * this.#rowHeight}px`;
    this.#paint();
  }

  /** Sort by another column. */
  setSort(sort, direction) {
    this.sort = sort;
    this.direction = direction;
    for (const cell of this.#element.querySelectorAll("[data-sort]")) {
      const isOwn = cell.dataset.sort === sort;
      cell.setAttribute("aria-sort", isOwn ? (direction === "asc" ? "ascending" : "descending") : "none");
    }
  }

  #compare() {
    const field = Grid.#FIELDS[this.sort];
    const isDescending = (this.direction === "desc") !== (this.sort === "age");
    const sign = isDescending ? -1 : 1;
    const isNumber = this.sort === "cost";
    return (a, b) => {
      const left = isNumber && a[field] !== null ? Number(a[field]) : a[field];
      const right = isNumber && b[field] !== null ? Number(b[field]) : b[field];
      if (left !== right) {
        if (left === null) return 1;
        if (right === null) return -1;
        return left < right ? -sign : sign;
      }
      return a.started_ms - b.started_ms || (a.key < b.key ? -1 : 1);
    };
  }

  #makeHead(head) {
    for (const [name, title, sort, kind] of Grid.COLUMNS) {
      const cell = document.createElement("div");
      cell.setAttribute("role", "columnheader");
      cell.className = `${name} ${kind}`;
      cell.dataset.sort = sort;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = title;
      button.addEventListener("click", () => {
        const isText = kind === "";
        const direction = this.sort !== sort ? (isText ? "asc" : "desc") : this.direction === "asc" ? "desc" : "asc";
        this.#on.sort(sort, direction);
      });
      cell.append(button);
      head.append(cell);
    }
    const last = document.createElement("div");
    last.setAttribute("role", "columnheader");
    last.setAttribute("aria-label", "Stop");
    head.append(last);
    head.setAttribute("aria-rowindex", "1");
  }

  #makeRow(index) {
    const row = document.createElement("div");
    row.className = "row";
    row.id = `row-${index}`;
    row.setAttribute("role", "row");
    const cells = Grid.COLUMNS.map(([name, , , kind]) => {
      const cell = document.createElement("div");
      cell.setAttribute("role", "gridcell");
      cell.className = `${name} ${kind}`;
      row.append(cell);
      return cell;
    });
    const act = document.createElement("div");
    act.setAttribute("role", "gridcell");
    act.className = "act";
    const stop = document.createElement("button");
    stop.type = "button";
    stop.className = "danger";
    stop.textContent = "Stop";
    stop.tabIndex = -1;
    stop.dataset.operates = "";
    act.append(stop);
    row.append(act);
    this.#body.append(row);
    return {row, cells, stop, key: null};
  }

  #measure() {
    const height = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
    if (height > 0) this.#rowHeight = height;
    this.#body.style.height = `${this.#order.length * this.#rowHeight}px`;
    this.#paint();
  }

  /** Bring the elements of the rows that can be seen up to date; nothing that is the same already is written. */
  #paint() {
    const height = this.#rowHeight;
    const seen = Math.ceil(this.#element.clientHeight / height) + 2 * Grid.#MARGIN;
    const top = Math.floor(this.#element.scrollTop / height) - Grid.#MARGIN;
    // Where the list has become shorter, the browser has not scrolled up yet.
    const first = Math.max(0, Math.min(top, this.#order.length - seen));
    const last = Math.min(this.#order.length, first + seen);
    const wanted = last - first;
    while (this.#pool.length < wanted) this.#pool.push(this.#makeRow(this.#pool.length));
    while (this.#pool.length > wanted) this.#pool.pop().row.remove();
    let active = null;
    for (let index = first; index < last; index += 1) {
      // The same element for the same place while scrolling, so that most stay as they are.
      const slot = this.#pool[index % Math.max(1, wanted)];
      const row = this.#rows.get(this.#order[index]);
      slot.key = row.key;
      set(slot.row.style, "transform", `translateY(${index * height}px)`);
      attribute(slot.row, "aria-rowindex", String(index + 2));
      attribute(slot.row, "aria-selected", String(row.key === this.#chosen));
      attribute(slot.row, "data-phase", row.phase);
      attribute(slot.stop, "aria-label", `Stop the stream of ${row.user ?? "nobody known"}`);
      Grid.COLUMNS.forEach(([, , , , show], at) => {
        const value = show(row, this.#now);
        const text = value === null ? words.UNKNOWN : value;
        set(slot.cells[at], "textContent", text);
        if (at < 4) attribute(slot.cells[at], "title", text);
        slot.cells[at].classList.toggle("none", value === null);
      });
      if (row.key === this.#chosen) active = slot.row.id;
    }
    if (active === null) this.#element.removeAttribute("aria-activedescendant");
    else attribute(this.#element, "aria-activedescendant", active);
  }

  #choose(at) {
    if (this.#order.length === 0) return;
    this.#chosenAt = Math.max(0, Math.min(this.#order.length - 1, at));
    this.#chosen = this.#order[this.#chosenAt];
    const top = this.#chosenAt * this.#rowHeight;
    const head = this.#body.offsetTop;
    const room = this.#element.clientHeight - head - this.#rowHeight;
    if (top < this.#element.scrollTop) this.#element.scrollTop = top;
    else if (top > this.#element.scrollTop + room) this.#element.scrollTop = top - room;
    this.#paint();
  }

  #key(event) {
    if (event.target !== this.#element || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.#chosen === null ? -1 : this.#order.indexOf(this.#chosen);
    const page = Math.max(1, Math.floor(this.#element.clientHeight / this.#rowHeight) - 1);
    const moves = {ArrowDown: at + 1, ArrowUp: Math.max(0, at - 1), PageDown: at + page, PageUp: at - page, Home: 0, End: this.#order.length - 1};
    if (event.key in moves) {
      this.#choose(moves[event.key]);
    } else if (event.key === "Enter" && this.chosen !== null) {
      this.#on.open(this.chosen);
    } else if (event.key.toLowerCase() === "s" && this.chosen !== null) {
      this.#on.stop(this.chosen);
    } else if (event.key === "Escape" && this.#chosen !== null) {
      this.#chosen = null;
      this.#paint();
    } else {
      return;
    }
    event.preventDefault();
  }

  #click(event) {
    const slot = this.#pool.find((one) => one.row.contains(event.target));
    const row = slot === undefined ? undefined : this.#rows.get(slot.key);
    if (row === undefined) return;
    this.#choose(this.#order.indexOf(row.key));
    if (slot.stop.contains(event.target)) this.#on.stop(row);
    else this.#on.open(row);
  }
}

function set(object, name, value) {
  if (object[name] !== value) object[name] = value;
}

function attribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}
