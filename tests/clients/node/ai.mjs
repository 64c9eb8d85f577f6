// The `ai` SDK, over three of its providers.

import { createAnthropic } from '@ai-sdk/anthropic';
import { createGoogleGenerativeAI } from '@ai-sdk/google';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { streamText } from 'ai';

const providers = {
  'node ai openai-compatible': ({ base, key, headers }) =>
    createOpenAICompatible({ name: 'forward-sse', baseURL: base, apiKey: key, headers, includeUsage: true }),
  'node ai anthropic': ({ base, key, headers }) => createAnthropic({ baseURL: base, apiKey: key, headers }),
  'node ai google': ({ base, key, headers }) => createGoogleGenerativeAI({ baseURL: base, apiKey: key, headers }),
};

async function stream(call, heard) {
  const stop = new AbortController();
  const result = streamText({
    model: providers[call.client](call)(call.model),
    prompt: call.prompt,
    abortSignal: stop.signal,
    onError: () => {}, // without it every error is printed as well
    ...(call.hasOwnRetries ? {} : { maxRetries: 0 }),
  });
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') heard.add(part.text);
    if (part.type === 'reasoning-delta') heard.thought += part.text;
    if (part.type === 'finish') heard.usage = [part.totalUsage.inputTokens, part.totalUsage.outputTokens];
    if (part.type === 'error') throw part.error;
    if (heard.isEnough) stop.abort();
  }
}

export const clients = Object.fromEntries(Object.keys(providers).map((name) => [name, stream]));
