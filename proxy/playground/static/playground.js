"use strict";

/** The page's conduct: the token, what is asked, and one request at a time from its sending to its end. */
(() => {
  const element = (id) => document.getElementById(id);
  // Wherever the proxy is mounted, the page stands directly below its root.
  const root = location.pathname.replace(/playground\/?$/, "");
  const needsToken = document.documentElement.dataset.auth !== "none";
  const MAX_BODY_CHARS = 200_000;

  let token = "";
  let upstreams = [];
  let running = null;
  let latest = null;
  let countdown = 0;
  let connections = 0;
  // What is left, as the last answer's fields say it, and as the proxy tells it when it is asked.
  let limitsTold = [];
  let usageTold = null;

  // ---- the token -------------------------------------------------------------------------------------------------

  function authorization() {
    return token === "" ? {} : { Authorization: `Bearer ${token}` };
  }

  function showTokenForm(problem = "") {
    element("token-form").hidden = false;
    element("token-problem").textContent = problem;
    element("token").ariaInvalid = String(problem !== "");
    element("change-token").hidden = true;
    element("token").focus();
  }

  /** Ask who the token's user is and what is theirs; fill the form with it. */
  async function connect() {
    const number = (connections += 1);
    element("who").textContent = "Connecting…";
    let response;
    let told;
    try {
      response = await fetch(`${root}playground/upstreams`, { headers: authorization(), cache: "no-store" });
      told = response.ok ? await response.json() : await response.text();
    } catch {
      if (number === connections) disconnected("The proxy cannot be reached. Is it still running?");
      return;
    }
    if (number !== connections) return;
    if (!response.ok) {
      const { title, text, action } = explainRefusal(response, told);
      // A token that was refused is worth nothing; one that could not be checked may be.
      if (action === "token") tokens.keep("");
      disconnected(`${title}. ${text}`);
      return;
    }
    element("token-form").hidden = true;
    element("token").value = "";
    element("change-token").hidden = !needsToken;
    element("who").textContent = needsToken ? `${told.user} · plan ${told.plan}` : "No token needed";
    showLimits(limitsIn(response.headers));
    offer(told);
    void refreshUsage(number);
  }

  /** Requests as the newest answer's fields say; tokens and money as the proxy has counted them, where it tells. */
  function showLimits(fields) {
    limitsTold = fields;
    const counted = usageTold === null ? [] : usage.limits(usageTold);
    const kinds = (limits, ...names) => limits.filter(({ kind }) => names.includes(kind));
    const requests = kinds(fields, "requests");
    const tokens = kinds(counted, "tokens");
    view.limits([
      ...(requests.length > 0 ? requests : kinds(counted, "requests")),
      ...(tokens.length > 0 ? tokens : kinds(fields, "tokens")),
      ...kinds(counted, "usd"),
      ...kinds(fields, "vendor"),
    ]);
  }

  /** Ask what was used and what is left; null where that is not told, or the token is another one by now. */
  async function refreshUsage(number = connections) {
    const told = await usage.ask(root, authorization());
    if (told === null || number !== connections) return null;
    usageTold = told;
    showLimits(limitsTold);
    view.spent(usage.week(told));
    return told;
  }

  function disconnected(problem) {
    element("who").textContent = "";
    enable(false);
    showTokenForm(problem);
  }

  function useToken(given, keeps) {
    token = tokens.read(given);
    if (token === "") {
      showTokenForm("This is not a token.");
      return;
    }
    tokens.keep(keeps ? token : "");
    void connect();
  }

  // ---- what is asked ---------------------------------------------------------------------------------------------

  function option(value, words) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = words;
    return made;
  }

  function enable(isReady) {
    for (const id of ["upstream", "model", "prompt"]) element(id).disabled = !isReady;
    element("send").disabled = !isReady;
  }

  function offer(told) {
    const before = element("upstream").value;
    upstreams = told.upstreams;
    element("upstream").replaceChildren(...upstreams.map(({ name }) => option(name, name)));
    if (upstreams.length === 0) {
      enable(false);
      view.notice({ tone: "warn", title: "Your plan includes no upstream", text: "Whoever runs this proxy can change that." });
      view.flush();
      return;
    }
    enable(true);
    const names = upstreams.map(({ name }) => name);
    const chosen = [before, told.default].find((name) => names.includes(name)) ?? names[0];
    element("upstream").value = chosen;
    if (chosen !== before) choose();
    // Not where that would open a keyboard over half the page.
    if (!matchMedia("(hover: none)").matches) element("prompt").focus({ preventScroll: true });
  }

  function chosen() {
    const upstream = upstreams.find(({ name }) => name === element("upstream").value);
    const ways = waysOf(upstream);
    return { upstream, ways, way: ways.find(({ id }) => id === element("way").value) ?? ways[0] };
  }

  function choose() {
    const { upstream, ways } = chosen();
    const models = modelsOf(upstream);
    element("way").replaceChildren(...ways.map(({ id, label }) => option(id, label)));
    element("way-field").hidden = ways.length < 2;
    offerForms();
    element("vendor-key-field").hidden = !upstream.needs_key;
    element("models").replaceChildren(...models.map((model) => option(model, "")));
    element("model").value = models[0] ?? "";
    offerThinking();
  }

  function offerForms() {
    const { upstream, way } = chosen();
    const before = element("form").value;
    const forms = formsOf(upstream, way);
    element("form").replaceChildren(...forms.map(({ id, label }) => option(id, label)));
    if (forms.some(({ id }) => id === before)) element("form").value = before;
    element("form-field").hidden = forms.length < 2;
  }

  function offerThinking() {
    const { way } = chosen();
    element("think-field").hidden = !APIS[way.id].think(element("model").value.trim());
  }

  // ---- one request -----------------------------------------------------------------------------------------------

  async function send() {
    if (running !== null || element("send").disabled) return;
    const prompt = element("prompt").value.trim();
    const model = element("model").value.trim();
    if (prompt === "" || model === "") {
      element(prompt === "" ? "prompt" : "model").focus();
      view.announce(prompt === "" ? "Type a prompt first." : "Choose a model first.");
      return;
    }
    const { upstream, way } = chosen();
    const thinks = !element("think-field").hidden && element("think").checked;
    const request = APIS[way.id].request({ model, prompt, thinks });
    const run = {
      api: way.id,
      model,
      form: element("form").value,
      typedNames: upstream.typed_names,
      controller: new AbortController(),
      started: performance.now(),
      usageBefore: usageTold,
      failure: null,
      reason: null,
      isDone: false,
    };
    begin(run, `${model} · ${upstream.name}`);
    try {
      const vendorKey = element("vendor-key").value.trim();
      const response = await ask(run, way.path(model), {
        method: "POST",
        headers: {
          ...authorization(),
          "Content-Type": "application/json",
          Accept: "text/event-stream",
          ...(upstream.needs_key && vendorKey ? { "X-Upstream-Authorization": `Bearer ${vendorKey}` } : {}),
          ...request.headers,
        },
        body: JSON.stringify(request.body),
        cache: "no-store",
        signal: run.controller.signal,
      });
      run.response = response;
      const limits = limitsIn(response.headers);
      if (limits.length > 0) showLimits(limits);
      // A refusal of a ticket's use is 200, with events; the field is ours alone.
      if (!response.ok || response.headers.has("x-forward-sse-code")) await refused(run);
      else if (/^text\/event-stream\b/i.test(response.headers.get("content-type") ?? "")) await stream(run);
      else await whole(run);
    } catch (error) {
      broken(run, error);
    } finally {
      finish(run);
    }
  }

  /** Send the request in the form that was chosen; of a ticket the answer is that of its use. */
  async function ask(run, path, options) {
    if (run.form === "typed") path += `${path.includes("?") ? "&" : "?"}events=typed`;
    if (run.form !== "ticket") return fetch(root + path, options);
    const made = await fetch(root + path.replace(/^forward-sse\?/, "forward-sse/tickets?"), options);
    if (!made.ok) return made;
    const { url } = await made.json();
    return fetch(root + url.replace(/^\//, ""), { cache: "no-store", signal: run.controller.signal });
  }

  function begin(run, words) {
    running = latest = run;
    stopCountdown();
    view.reset();
    view.state("waiting", "Waiting");
    view.asked(words);
    view.announce("Sent. Waiting for the answer.");
    run.clock = setInterval(() => view.tick(performance.now() - run.started), 100);
    swap("send", "stop");
    const isBelow = element("answer").getBoundingClientRect().top > innerHeight * 0.6;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isBelow) element("answer").scrollIntoView({ block: "start", behavior: isCalm ? "auto" : "smooth" });
  }

  function finish(run) {
    clearInterval(run.clock);
    view.tick(performance.now() - run.started);
    const id = run.response?.headers.get("x-forward-sse-id");
    view.facts([...(run.facts ?? []), reasonWords(run.reason), id ? `id ${id}` : ""]);
    view.flush();
    running = null;
    swap("stop", "send");
    if (run.response !== undefined) void account(run);
  }

  /** Learn what is left now, and what the answer cost where its stream did not tell: its row is there within a second. */
  async function account(run) {
    const number = connections;
    const isTold = run.isRefused || view.usageTold.cost !== undefined;
    for (const wait_ms of isTold ? [100] : [100, 500, 1000]) {
      await new Promise((resolve) => setTimeout(resolve, wait_ms));
      const told = await refreshUsage(number);
      // Without a ledger there never is a row.
      if (isTold || told === null || run !== latest || told.rows.length === 0 || run.usageBefore === null) return;
      const share = usage.share(run.usageBefore, told, run.model);
      if (share === null) continue;
      const shown = view.usageTold;
      if (shown.output === undefined) view.usage(share, true);
      else if (shown.cost === undefined) view.usage({ cost: share.cost });
      return;
    }
  }

  /** One button takes the other's place, and its focus. */
  function swap(from, to) {
    const hadFocus = document.activeElement === element(from);
    element(to).hidden = false;
    if (hadFocus) element(to).focus();
    element(from).hidden = true;
  }

  function sinkOf(run) {
    return {
      text: view.text,
      think: view.think,
      image: view.image,
      usage: view.usage,
      fail(message, code) {
        run.failure ??= { message: typeof message === "string" ? message : "", code: code ? String(code) : "" };
      },
      done(reason) {
        run.isDone = true;
        run.reason ??= reason ?? null;
      },
    };
  }

  async function stream(run) {
    const reader = run.response.body.getReader();
    const events = new EventStreamReader();
    const sink = sinkOf(run);
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const now_ms = performance.now() - run.started;
      if (run.first_ms === undefined) {
        run.first_ms = now_ms;
        view.firstByte(now_ms);
        view.state("streaming", "Streaming");
        view.announce("The answer is arriving.");
      }
      for (const block of events.feed(value)) {
        view.block(block, now_ms);
        if (run.form === "ticket" && block.name === "end") {
          readTicketEnd(block, sink);
        } else if (block.hasData) {
          readEvent(run.api, block, sink, run.typedNames);
          if (run.failure === null) run.count = (run.count ?? 0) + 1;
        }
      }
    }
    ended(run, events.isInsideBlock);
  }

  function ended(run, isInsideBlock) {
    const summary = `${countWords(run.count ?? 0)} in ${view.duration(performance.now() - run.started)}`;
    if (run.failure) {
      failed(run, OWN_ENDS[run.failure.code] ?? "The vendor reported an error in the middle");
    } else if (isInsideBlock || !run.isDone) {
      view.state("cut", "Ended early");
      view.cut("ended here, without the vendor’s end mark");
      view.announce(`The answer ended early, after ${summary}.`);
    } else {
      view.state("complete", "Complete");
      view.announce(`The answer is complete: ${summary}.`);
    }
  }

  /** The error that came inside a stream; what arrived before it stays. */
  function failed(run, title) {
    view.state("cut", "Cut off");
    view.cut("cut off here");
    view.notice({
      tone: "danger",
      title,
      text: "What arrived before stays above. Sending again costs again.",
      quote: run.failure?.message ?? "",
    });
    run.facts = [run.failure?.code].filter(Boolean);
    act("again");
    view.announce(`${title}. ${run.failure?.message ?? ""}`);
  }

  async function refused(run) {
    run.isRefused = true;
    const body = (await run.response.text()).slice(0, MAX_BODY_CHARS);
    const words = explainRefusal(run.response, body);
    const isWait = words.waitSeconds > 0 && words.action === "again";
    run.facts = words.facts;
    view.state("refused", words.action === "token" ? "Token needed" : isWait ? "Wait" : "Refused");
    view.notice({ tone: isWait || words.action === "token" ? "warn" : "danger", ...words });
    view.announce(`${words.title}. ${isWait ? `Wait ${roughly(words.waitSeconds)}.` : words.text}`);
    act(words.action, words.waitSeconds);
  }

  /** A success that is no event stream: the model, or the vendor, does not stream. */
  async function whole(run) {
    const body = (await run.response.text()).slice(0, MAX_BODY_CHARS);
    run.first_ms = performance.now() - run.started;
    view.firstByte(run.first_ms);
    let shown = body;
    try {
      shown = JSON.stringify(JSON.parse(body), null, 2);
    } catch {
      // Shown as it came.
    }
    view.text(shown);
    view.state("complete", "Complete");
    view.notice({ tone: "warn", title: "The vendor answered without streaming", text: "Its whole answer is shown as it came." });
    view.announce("The vendor answered without streaming.");
  }

  /** Stopped by the person, or broken by the network; before the answer or in it. */
  function broken(run, error) {
    const events = run.count ? ` after ${countWords(run.count ?? 0)}` : "";
    if (run.controller.signal.aborted) {
      view.state("stopped", "Stopped");
      view.notice({ tone: "calm", title: `Stopped by you${events}`, text: "The vendor’s request was cancelled the moment you did." });
      view.announce(`Stopped${events}.`);
    } else if (run.response === undefined) {
      view.state("refused", "No answer");
      view.notice({ tone: "danger", title: "The proxy cannot be reached", text: "Is it still running? The request may not have arrived." });
      view.announce("The proxy cannot be reached.");
      act("again");
    } else if (error instanceof RangeError) {
      run.controller.abort();
      run.failure ??= { message: error.message, code: "" };
      failed(run, "The answer cannot be shown");
    } else {
      failed(run, `The stream broke off${events}`);
    }
  }

  function stop() {
    running?.controller.abort();
  }

  /** Offer what may help: another token, or the same request once the wait is over. */
  function act(action, wait_s = 0) {
    const button = element("notice-action");
    button.hidden = action === undefined;
    button.disabled = false;
    if (action === "token") {
      button.textContent = "Paste another token";
      button.onclick = () => showTokenForm();
      return;
    }
    button.onclick = () => void send();
    button.textContent = "Send again";
    if (action !== "again" || wait_s === 0) return;
    const until = performance.now() + wait_s * 1000;
    const show = () => {
      const left_s = Math.ceil((until - performance.now()) / 1000);
      button.disabled = left_s > 0;
      button.textContent = left_s > 0 ? `Send again in ${roughly(left_s)}` : "Send again";
      if (left_s > 0) return;
      stopCountdown();
      view.announce("You can send again.");
    };
    countdown = setInterval(show, 250);
    show();
  }

  function stopCountdown() {
    clearInterval(countdown);
    countdown = 0;
  }

  // ---- the person ------------------------------------------------------------------------------------------------

  element("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(element("token").value, element("keep-token").checked);
  });
  element("change-token").addEventListener("click", () => showTokenForm());
  element("upstream").addEventListener("change", choose);
  element("way").addEventListener("change", () => {
    offerForms();
    offerThinking();
  });
  element("model").addEventListener("input", offerThinking);
  element("stop").addEventListener("click", stop);
  element("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    void send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape" && running !== null) {
      event.preventDefault();
      stop();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      if (!element("ask").contains(event.target)) return;
      event.preventDefault();
      void send();
    }
  });
  addEventListener("resize", () => view.repaint());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view.repaint());
  addEventListener("hashchange", () => {
    const given = tokens.takeFromAddress();
    if (given) useToken(given, false);
  });

  if (/mac|iphone|ipad/i.test(navigator.platform)) element("modifier").textContent = "⌘";
  view.reset();
  const given = tokens.takeFromAddress();
  if (given) useToken(given, false);
  else if (!needsToken) void connect();
  else if (tokens.kept() !== "") useToken(tokens.kept(), true);
  else showTokenForm();
})();
