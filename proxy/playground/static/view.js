"use strict";

/**
 * What the person sees of one answer. Everything is written as text, never as markup, and painted at most once a frame.
 *
 * Nothing grows without end: text, thoughts, pictures and raw events each have a bound, and what is left out is told.
 */
const view = (() => {
  const MAX_CHARS = 1_000_000;
  const MAX_IMAGES = 16;
  const MAX_RAW = 200;
  const MAX_RAW_CHARS = 600;
  const BINS = 120;

  const element = (id) => document.getElementById(id);
  const answer = element("answer");
  const rawList = element("raw");
  const canvas = element("arrivals");

  /** A text that grows: added to at once, painted later, kept up to a bound. */
  class Growing {
    #node = document.createTextNode("");
    #waiting = "";
    #room = MAX_CHARS;
    #left = 0;

    constructor(place, whole) {
      this.place = place;
      this.whole = whole;
      place.replaceChildren(this.#node);
      whole.hidden = true;
    }

    add(text) {
      const kept = text.slice(0, this.#room);
      this.#room -= kept.length;
      this.#left += text.length - kept.length;
      this.#waiting += kept;
    }

    paint() {
      if (this.#waiting === "" && this.#left === 0) return;
      this.whole.hidden = false;
      this.#node.appendData(this.#waiting);
      this.#waiting = "";
      if (this.#left > 0 && this.place.lastChild === this.#node) {
        this.place.append(document.createTextNode("\n… the rest is too long to be shown here."));
      }
    }
  }

  // The newest event stays in sight until the person scrolls away from it.
  rawList.addEventListener("scroll", () => {
    raw.isFollowing = rawList.scrollHeight - rawList.scrollTop - rawList.clientHeight < 48;
  });

  let text, thoughts, images, raw, bins, numbers, isPaintAsked, isEmpty;

  function reset() {
    text = new Growing(element("text"), element("text"));
    thoughts = new Growing(element("thoughts"), element("thinking"));
    images = new Map();
    element("images").replaceChildren();
    element("images").hidden = true;
    raw = { waiting: [], seen: 0, dropped: 0, isFollowing: true };
    rawList.replaceChildren();
    bins = { width_ms: 25, counts: new Uint32Array(BINS) };
    numbers = {};
    isPaintAsked = false;
    isEmpty = true;
    element("cut").hidden = true;
    element("facts").hidden = true;
    element("notice").hidden = true;
    for (const id of ["first-byte", "pace", "count", "time", "tokens", "cost"]) element(id).textContent = "–";
    element("tokens").title = "";
    paint();
  }

  function askPaint() {
    if (isPaintAsked) return;
    isPaintAsked = true;
    // A hidden tab paints no frames, and its text has to go somewhere.
    if (document.hidden) setTimeout(paint, 250);
    else requestAnimationFrame(paint);
  }

  function paint() {
    isPaintAsked = false;
    text.paint();
    thoughts.paint();
    element("empty").hidden = !isEmpty;
    paintRaw();
    paintNumbers();
    paintArrivals();
  }

  function paintRaw() {
    element("raw-empty").hidden = raw.seen > 0;
    rawList.hidden = raw.seen === 0;
    if (raw.waiting.length > 0) {
      rawList.append(...raw.waiting.map(rawItem));
      raw.waiting = [];
      while (rawList.childElementCount > MAX_RAW) {
        rawList.firstElementChild.remove();
        raw.dropped += 1;
      }
      if (raw.isFollowing) rawList.scrollTop = rawList.scrollHeight;
    }
    element("raw-count").textContent = raw.dropped > 0
      ? `last ${MAX_RAW} of ${format(raw.seen)}, ${format(raw.dropped)} dropped`
      : raw.seen > 0 ? format(raw.seen) : "";
  }

  function rawItem({ block, number, at_ms }) {
    const item = document.createElement("li");
    const head = document.createElement("div");
    const body = document.createElement("code");
    const part = (className, content) => {
      const span = document.createElement("span");
      span.className = className;
      span.textContent = content;
      head.append(span);
    };
    head.className = "raw-head";
    part("raw-number", String(number));
    part("raw-name", block.hasData ? block.name || "message" : "comment");
    part("raw-time", `+${duration(at_ms)}`);
    body.textContent = block.raw.length > MAX_RAW_CHARS
      ? `${block.raw.slice(0, MAX_RAW_CHARS)} … ${format(block.raw.length - MAX_RAW_CHARS)} more characters`
      : block.raw;
    if (!block.hasData) item.className = "raw-comment";
    item.append(head, body);
    return item;
  }

  function paintNumbers() {
    const { first_ms, count, firstEvent_ms, lastEvent_ms, time_ms, usage } = numbers;
    if (first_ms !== undefined) element("first-byte").textContent = duration(first_ms);
    if (count !== undefined) element("count").textContent = format(count);
    if (time_ms !== undefined) element("time").textContent = duration(time_ms);
    const span_ms = lastEvent_ms - firstEvent_ms;
    if (count > 1 && span_ms > 0) {
      const pace = ((count - 1) * 1000) / span_ms;
      element("pace").textContent = pace >= 100 ? format(Math.round(pace)) : pace.toFixed(1);
    }
    if (usage) {
      const place = element("tokens");
      const shown = (value) => (value === undefined ? "–" : format(value));
      const about = numbers.isEstimated ? "≈ " : "";
      place.textContent = `${about}${shown(usage.input)} in · ${shown(usage.output)} out`;
      if (usage.cost !== undefined) element("cost").textContent = about + money(usage.cost);
      const more = [usage.thinking ? `${format(usage.thinking)} of thinking` : "", usage.total !== undefined ? `${format(usage.total)} in all` : ""];
      place.title = more.filter(Boolean).join(", ");
    }
  }

  /** How the events came, as bars over time; the bars merge in pairs when there is no room for more of them. */
  function paintArrivals() {
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const step = width / BINS;
    const peak = Math.max(1, ...bins.counts);
    const shown = Math.min(BINS, Math.ceil((numbers.time_ms ?? 0) / bins.width_ms));
    for (let index = 0; index < BINS; index += 1) {
      const count = bins.counts[index];
      const tall = count > 0 ? Math.max(4, (height - 2) * Math.sqrt(count / peak)) : 2;
      context.fillStyle = count > 0 ? style.color : style.borderTopColor;
      context.globalAlpha = index < shown || count > 0 ? 1 : 0.45;
      context.fillRect(index * step + step * 0.2, height - tall, Math.max(1, step * 0.6), tall);
    }
  }

  function arrived(at_ms) {
    while (at_ms >= bins.width_ms * BINS) {
      const merged = new Uint32Array(BINS);
      for (let index = 0; index < BINS; index += 1) merged[index >> 1] += bins.counts[index];
      bins = { width_ms: bins.width_ms * 2, counts: merged };
    }
    bins.counts[Math.floor(at_ms / bins.width_ms)] += 1;
  }

  function format(number) {
    return Math.round(number).toLocaleString("en");
  }

  function duration(ms) {
    if (ms < 1000) return `${Math.round(ms)} ms`;
    return ms < 60_000 ? `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s` : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
  }

  /** Only what can be nothing but a picture, and only from where nobody can listen in. */
  function isPicture(url) {
    if (typeof url !== "string") return false;
    return /^data:image\/[a-z0-9.+-]+[;,]/i.test(url) || (/^https:\/\//i.test(url) && URL.canParse(url));
  }

  return {
    reset,
    duration,
    format,

    /** The state's word and look: idle, waiting, streaming, complete, stopped, cut, refused. */
    state(name, word) {
      answer.dataset.state = name;
      element("state").textContent = word;
      answer.setAttribute("aria-busy", String(name === "waiting" || name === "streaming"));
    },

    asked(words) {
      element("asked").textContent = words;
    },

    block(block, at_ms) {
      raw.seen += 1;
      raw.waiting.push({ block, number: raw.seen, at_ms });
      if (raw.waiting.length > MAX_RAW) {
        raw.waiting.shift();
        raw.dropped += 1;
      }
      if (block.hasData) {
        numbers.count = (numbers.count ?? 0) + 1;
        numbers.firstEvent_ms ??= at_ms;
        numbers.lastEvent_ms = at_ms;
        arrived(at_ms);
      }
      askPaint();
    },

    tick(time_ms) {
      numbers.time_ms = time_ms;
      askPaint();
    },

    firstByte(ms) {
      numbers.first_ms = ms;
      numbers.count = 0;
      askPaint();
    },

    text(words) {
      if (typeof words !== "string" || words === "") return;
      isEmpty = false;
      text.add(words);
      askPaint();
    },

    think(words) {
      if (typeof words !== "string" || words === "") return;
      isEmpty = false;
      thoughts.add(words);
      askPaint();
    },

    image(url, key = url) {
      if (!isPicture(url)) return;
      const known = images.get(key);
      if (known) {
        known.src = url;
        return;
      }
      if (images.size >= MAX_IMAGES) return;
      const figure = document.createElement("figure");
      const picture = document.createElement("img");
      const caption = document.createElement("figcaption");
      const number = images.size + 1;
      picture.alt = `Picture ${number} of the answer`;
      picture.referrerPolicy = "no-referrer";
      picture.addEventListener("load", () => {
        caption.textContent = `${picture.naturalWidth} × ${picture.naturalHeight}`;
      });
      picture.addEventListener("error", () => {
        caption.textContent = "This picture could not be loaded";
      });
      picture.src = url;
      figure.append(picture, caption);
      images.set(key, picture);
      element("images").append(figure);
      element("images").hidden = false;
      isEmpty = false;
      askPaint();
    },

    /** Tokens, and dollars as `cost`, as far as they are known; `isEstimated` where the vendor has not said them. */
    usage(usage, isEstimated = false) {
      const told = Object.entries(usage).filter(([, value]) => Number.isFinite(value));
      if (told.length === 0) return;
      numbers.usage = { ...numbers.usage, ...Object.fromEntries(told) };
      numbers.isEstimated = isEstimated;
      askPaint();
    },

    /** What is known of the answer's usage so far. */
    get usageTold() {
      return numbers.usage ?? {};
    },

    /** Mark what is there as not the whole. */
    cut(word) {
      element("cut").firstElementChild.textContent = word;
      element("cut").hidden = false;
    },

    facts(words) {
      element("facts").textContent = words.filter(Boolean).join(" · ");
      element("facts").hidden = false;
    },

    notice({ tone, title, text: words, quote }) {
      const notice = element("notice");
      isEmpty = false;
      notice.dataset.tone = tone;
      element("notice-title").textContent = title;
      element("notice-text").textContent = words;
      element("notice-text").hidden = !words;
      element("notice-quote").textContent = quote ?? "";
      element("notice-quote").hidden = !quote;
      element("notice-action").hidden = true;
      notice.hidden = false;
    },

    limits(limits) {
      const place = element("limits");
      place.replaceChildren(...limits.map(({ name, remaining, quota, note, write = format }) => {
        const item = document.createElement("li");
        const words = document.createElement("p");
        const number = document.createElement("b");
        number.textContent = write(remaining);
        words.append(number, quota === undefined ? ` ${name}` : ` of ${write(quota)} ${name}`);
        item.append(words);
        if (quota) {
          const meter = document.createElement("div");
          const share = Math.max(0, Math.min(1, remaining / quota));
          meter.className = "meter";
          meter.dataset.low = String(share < 0.15);
          meter.append(document.createElement("span"));
          meter.firstElementChild.style.width = `${share * 100}%`;
          item.append(meter);
        }
        if (note) {
          const more = document.createElement("p");
          more.className = "fine";
          more.textContent = note;
          item.append(more);
        }
        return item;
      }));
      element("limits-none").hidden = limits.length > 0;
      element("limits-none").textContent = "Your plan has no limit of requests, tokens or money.";
    },

    /** What the person has used; nothing where that is not counted. */
    spent(words) {
      element("spent").textContent = words;
      element("spent").hidden = words === "";
    },

    /** What a screen reader says: a few words when something begins or ends, never the stream itself. */
    announce(words) {
      element("announcement").textContent = words;
    },

    /** Paint what waits, now. */
    flush: () => paint(),
    repaint: () => paintArrivals(),
  };
})();
