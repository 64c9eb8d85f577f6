// OpenAI's own client: chat and Responses.

import OpenAI from 'openai';

function clientOf({ base, key, headers, hasOwnRetries }) {
  return new OpenAI({ baseURL: base, apiKey: key, defaultHeaders: headers, ...(hasOwnRetries ? {} : { maxRetries: 0 }) });
}

async function chat(call, heard) {
  const stop = new AbortController();
  const stream = await clientOf(call).chat.completions.create(
    {
      model: call.model,
      stream: true,
      stream_options: { include_usage: true },
      messages: [{ role: 'user', content: call.prompt }],
    },
    { signal: stop.signal },
  );
  for await (const chunk of stream) {
    heard.add(chunk.choices[0]?.delta.content);
    if (chunk.usage) heard.usage = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens];
    if (heard.isEnough) stop.abort();
  }
}

async function responses(call, heard) {
  const stop = new AbortController();
  const stream = await clientOf(call).responses.create(
    { model: call.model, input: call.prompt, stream: true },
    { signal: stop.signal },
  );
  for await (const event of stream) {
    if (event.type === 'response.output_text.delta') heard.add(event.delta);
    if (event.type === 'response.reasoning_summary_text.delta') heard.thought += event.delta;
    if (event.type === 'response.completed') {
      heard.usage = [event.response.usage.input_tokens, event.response.usage.output_tokens];
    }
    if (event.type === 'error') throw Object.assign(new Error(event.message), { name: 'error event', code: event.code });
    if (heard.isEnough) stop.abort();
  }
}

export const clients = { 'node openai': chat, 'node openai responses': responses };
