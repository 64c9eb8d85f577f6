"use strict";

/**
 * The connection: one event stream of a choice, merged into one picture; comes back by itself, slower each time.
 *
 * `on` has `picture(picture, isWhole)`, `state(name, retrySeconds)`: `connecting`, `live` or `lost`;
 * `reason(text)`: why the proxy refuses the stream, empty where it does not; `session(session)`, who is signed in, before
 * it connects again; and `signedOut()`.
 */
class Feed {
  #on;
  #source = null;
  #timer = null;
  #watch = null;
  #failures = 0;
  #query = "";
  #isWanted = false;

  // Without any event for so long, the connection is dead, whatever the browser believes.
  static SILENCE_MS = 8000;
  static LONGEST_WAIT_S = 30;

  constructor(on) {
    this.#on = on;
    this.picture = null;
    this.rows = new Map();
  }

  /** Show another choice; what is shown stays until its picture comes. */
  open(query) {
    this.#query = query;
    this.#isWanted = true;
    this.#connect();
  }

  close() {
    this.#isWanted = false;
    this.#drop();
  }

  #drop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#watch);
    this.#source?.close();
    this.#source = null;
  }

  #connect() {
    this.#drop();
    const source = new EventSource(`/admin/events${this.#query}`);
    this.#source = source;
    source.addEventListener("snapshot", (event) => this.#take(source, event, true));
    source.addEventListener("delta", (event) => this.#take(source, event, false));
    source.addEventListener("error", () => this.#lost(source));
    this.#expect(source);
  }

  #expect(source) {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => this.#lost(source), Feed.SILENCE_MS);
  }

  #take(source, event, isWhole) {
    if (source !== this.#source) return;
    this.#failures = 0;
    this.#expect(source);
    const {streams = [], gone = [], ...members} = JSON.parse(event.data);
    if (isWhole) {
      this.rows = new Map(streams.map((row) => [row.key, row]));
      this.picture = members;
    } else {
      for (const key of gone) this.rows.delete(key);
      for (const row of streams) {
        const known = this.rows.get(row.key);
        if (known === undefined) this.rows.set(row.key, row);
        else Object.assign(known, row);
      }
      Object.assign(this.picture, members);
    }
    this.#on.state("live", 0);
    this.#on.picture(this.picture, isWhole);
  }

  #lost(source) {
    if (source !== this.#source) return;
    // Without an answer it would try again by itself.
    const isRefused = source.readyState === EventSource.CLOSED;
    this.#drop();
    if (!this.#isWanted) return;
    const most = Math.min(Feed.LONGEST_WAIT_S, 2 ** this.#failures);
    this.#failures += 1;
    // Many pages must not come back in the same moment.
    const seconds = most * (0.5 + Math.random() / 2);
    this.#on.state("lost", seconds);
    if (isRefused) void this.#explain();
    else this.#on.reason("");
    this.#timer = setTimeout(() => void this.#again(), seconds * 1000);
  }

  /** An event stream tells nothing of a refusal: ask for the same in a way that does, and take nothing more of it. */
  async #explain() {
    const asking = new AbortController();
    const limit = setTimeout(() => asking.abort(), Feed.SILENCE_MS);
    try {
      const answer = await fetch(`/admin/events${this.#query}`, {cache: "no-store", signal: asking.signal});
      const told = answer.ok ? null : await answer.json();
      if (this.#isWanted && this.#source === null) this.#on.reason(told?.error?.message ?? "");
    } catch {
      // The next try tells.
    } finally {
      clearTimeout(limit);
      asking.abort();
    }
  }

  /** An event stream does not tell its status: ask whether it is the credential that is missing. */
  async #again() {
    const session = await askSession();
    if (!this.#isWanted || this.#source !== null) return;
    if (session.status === 401) {
      this.close();
      this.#on.signedOut();
      return;
    }
    if (session.status === 200) this.#on.session(session);
    this.#connect();
  }
}

/** Who is signed in: `{status, name, role}`, or why not: `{status, error}`; status 0 where the proxy cannot be reached. */
async function askSession() {
  try {
    const answer = await fetch("/console/session", {cache: "no-store"});
    return {...await answer.json().catch(() => null), status: answer.status};
  } catch {
    return {status: 0};
  }
}

/** Ask the proxy to do something; no other origin's page can send this field. Throws an Error with words for the operator. */
async function operate(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: {"X-Requested-With": "forward-sse-console", ...(body === undefined ? {} : {"Content-Type": "application/json"})},
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Error("The proxy cannot be reached.");
  }
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => null);
  if (answer.ok) return told;
  throw new Error(told?.error?.message ?? `The proxy answered ${answer.status}.`);
}
