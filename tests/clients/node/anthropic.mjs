// Anthropic's own client.

import Anthropic from '@anthropic-ai/sdk';

async function messages({ base, key, headers, hasOwnRetries, model, prompt }, heard) {
  const client = new Anthropic({
    baseURL: base,
    apiKey: key,
    defaultHeaders: headers,
    ...(hasOwnRetries ? {} : { maxRetries: 0 }),
  });
  const stop = new AbortController();
  const stream = await client.messages.create(
    { model, max_tokens: 100, stream: true, messages: [{ role: 'user', content: prompt }] },
    { signal: stop.signal },
  );
  const usage = [0, 0];
  for await (const event of stream) {
    if (event.type === 'message_start') usage[0] = event.message.usage.input_tokens;
    if (event.type === 'message_delta') heard.usage = [usage[0], event.usage.output_tokens];
    if (event.delta?.type === 'text_delta') heard.add(event.delta.text);
    if (event.delta?.type === 'thinking_delta') heard.thought += event.delta.thinking;
    if (heard.isEnough) stop.abort();
  }
}

export const clients = { 'node anthropic': messages };
