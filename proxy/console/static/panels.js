"use strict";

/** What stands around the table: tiles with sparklines, upstreams, spend, the service. */
const panels = (() => {
  const element = (id) => document.getElementById(id);
  // One a second.
  const POINTS = 60;
  // Rates of less time say little.
  const LEAST_MS = 800;
  const QUIET = new Set(["complete", "client_closed", "refused"]);
  const history = {streams: [], requests: [], refusals: [], endings: []};
  let before = null;

  const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);
  const text = (id, value) => set(element(id), "textContent", value);

  function make(name, className, content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (content !== undefined) made.textContent = content;
    return made;
  }

  function spark(id, points) {
    const most = Math.max(1, ...points);
    const step = 120 / (POINTS - 1);
    const from = 120 - (points.length - 1) * step;
    const line = points.map((value, index) => `${(from + index * step).toFixed(1)},${(31 - (value / most) * 29).toFixed(1)}`);
    const [area, stroke] = element(id).children;
    stroke.setAttribute("d", line.length > 1 ? `M${line.join("L")}` : "");
    area.setAttribute("d", line.length > 1 ? `M${from.toFixed(1)},32L${line.join("L")}L120,32Z` : "");
  }

  function add(name, value) {
    history[name].push(value);
    if (history[name].length > POINTS) history[name].shift();
    spark(`spark-${name}`, history[name]);
  }

  /** Counters only grow, so a rate is what was added since the picture before. */
  function tiles(picture) {
    const {counters, totals} = picture;
    const cut = Object.fromEntries(Object.entries(counters.endings).filter(([ending]) => !QUIET.has(ending)));
    const now = {at: picture.at_ms, requests: sum(counters.endings), refusals: sum(counters.refusals), endings: sum(cut)};
    text("tile-streams", words.number(picture.streams_running));
    text("tile-phases", words.largest(totals.phases, {times: " "}) || "No stream is running.");
    if (before !== null && now.at - before.at < LEAST_MS && now.requests >= before.requests) return;
    if (before !== null && now.requests >= before.requests) {
      const seconds = (now.at - before.at) / 1000;
      for (const name of ["requests", "refusals", "endings"]) {
        const rate = Math.max(0, now[name] - before[name]) / seconds;
        add(name, rate);
        text(`tile-${name}`, words.rate(rate));
      }
    }
    add("streams", picture.streams_running);
    before = now;
    text("tile-requests-sum", `${words.compact(now.requests)} ended since the start`);
    text("tile-codes", words.largest(counters.refusals) || "None since the start");
    text("tile-endings-sum", words.largest(cut) || "None since the start");
  }

  function problems(picture) {
    const {reasons, limping} = picture.problems;
    const lines = [...reasons.map((line) => `Not ready: ${line}`), ...limping];
    const silent = picture.workers.filter((worker) => worker.state === "silent").length;
    if (silent > 0) lines.push(`${words.plural(silent, "worker")} did not answer: what runs there is not shown.`);
    const list = element("problems");
    if (list.dataset.lines === lines.join("\n")) return;
    list.dataset.lines = lines.join("\n");
    list.hidden = lines.length === 0;
    list.replaceChildren(...lines.map((line) => make("li", "", line)));
  }

  const STATES = {on: ["good", "On"], out: ["danger", "Out"], off: ["warn", "Off"]};

  /** A card each. `act(report)` turns it on or off. Made anew where it has changed, but for what has the focus. */
  function upstreams(picture, act) {
    const list = element("upstreams");
    const known = new Map([...list.children].map((card) => [card.dataset.name, card]));
    for (const report of picture.upstreams) {
      const attempts = picture.counters.attempts[report.name] ?? {};
      const retries = picture.counters.retries[report.name] ?? 0;
      const told = JSON.stringify([report, attempts, retries]);
      let card = known.get(report.name);
      known.delete(report.name);
      if (card === undefined) {
        card = make("li", "card upstream-card");
        card.dataset.name = report.name;
        list.append(card);
        fill(card, report, attempts, retries, act);
      } else if (card.dataset.told !== told) {
        fill(card, report, attempts, retries, act);
      }
      card.dataset.told = told;
    }
    for (const card of known.values()) card.remove();
  }

  function fill(card, report, attempts, retries, act) {
    if (card.children.length === 0) {
      const top = make("div", "upstream-top");
      const button = make("button", "quiet");
      button.type = "button";
      button.dataset.operates = "";
      button.addEventListener("click", () => act(card.report));
      top.append(make("h3", "upstream-name", report.name), button);
      const state = make("p", "upstream-state");
      state.append(make("span", "pill"), make("span"));
      card.append(top, state, make("p", "fine"), make("ul", "keys-list"));
    }
    card.report = report;
    const [top, state, tried, keys] = card.children;
    const button = top.children[1];
    const [tone, name] = STATES[report.state] ?? ["warn", report.state];
    const waits = report.state === "out" && report.out_for_s ? ` for ${Math.ceil(report.out_for_s)} s` : "";
    state.children[0].dataset.tone = tone;
    set(state.children[0], "textContent", name + waits);
    set(button, "textContent", report.state === "on" ? "Turn off" : "Turn on");
    attribute(button, "aria-label", `Turn ${report.name} ${report.state === "on" ? "off" : "on"}`);
    const failures = report.failures > 0 ? ` · ${words.plural(report.failures, "failure")} in a row` : "";
    set(state.children[1], "textContent", `${words.number(report.running)} running${failures}`);
    const {ok = 0, ...others} = attempts;
    const total = ok + sum(others);
    const failed = words.largest(others);
    const outcomes = failed || (total > 0 ? "none failed" : "");
    const again = retries > 0 ? `${words.number(retries)} tried again` : "";
    set(tried, "textContent", [words.plural(total, "attempt"), outcomes, again].filter(Boolean).join(" · "));
    keys.replaceChildren(...report.keys.map((key) => {
      const rests = key.resting ? ` rests ${key.rests_for_s > 0 ? `${Math.ceil(key.rests_for_s)} s` : ""} (${key.refused_with ?? "?"})` : "";
      const shown = make("li", "key", `${key.key} · ${key.running}${rests}`);
      shown.title = "The first digits of the key’s SHA-256, and the requests that use it";
      shown.dataset.rests = String(key.resting);
      return shown;
    }));
  }

  function spend({spend}) {
    const told = JSON.stringify(spend);
    if (element("spend").dataset.told === told) return;
    element("spend").dataset.told = told;
    const none = spend === null ? "No ledger is configured (usage.ledger)." : spend.problem;
    element("spend-none").hidden = !none;
    text("spend-none", none ?? "");
    element("spend").hidden = spend === null;
    if (spend === null) return;
    const rows = (list, name) => {
      const most = Math.max(...list.map((row) => Number(row.cost_usd)), 1e-9);
      if (list.length === 0) return [make("li", "fine", "Nothing yet today")];
      return list.map((row) => {
        const item = make("li");
        const bar = make("span", "bar");
        const part = make("i");
        part.style.width = `${(Number(row.cost_usd) / most) * 100}%`;
        bar.append(part);
        const label = make("span", "name", name(row));
        label.title = name(row);
        const tokens = words.compact(row.input_tokens + row.output_tokens);
        item.append(label, make("span", "", `${words.usd(row.cost_usd)} · ${tokens}`), bar);
        return item;
      });
    };
    element("spend-users").replaceChildren(...rows(spend.users, (row) => row.user));
    element("spend-models").replaceChildren(...rows(spend.models, (row) => row.model ?? "unknown"));
  }

  function service(picture) {
    const {limits, workers} = picture;
    const tone = {ok: "good", limping: "warn", down: "danger"}[limits.state];
    const name = {ok: "Works", limping: "Limping", down: "Down"}[limits.state];
    const told = JSON.stringify([limits, workers]);
    text("version", picture.version);
    if (element("workers").dataset.told === told) return;
    element("workers").dataset.told = told;
    const pill = make("span", "pill", name);
    pill.dataset.tone = tone;
    element("limits").replaceChildren(pill, ...(limits.problem === null ? [] : [` ${limits.problem}`]));
    element("workers").replaceChildren(...workers.map((worker) => {
      const words_ = worker.state === "silent" ? "silent" : `${words.number(worker.streams)}${worker.state === "draining" ? ", draining" : ""}`;
      const shown = make("li", "pill", `${worker.name}: ${words_}`);
      shown.dataset.tone = {answering: "good", draining: "warn", silent: "danger"}[worker.state];
      return shown;
    }));
  }

  /** The configuration in force, and how the last reload went. */
  function configuration(told) {
    const {last_reload: last} = told;
    const loaded = told.loaded_at ? `Loaded ${new Date(told.loaded_at).toLocaleString()}.` : "";
    const parts = [loaded];
    if (last) {
      parts.push(`Last reload: ${last.result}${last.at ? `, ${new Date(last.at).toLocaleTimeString()}` : ""}.`);
      if (last.needs_restart?.length) parts.push(`Needs a restart: ${last.needs_restart.join(", ")}.`);
      if (last.faults?.length) parts.push(last.faults.join(" "));
    }
    text("reload", parts.filter(Boolean).join(" "));
    element("reload").classList.toggle("bad", Boolean(last) && last.result !== "ok");
    text("config-text", JSON.stringify(told.config, null, 2));
  }

  return {
    show(picture, act) {
      tiles(picture);
      problems(picture);
      upstreams(picture, act);
      spend(picture);
      service(picture);
    },
    configuration,
    /** Another worker counts from another start. */
    forgetRates() {
      before = null;
    },
    make,
  };
})();
