"use strict";

/**
 * What the person has used and what is left, as the proxy tells it: `GET /forward-sse/usage`.
 *
 * `{rows, limits}`, with rows of the last seven days by day and model. Money is a decimal in a text, and is reckoned in
 * whole billionths of a dollar.
 */
const usage = (() => {
  const NANO_DIGITS = 9;

  function nano(text) {
    const [whole, rest = ""] = String(text).split(".");
    return BigInt(whole + rest.slice(0, NANO_DIGITS).padEnd(NANO_DIGITS, "0"));
  }

  function dollars(nanos) {
    return Number(nanos) / 1e9;
  }

  /** What remains of a limit, in words: `60-per-10s`, `100000-tokens-per-1m`, `50-usd-per-month`. */
  function limitOf({ kind, name, limit, used, reserved, resets_at }) {
    const isMoney = kind === "usd";
    const amount = (value) => (isMoney ? dollars(nano(value)) : Number(value));
    const period = /-per-(.+)$/.exec(name ?? "")?.[1] ?? "";
    const rate = /^(\d+)(us|ms|s|m|h|d)$/.exec(period);
    const seconds = rate ? Number(rate[1]) * { us: 1e-6, ms: 1e-3, s: 1, m: 60, h: 3600, d: 86400 }[rate[2]] : 0;
    const span = rate ? `per ${windowOf(seconds)}` : period === "day" ? "today" : period ? `this ${period}` : "left";
    const left_s = (Date.parse(resets_at) - Date.now()) / 1000;
    const remaining = Math.max(0, amount(limit) - amount(used) - amount(reserved));
    const note = !(left_s > 0) || remaining === amount(limit)
      ? ""
      : `${rate ? "full again" : "renewed"} in ${roughly(left_s)}`;
    return {
      kind,
      name: isMoney ? span : `${kind} ${span}`,
      remaining,
      quota: amount(limit),
      note,
      // Down to the cent: what is shown as left is there.
      write: isMoney ? (value) => money(value >= 1 ? Math.floor(value * 100 + 1e-6) / 100 : value) : undefined,
    };
  }

  /** The sums of some rows. */
  function sumOf(rows) {
    const total = { requests: 0, input: 0, output: 0, nano: 0n, unpriced: 0 };
    for (const row of rows) {
      total.requests += row.requests;
      total.input += row.input_tokens;
      total.output += row.output_tokens;
      total.nano += nano(row.cost_usd);
      total.unpriced += row.unpriced ?? 0;
    }
    return total;
  }

  return {
    /** What the proxy tells now; null where it cannot. */
    async ask(root, headers) {
      try {
        const response = await fetch(`${root}forward-sse/usage`, { headers, cache: "no-store" });
        return response.ok ? await response.json() : null;
      } catch {
        return null;
      }
    },

    limits(told) {
      return listOf(told.limits).map(limitOf);
    },

    /** The last seven days in words; empty where nothing was counted. */
    week(told) {
      const { input, output, nano: cost, unpriced } = sumOf(listOf(told.rows));
      if (input + output === 0) return "";
      const price = cost > 0n || unpriced === 0 ? ` · ${money(dollars(cost))}` : "";
      return `Last 7 days: ${(input + output).toLocaleString("en")} tokens${price}`;
    },

    /**
     * What one answer took, by what was added to its model's day: null until something was, and where more than one
     * answer was, so that nobody knows which took what.
     */
    share(before, after, model) {
      const days = listOf(after.rows).map(({ day }) => day);
      const today = days.sort().at(-1);
      const of = (told) => sumOf(listOf(told.rows).filter((row) => row.day === today && row.model === model));
      const [old, now] = [of(before), of(after)];
      if (now.requests - old.requests !== 1) return null;
      return {
        input: now.input - old.input,
        output: now.output - old.output,
        cost: now.unpriced > old.unpriced ? undefined : dollars(now.nano - old.nano),
      };
    },
  };
})();
