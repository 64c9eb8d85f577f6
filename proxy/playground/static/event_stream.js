"use strict";

/**
 * Reads an event stream piece by piece, by the WHATWG rules, however it was cut up on its way.
 *
 * `feed` gives the blocks that were completed by these bytes: `{name, data, hasData, raw}`. A block without data is a
 * comment, which a reader of events skips and which is shown all the same. An unfinished block waits, up to a bound.
 */
class EventStreamReader {
  // An image comes as one line; more than this is not an event but an attack on the page's memory.
  static MAX_BLOCK_CHARS = 32 * 1024 * 1024;

  #decoder = new TextDecoder();
  #line = "";
  #lines = [];
  #chars = 0;
  #endedWithReturn = false;

  feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return [];
    if (this.#endedWithReturn && text.startsWith("\n")) {
      // The second half of a CRLF whose first half ended the line already.
      text = text.slice(1);
    }
    this.#endedWithReturn = text.endsWith("\r");
    const lines = text.split(/\r\n|\n|\r/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    const blocks = [];
    for (const line of lines) {
      if (line !== "") {
        this.#lines.push(line);
        this.#chars += line.length;
      } else if (this.#lines.length > 0) {
        blocks.push(EventStreamReader.#block(this.#lines));
        this.#lines = [];
        this.#chars = 0;
      }
    }
    if (this.#chars + this.#line.length > EventStreamReader.MAX_BLOCK_CHARS) {
      throw new RangeError("One event of the answer is too large to be read here.");
    }
    return blocks;
  }

  /** Whether the stream stands inside an event: an end here is no clean one. */
  get isInsideBlock() {
    return this.#line !== "" || this.#lines.length > 0;
  }

  static #block(lines) {
    let name = "";
    const data = [];
    for (const line of lines) {
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      let value = colon < 0 ? "" : line.slice(colon + 1);
      if (value.startsWith(" ")) value = value.slice(1);
      if (field === "event") name = value;
      else if (field === "data") data.push(value);
    }
    return { name, data: data.join("\n"), hasData: data.length > 0, raw: lines.join("\n") };
  }
}
