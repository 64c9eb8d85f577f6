"use strict";

/** How figures are written. Whatever is unknown is a dash. */
const words = (() => {
  const UNKNOWN = "–";
  const whole = new Intl.NumberFormat("en");
  const short = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});

  const number = (value) => (value === null || value === undefined ? UNKNOWN : whole.format(value));
  /** Large numbers with one digit and a letter. */
  const compact = (value) => (value === null || value === undefined ? UNKNOWN : value < 10000 ? whole.format(value) : short.format(value));

  function rate(value) {
    if (value === null || value === undefined) return UNKNOWN;
    return value >= 100 ? whole.format(Math.round(value)) : value.toFixed(1);
  }

  function bytes(value) {
    const units = ["B", "KB", "MB", "GB", "TB"];
    let at = 0;
    let size = value;
    while (size >= 1000 && at < units.length - 1) {
      size /= 1000;
      at += 1;
    }
    return `${at === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${units[at]}`;
  }

  function age(milliseconds) {
    const seconds = Math.max(0, Math.floor(milliseconds / 1000));
    if (seconds < 60) return `${seconds} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${String(seconds % 60).padStart(2, "0")} s`;
    return `${Math.floor(seconds / 3600)} h ${String(Math.floor(seconds / 60) % 60).padStart(2, "0")} m`;
  }

  function milliseconds(value) {
    if (value === null || value === undefined) return UNKNOWN;
    return value < 10000 ? `${whole.format(Math.round(value))} ms` : `${(value / 1000).toFixed(1)} s`;
  }

  /** Dollars come as decimals in text; small ones keep two digits that say something. */
  function usd(text) {
    if (text === null || text === undefined) return UNKNOWN;
    const value = Number(text);
    if (value === 0) return "$0";
    if (value >= 0.01) return `$${value.toFixed(value >= 1000 ? 0 : 2).replace(/\B(?=(\d{3})+(?!\d))/, ",")}`;
    return value < 0.000001 ? "<$0.000001" : `$${Number(value.toPrecision(2)).toFixed(6).replace(/0+$/, "")}`;
  }

  const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many ?? `${one}s`}`;

  /** The largest of some counts: `12 × rate_limit_exceeded · 3 × draining`. */
  function largest(counts, {most = 3, times = " × "} = {}) {
    const sorted = Object.entries(counts).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
    return sorted.slice(0, most).map(([name, count]) => `${compact(count)}${times}${name}`).join(" · ");
  }

  return {UNKNOWN, number, compact, rate, bytes, age, milliseconds, usd, plural, largest};
})();
