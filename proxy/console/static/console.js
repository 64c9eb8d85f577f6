"use strict";

/** The page: who is signed in, what is asked for, and what an operator does. */
(() => {
  const element = (id) => document.getElementById(id);
  const root = document.documentElement;
  const TYPING_MS = 250;
  const SAID_MS = 6000;
  const CONFIG_MS = 10000;
  // A tab that nobody sees need not be told anything.
  const HIDDEN_MS = 30000;

  let session = null;
  let isOpen = false;
  let typing = null;
  let saying = null;
  let hidden = null;
  let user = null;
  let shownKey = null;
  let retryAt = 0;
  let reason = "";

  const feed = new Feed({
    state(name, retrySeconds) {
      if (root.dataset.state !== name) root.dataset.state = name;
      retryAt = name === "lost" ? Date.now() + retrySeconds * 1000 : 0;
      if (name === "live") reason = "";
      showLink();
    },
    reason(text) {
      reason = text;
      showLink();
    },
    picture(picture, isWhole) {
      if (isWhole) panels.forgetRates();
      show(picture);
    },
    session: showSession,
    signedOut: askToken,
  });

  const grid = new Grid(element("grid"), element("head"), element("rows"), {
    sort(name, direction) {
      grid.setSort(name, direction);
      element("sort-filter").value = name;
      feed.open(query());
    },
    open: openDetails,
    stop: stopOne,
  });

  // ---- the connection ----

  function showLink() {
    const state = root.dataset.state;
    const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
    const text = {live: "Live", connecting: "Connecting", lost: "Not connected"}[state];
    set(element("link-words"), "textContent", text);
    element("lost").hidden = state !== "lost";
    if (state === "lost") {
      set(element("lost"), "textContent", `Not connected${reason === "" ? "" : `: ${reason.replace(/[.]$/, "")}`}. What is shown is not of now. Trying again${seconds > 0 ? ` in ${seconds} s` : ""}.`);
    }
  }
  setInterval(showLink, 1000);

  async function begin() {
    const asked = await askSession();
    if (asked.status === 401) return askToken();
    if (asked.status !== 200) {
      element("console").hidden = false;
      root.dataset.state = "lost";
      reason = asked.error?.message ?? "";
      retryAt = Date.now() + 3000;
      showLink();
      setTimeout(() => void begin(), 3000);
      return;
    }
    showSession(asked);
    element("sign-in").hidden = true;
    element("console").hidden = false;
    isOpen = true;
    feed.open(query());
    void readConfiguration();
  }

  /** A reload may change the role of a session. */
  function showSession(asked) {
    session = asked;
    document.body.dataset.role = session.role;
    element("who").textContent = session.name === null ? "" : `${session.name} · ${session.role === "operate" ? "may operate" : "may view"}`;
    element("sign-out").hidden = session.name === null;
  }

  function askToken() {
    isOpen = false;
    feed.close();
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
    root.dataset.state = "connecting";
    set(element("link-words"), "textContent", "Signed out");
    element("console").hidden = true;
    element("sign-in").hidden = false;
    element("sign-out").hidden = true;
    element("who").textContent = "";
    element("token").focus();
  }

  element("sign-in").addEventListener("submit", async (event) => {
    event.preventDefault();
    const token = element("token").value.trim();
    element("sign-in-problem").textContent = "";
    element("token").ariaInvalid = "false";
    if (token === "") return;
    try {
      await operate("POST", "/console/session", {token});
      element("token").value = "";
      await begin();
      element("grid").focus();
    } catch (error) {
      element("sign-in-problem").textContent = error.message;
      element("token").ariaInvalid = "true";
      element("token").select();
    }
  });

  element("sign-out").addEventListener("click", async () => {
    try {
      await operate("DELETE", "/console/session");
      askToken();
    } catch (error) {
      say(error.message);
    }
  });

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden);
    if (!isOpen) return;
    if (document.hidden) hidden = setTimeout(() => feed.close(), HIDDEN_MS);
    else feed.open(query());
  });

  // ---- what is shown ----

  function query() {
    const members = new URLSearchParams();
    const add = (name, value) => value && members.set(name, value);
    add("filter", element("filter").value.trim());
    add("upstream", element("upstream-filter").value);
    add("phase", element("phase-filter").value);
    if (user !== null) {
      members.set("user", user.user);
      members.set("issuer", user.issuer);
    }
    members.set("sort", grid.sort);
    members.set("order", grid.direction);
    return `?${members}`;
  }

  function show(picture) {
    panels.show(picture, switchUpstream);
    grid.show(feed.rows, picture.at_ms);
    const {totals} = picture;
    const shown = feed.rows.size;
    const isAll = totals.count === shown;
    const parts = [
      isAll ? words.plural(shown, "stream") : `First ${words.number(shown)} of ${words.plural(totals.count, "stream")}, filter to find others`,
      `${words.rate(totals.events_per_s)} events/s`,
      `${words.compact(totals.tokens_in)} → ${words.compact(totals.tokens_out)} tokens`,
      `${words.usd(totals.cost_usd)} so far`,
    ];
    set(element("sums"), "textContent", parts.join(" · "));
    const isFiltered = totals.count !== picture.streams_running;
    element("empty").hidden = shown > 0;
    element("grid").hidden = shown === 0;
    set(element("empty"), "textContent", isFiltered ? "No stream matches the filter." : "No stream is running.");
    showUpstreams(picture.upstreams);
    element("stop-upstream").hidden = element("upstream-filter").value === "";
    if (element("details").open) fillDetails();
  }

  function showUpstreams(reports) {
    const select = element("upstream-filter");
    const names = reports.map((report) => report.name);
    if (select.dataset.names === names.join("\n")) return;
    select.dataset.names = names.join("\n");
    const chosen = select.value;
    select.replaceChildren(select.options[0], ...names.map((name) => new Option(name, name)));
    select.value = names.includes(chosen) ? chosen : "";
  }

  for (const [, title, sort] of Grid.COLUMNS) element("sort-filter").append(new Option(`By ${title.toLowerCase()}`, sort));
  element("filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => feed.open(query()), TYPING_MS);
  });
  for (const id of ["upstream-filter", "phase-filter"]) element(id).addEventListener("change", () => feed.open(query()));
  element("sort-filter").addEventListener("change", (event) => {
    const isText = Grid.COLUMNS.find(([, , sort]) => sort === event.target.value)[3] === "";
    grid.setSort(event.target.value, isText ? "asc" : "desc");
    feed.open(query());
  });
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  element("user-filter").addEventListener("click", () => onlyUser(null));
  element("stop-user").addEventListener("click", () => void stopUser(user));
  element("stop-upstream").addEventListener("click", () => void stopUpstream(element("upstream-filter").value));

  function onlyUser(row) {
    user = row === null ? null : {user: row.user, issuer: row.issuer};
    element("user-filter").hidden = element("stop-user").hidden = user === null;
    element("user-filter").textContent = user === null ? "" : `Only ${user.user}`;
    element("user-filter").setAttribute("aria-label", user === null ? "" : `Only ${user.user}; show all users again`);
    feed.open(query());
    if (user === null) element("filter").focus();
  }

  // ---- one stream ----

  function openDetails(row) {
    shownKey = row.key;
    fillDetails();
    element("details").showModal();
  }

  function fillDetails() {
    const row = feed.rows.get(shownKey);
    element("details-stop").hidden = row === undefined;
    if (row === undefined) {
      set(element("details-title"), "textContent", "This stream has ended, or is no longer among those shown");
      return;
    }
    const isKnown = row.user !== null;
    for (const id of ["details-user", "details-stop-user"]) element(id).hidden = !isKnown;
    element("details-stop-upstream").hidden = row.upstream === null;
    element("details").row = row;
    set(element("details-title"), "textContent", isKnown ? row.user : "A request that is not authenticated yet");
    const facts = [
      ["Id", row.id], ["Issuer", row.issuer], ["Plan", row.plan], ["Upstream", row.upstream], ["Model", row.model],
      ["Phase", Grid.PHASES[row.phase] ?? row.phase], ["Age", words.age(feed.picture.at_ms - row.started_ms)],
      ["First byte", words.milliseconds(row.first_byte_ms)],
      ["Events", `${words.number(row.events)} · ${words.rate(row.events_per_s)} a second`],
      ["Bytes", `${words.bytes(row.bytes)}${row.unsent > 0 ? ` · ${words.bytes(row.unsent)} wait for the client` : ""}`],
      ["Tokens", `${Grid.tokens(row)}${row.usage === "estimated" ? " (estimated)" : ""}`],
      ["Cost so far", words.usd(row.cost_usd)], ["Attempts", words.number(row.attempts)], ["Worker", row.worker],
    ];
    const list = element("details-list");
    if (list.children.length === 0) {
      for (const [name] of facts) list.append(panels.make("dt", "", name), panels.make("dd"));
    }
    facts.forEach(([, value], index) => set(list.children[2 * index + 1], "textContent", value ?? words.UNKNOWN));
  }

  element("details-stop").addEventListener("click", () => stopOne(element("details").row));
  element("details-stop-user").addEventListener("click", () => void stopUser(element("details").row));
  element("details-stop-upstream").addEventListener("click", () => void stopUpstream(element("details").row.upstream));
  element("details-user").addEventListener("click", () => {
    element("details").close();
    onlyUser(element("details").row);
  });
  for (const button of document.querySelectorAll("dialog .close")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }

  // ---- what an operator does ----

  /** Ask first, then act, then say what came of it. `act` returns the words. */
  function confirm(title, text, yes, act) {
    if (session?.role !== "operate") return;
    element("details").close();
    element("confirm-title").textContent = title;
    element("confirm-text").textContent = text;
    element("confirm-yes").textContent = yes;
    element("confirm-yes").onclick = async () => {
      element("confirm").close();
      try {
        say(await act());
      } catch (error) {
        say(error.message);
      }
    };
    element("confirm").showModal();
  }

  function stopOne(row) {
    const whose = row.user === null ? "a user that is not known yet" : row.user;
    const where = [row.model, row.upstream].filter(Boolean).join(" at ");
    confirm("Stop this stream?", `It is ${whose}’s${where ? `, ${where}` : ""}: id ${row.id}.`, "Stop it", async () => {
      await operate("DELETE", `/admin/streams/${encodeURIComponent(row.id)}`);
      return "The stream was stopped.";
    });
  }

  /** How many run at this moment, over all workers and beyond what the table shows. */
  async function count(isMeant) {
    const answer = await fetch("/admin/streams", {cache: "no-store"});
    if (!answer.ok) throw new Error(`The proxy answered ${answer.status}.`);
    return (await answer.json()).streams.filter(isMeant).length;
  }

  async function stopMany(whose, isMeant, path) {
    if (session?.role !== "operate") return;
    let running;
    try {
      running = await count(isMeant);
    } catch (error) {
      return say(error.message);
    }
    const all = running === 1 ? "the one stream" : `all ${words.number(running)} streams`;
    confirm(`Stop ${all} of ${whose}?`, "Clients see their streams break off, or end with Cancelled where events are typed. New ones may begin.", `Stop ${words.plural(running, "stream")}`, async () => {
      const {stopped, silent = 0} = await operate("DELETE", path);
      const missed = silent > 0 ? ` ${words.plural(silent, "worker")} did not answer: streams may run on there.` : "";
      return `${words.plural(stopped, "stream")} of ${whose} ${stopped === 1 ? "was" : "were"} stopped.${missed}`;
    });
  }

  const stopUser = ({user: name, issuer}) => stopMany(
    name,
    (stream) => stream.user === name && stream.issuer === issuer,
    `/admin/streams?${new URLSearchParams({user: name, issuer})}`,
  );
  const stopUpstream = (name) => stopMany(
    name,
    (stream) => stream.upstream === name,
    `/admin/streams?${new URLSearchParams({upstream: name})}`,
  );

  function switchUpstream(report) {
    const isOn = report.state === "on";
    const text = isOn
      ? `New requests are not sent there. The ${words.plural(report.running, "request")} that run go on.`
      : "New requests are sent there again; its breaker is closed, and no key rests.";
    confirm(`Turn ${report.name} ${isOn ? "off" : "on"}?`, text, isOn ? "Turn off" : "Turn on", async () => {
      const told = await operate("PUT", `/admin/upstreams/${encodeURIComponent(report.name)}`, {state: isOn ? "off" : "on"});
      return `${report.name} is ${told?.state ?? (isOn ? "off" : "on")}.`;
    });
  }

  async function readConfiguration() {
    if (!isOpen || document.hidden) return;
    try {
      const answer = await fetch("/admin/config", {cache: "no-store"});
      if (answer.ok) panels.configuration(await answer.json());
    } catch {
      // The state of the connection says so.
    }
  }
  setInterval(() => void readConfiguration(), CONFIG_MS);

  function say(text) {
    clearTimeout(saying);
    element("said").textContent = text;
    saying = setTimeout(() => (element("said").textContent = ""), SAID_MS);
  }

  // ---- keys, colours ----

  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || !isOpen) return;
    const isTyping = event.target instanceof HTMLElement && event.target.matches("input, select, textarea");
    if (document.querySelector("dialog[open]") !== null) return;
    if (event.key === "/" && !isTyping) {
      event.preventDefault();
      element("filter").focus();
      element("filter").select();
    } else if (event.target === element("filter") && (event.key === "ArrowDown" || event.key === "Enter")) {
      event.preventDefault();
      element("grid").focus();
    } else if (event.target === element("filter") && event.key === "Escape") {
      event.preventDefault();
      if (element("filter").value === "") element("grid").focus();
      else {
        element("filter").value = "";
        feed.open(query());
      }
    }
  });

  const THEMES = ["auto", "light", "dark"];
  function paintTheme(name) {
    root.dataset.theme = name;
    element("theme-name").textContent = name;
  }
  function keptTheme() {
    try {
      return localStorage.getItem("forward-sse-theme");
    } catch {
      return null;
    }
  }
  element("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    paintTheme(next);
    try {
      localStorage.setItem("forward-sse-theme", next);
    } catch {
      // Not kept, then.
    }
  });
  paintTheme(THEMES.includes(keptTheme()) ? keptTheme() : "auto");

  grid.setSort("age", "desc");
  element("sort-filter").value = "age";
  void begin();
})();
