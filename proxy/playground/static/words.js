"use strict";

/**
 * What an answer means, in words for the person in front of the page: refusals, limits, ends.
 *
 * A refusal is `{title, text, quote, action, facts, waitSeconds}`; its `action` is `token` (another one is needed),
 * `again` (the same request may work) or absent (it would not).
 */

// By the proxy's own code. What the vendor refuses has none and is worded by its status.
const OWN_REFUSALS = {
  missing_token: ["A token is needed", "Paste yours, and send again.", "token"],
  invalid_token: ["This token is not accepted", "It is not one of this proxy’s, or was changed on its way. Paste another one.", "token"],
  expired_token: ["This token has expired", "Get a new one where this one came from, and paste it.", "token"],
  insufficient_scope: ["This token may not stream", "It lacks a scope that this proxy asks for. Paste one that has it.", "token"],
  upstream_not_allowed: ["Your plan does not include this upstream", "Choose another one."],
  unknown_upstream: ["This upstream is gone", "The proxy’s configuration has changed. Reload the page."],
  path_not_allowed: ["This API is not open here", "The proxy does not let this path of the vendor’s through. Choose another API."],
  rate_limit_exceeded: ["You have used up your requests for now", "Nothing was sent to the vendor.", "again"],
  insufficient_quota: ["Your budget is used up", "Nothing was sent to the vendor."],
  too_many_streams: ["Too many streams at once", "One of your other streams has to end first. Nothing was sent to the vendor.", "again"],
  body_too_large: ["The prompt is too long", "It is larger than this proxy lets through."],
  header_too_large: ["The token is too long", "A line of the request’s head is longer than this proxy lets through.", "token"],
  request_timeout: ["The request took too long to arrive", "The proxy stopped waiting for it.", "again"],
  upstream_unreachable: ["The vendor cannot be reached", "The proxy got no connection to it.", "again"],
  upstream_credentials_exhausted: ["The vendor refused the proxy’s key", "Your own token was fine. Whoever runs this proxy has to look at the upstream’s key."],
  upstream_protocol_error: ["The vendor’s answer made no sense", "It was not proper HTTP, so nothing of it was passed on.", "again"],
  upstream_timeout: ["The vendor took too long", "The proxy gave up waiting.", "again"],
  draining: ["The proxy is being restarted", "It takes no new requests just now.", "again"],
  auth_unavailable: ["Tokens cannot be checked just now", "The proxy has not got its issuer’s keys yet.", "again"],
  overloaded: ["The proxy is full", "It has no room for another connection.", "again"],
  limits_unavailable: ["Limits cannot be checked just now", "The proxy cannot reach where it counts.", "again"],
};

const VENDOR_REFUSALS = {
  400: ["The vendor did not accept the request", "Most often it is the model’s name, or something this model cannot do."],
  401: ["The vendor refused the proxy’s key", "Your own token was fine. Whoever runs this proxy has to look at the upstream’s key."],
  403: ["The vendor refused the proxy’s key", "Your own token was fine. The upstream’s key may not do this."],
  404: ["The vendor does not know this", "Most often it is the model’s name."],
  413: ["The prompt is too long for the vendor", "Send a shorter one."],
  429: ["The vendor is limiting this key", "It is the proxy’s key that is limited, not you.", "again"],
};

// What the proxy ends a running stream for, by the code of its error event; any other is the vendor's.
const OWN_ENDS = {
  insufficient_quota: "Your budget was used up",
  draining: "The proxy is being restarted",
  stopped: "The stream was stopped at the proxy",
};

/** Words for an answer that is not 2xx, or whose events say that it would not have been. */
function explainRefusal(response, body) {
  const told = toldInStream(body);
  const code = response.headers.get("x-forward-sse-code");
  const known = code ? OWN_REFUSALS[code] : VENDOR_REFUSALS[response.status];
  const usual = code
    ? ["The proxy refused the request", ""]
    : response.status >= 500
      ? ["The vendor has a problem", "It answered with an error of its own.", "again"]
      : ["The vendor refused the request", ""];
  const message = messageIn(body);
  const [words, text, action] = known ?? usual;
  const title = code === "rate_limit_exceeded" && / tokens? /.test(message) ? "You have used up your tokens for now" : words;
  return {
    title,
    text,
    action,
    // The proxy's own words say the same, but where they say which clock, which bound or which limit.
    quote: code && known && !/^(upstream_|body_|rate_limit_|too_many_|insufficient_quota)/.test(code) ? "" : message,
    facts: [`HTTP ${told.status ?? response.status}`, code].filter(Boolean),
    waitSeconds: told.retry_after ?? waitOf(response.headers.get("retry-after")),
  };
}

/** What the event `end` says, which is all that a refusal within a stream has. */
function toldInStream(body) {
  try {
    return JSON.parse(/^event: end\ndata: (.*)$/m.exec(body)?.[1] ?? "{}");
  } catch {
    return {};
  }
}

/** The sentence inside an error's body, in whichever dialect; what is no JSON is given as it is, if it is short. */
function messageIn(body) {
  const data = /^data: ?(.*)$/m.exec(body)?.[1];
  try {
    const json = JSON.parse(data ?? body);
    const first = Array.isArray(json) ? json[0] : json;
    const message = first?.error?.message ?? first?.message ?? first?.error;
    return typeof message === "string" ? message : "";
  } catch {
    return /^\s*</.test(body) ? "" : body.trim().slice(0, 300);
  }
}

/** Seconds of a Retry-After, which is a number or a date; 0 where it says nothing. */
function waitOf(value) {
  if (!value) return 0;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : 0;
}

/**
 * What the fields of an answer tell of the limits: `[{kind, name, remaining, quota, note}]`, ours first; the kind is
 * `requests`, `tokens` or `vendor`.
 */
function limitsIn(headers) {
  const members = (value) =>
    [...(value ?? "").matchAll(/"([^"]*)"((?:;\s*[a-z]+=(?:\d+|"[^"]*"))*)/g)].map(([, name, text]) => ({
      name,
      qu: /;\s*qu="([^"]*)"/.exec(text)?.[1],
      ...Object.fromEntries([...text.matchAll(/([a-z]+)=(\d+)/g)].map(([, key, number]) => [key, Number(number)])),
    }));
  const policies = new Map(members(headers.get("ratelimit-policy")).map((policy) => [policy.name, policy]));
  const limits = members(headers.get("ratelimit")).map(({ name, qu, r, t }) => {
    const { q, w, qu: unit } = policies.get(name) ?? {};
    const kind = (unit ?? qu) === "tokens" ? "tokens" : "requests";
    const whole = t ? (r === 0 ? `next in ${roughly(t)}` : `full again in ${roughly(t)}`) : "";
    return { kind, name: w ? `${kind} per ${windowOf(w)}` : kind, remaining: r ?? 0, quota: q, note: whole };
  });
  const counts = (prefix, unit, kind, name) => {
    const remaining = Number.parseInt(headers.get(`${prefix}-remaining-${unit}`) ?? "", 10);
    const quota = Number.parseInt(headers.get(`${prefix}-limit-${unit}`) ?? "", 10);
    if (Number.isFinite(remaining)) {
      limits.push({ kind, name, remaining, quota: Number.isFinite(quota) ? quota : undefined, note: "" });
    }
  };
  if (!limits.some(({ kind }) => kind === "tokens")) counts("x-ratelimit", "tokens", "tokens", "tokens");
  for (const unit of ["requests", "tokens"]) counts("x-upstream-ratelimit", unit, "vendor", `vendor’s ${unit}`);
  return limits;
}

/** A window of a rate, as it stands behind "per". */
function windowOf(seconds) {
  return seconds === 1 ? "second" : spanOf(seconds).replace(/^1 (?=[mhd])/, "");
}

/** Dollars, with as many digits as say something. */
function money(dollars) {
  const digits = dollars >= 1 || dollars === 0 ? { minimumFractionDigits: 2, maximumFractionDigits: 2 } : { maximumSignificantDigits: 3 };
  return `$${dollars.toLocaleString("en", digits)}`;
}

function countWords(count) {
  return count === 1 ? "1 event" : `${count.toLocaleString("en")} events`;
}

/** Why the model ended, where that was not because it had said everything. */
function reasonWords(reason) {
  if (!reason || /^(stop|end_turn|completed)$/i.test(reason)) return "";
  return /length|max_tokens/i.test(reason) ? "the model reached its length limit" : `ended by ${reason}`;
}

/** A time to wait, rounded up to what a person plans with. */
function roughly(seconds) {
  if (seconds <= 120) return `${Math.ceil(seconds)} s`;
  if (seconds <= 7200) return `${Math.ceil(seconds / 60)} min`;
  return seconds <= 172_800 ? `${Math.ceil(seconds / 3600)} h` : `${Math.ceil(seconds / 86_400)} days`;
}

function spanOf(seconds) {
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([size]) => seconds % size === 0) ?? [1, "second"];
  const count = seconds / size;
  return unit === "second" ? `${count} s` : `${count} ${unit}${count === 1 ? "" : "s"}`;
}
