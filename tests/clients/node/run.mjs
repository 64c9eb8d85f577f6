// Runs every Node client for the tests: one call a line on standard input, what was heard a line on standard output.
// One process for all of them, because starting Node and loading an SDK costs more than any call.

import { createInterface } from 'node:readline';
import * as ai from './ai.mjs';
import * as anthropic from './anthropic.mjs';
import { failureOf } from './failures.mjs';
import * as google from './google.mjs';
import * as openai from './openai.mjs';

const clients = { ...ai.clients, ...anthropic.clients, ...google.clients, ...openai.clients };

// Standard output is for answers alone; a client that has something to say says it to whoever reads the test's errors.
console.log = console.info = console.error;

/** What a program got from its client. */
class Heard {
  text = '';
  thought = '';
  usage = null;
  failure = null;
  pieces = 0;
  #leavesAfter;

  constructor(leavesAfter) {
    this.#leavesAfter = leavesAfter;
  }

  /** Take a piece of text; clients give none and empty ones between. */
  add(text) {
    if (!text) return;
    this.text += text;
    this.pieces += 1;
  }

  /** True when the program has read as much as it wants. */
  get isEnough() {
    return this.#leavesAfter !== null && this.pieces >= this.#leavesAfter;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const call = JSON.parse(line);
  const heard = new Heard(call.leavesAfter);
  try {
    await clients[call.client](call, heard);
  } catch (error) {
    heard.failure = failureOf(error);
  }
  process.stdout.write(`${JSON.stringify(heard)}\n`);
}
