// Google's own client.

import { GoogleGenAI } from '@google/genai';

async function generate({ base, key, headers, model, prompt }, heard) {
  const client = new GoogleGenAI({ apiKey: key, httpOptions: { baseUrl: base, headers } });
  const stop = new AbortController();
  const stream = await client.models.generateContentStream({
    model,
    contents: prompt,
    config: { abortSignal: stop.signal },
  });
  for await (const chunk of stream) {
    for (const part of chunk.candidates?.[0]?.content?.parts ?? []) {
      if (part.thought) heard.thought += part.text;
      else heard.add(part.text);
    }
    const usage = chunk.usageMetadata;
    if (usage) heard.usage = [usage.promptTokenCount, usage.candidatesTokenCount + (usage.thoughtsTokenCount ?? 0)];
    if (heard.isEnough) stop.abort();
  }
}

export const clients = { 'node google-genai': generate };
