"use strict";

/**
 * What each vendor's API is asked, and where its events keep text, thoughts, pictures, usage and errors.
 *
 * An API is `{label, think, request, read}`. `request({model, prompt, thinks})` gives the body, and fields beside it;
 * `read(json, sink)` tells the sink what one event says: `text`, `think`, `image(url, key)` (a later one of the same key
 * replaces it), `usage({input, output, thinking, total})`, `fail(message, code)`, `done(reason)`.
 */
const APIS = {
  chat: {
    label: "Chat completions",
    // OpenAI's own models refuse a parameter they do not know; these think only when they are asked to.
    think: (model) => /^(qwen|qwq|deepseek|glm)/i.test(model),
    request: ({ model, prompt, thinks }) => ({
      body: {
        model,
        stream: true,
        stream_options: { include_usage: true },
        messages: [{ role: "user", content: prompt }],
        ...(thinks ? { enable_thinking: true } : {}),
      },
    }),
    read(json, sink) {
      if (json.error) sink.fail(json.error.message, json.error.code);
      for (const choice of listOf(json.choices)) {
        const delta = choice.delta ?? choice.message ?? {};
        sink.think(delta.reasoning_content ?? delta.reasoning);
        readParts(delta.content, sink);
        for (const image of listOf(delta.images)) sink.image(image?.image_url?.url);
        if (choice.finish_reason) sink.done(choice.finish_reason);
      }
      const usage = json.usage;
      if (usage) {
        sink.usage({
          input: usage.prompt_tokens,
          output: usage.completion_tokens,
          thinking: usage.completion_tokens_details?.reasoning_tokens,
          total: usage.total_tokens,
        });
      }
    },
  },

  responses: {
    label: "Responses",
    think: () => true,
    request: ({ model, prompt, thinks }) => ({
      body: { model, stream: true, input: prompt, ...(thinks ? { reasoning: { summary: "auto" } } : {}) },
    }),
    read(json, sink) {
      const picture = (base64, id) => sink.image(`data:image/${json.output_format ?? "png"};base64,${base64}`, id);
      switch (json.type) {
        case "response.output_text.delta":
        case "response.refusal.delta":
          sink.text(json.delta);
          break;
        case "response.reasoning_text.delta":
        case "response.reasoning_summary_text.delta":
          sink.think(json.delta);
          break;
        case "response.image_generation_call.partial_image":
          picture(json.partial_image_b64, json.item_id);
          break;
        case "response.output_item.done":
          if (json.item?.type === "image_generation_call" && json.item.result) picture(json.item.result, json.item.id);
          break;
        case "response.completed":
        case "response.incomplete":
          readTokens(json.response?.usage, sink);
          sink.done(json.response?.incomplete_details?.reason ?? "completed");
          break;
        case "response.failed":
          sink.fail(json.response?.error?.message, json.response?.error?.code);
          break;
        case "error":
          sink.fail(json.message, json.code);
          break;
        default:
          if (json.error) sink.fail(json.error.message, json.error.code);
      }
    },
  },

  messages: {
    label: "Messages",
    think: () => true,
    request: ({ model, prompt, thinks }) => ({
      headers: { "anthropic-version": "2023-06-01" },
      body: {
        model,
        stream: true,
        max_tokens: 4096,
        messages: [{ role: "user", content: prompt }],
        ...(thinks ? { thinking: { type: "enabled", budget_tokens: 2048 } } : {}),
      },
    }),
    read(json, sink) {
      switch (json.type) {
        case "message_start":
          readTokens(json.message?.usage, sink);
          break;
        case "content_block_start":
          sink.text(json.content_block?.text);
          break;
        case "content_block_delta":
          sink.text(json.delta?.text);
          sink.think(json.delta?.thinking);
          break;
        case "message_delta":
          readTokens(json.usage, sink);
          if (json.delta?.stop_reason) sink.done(json.delta.stop_reason);
          break;
        case "message_stop":
          sink.done();
          break;
        case "error":
          sink.fail(json.error?.message, json.error?.code ?? json.error?.type);
      }
    },
  },

  generate: {
    label: "Generate content",
    think: () => true,
    request: ({ prompt, thinks }) => ({
      body: {
        contents: [{ role: "user", parts: [{ text: prompt }] }],
        ...(thinks ? { generationConfig: { thinkingConfig: { includeThoughts: true } } } : {}),
      },
    }),
    read(json, sink) {
      if (json.error) sink.fail(json.error.message, json.error.details?.[0]?.reason ?? json.error.status);
      if (json.promptFeedback?.blockReason) {
        sink.fail(`The prompt was blocked: ${json.promptFeedback.blockReason}.`, "blocked");
      }
      for (const candidate of listOf(json.candidates)) {
        for (const part of listOf(candidate.content?.parts)) {
          if (part.thought) sink.think(part.text);
          else sink.text(part.text);
          const inline = part.inlineData ?? part.inline_data;
          if (inline) sink.image(`data:${inline.mimeType ?? inline.mime_type};base64,${inline.data}`);
        }
        if (candidate.finishReason) sink.done(candidate.finishReason);
      }
      const usage = json.usageMetadata;
      if (usage) {
        sink.usage({
          input: usage.promptTokenCount,
          output: usage.candidatesTokenCount,
          thinking: usage.thoughtsTokenCount,
          total: usage.totalTokenCount,
        });
      }
    },
  },

  text: {
    label: "Text generation",
    think: () => true,
    request: ({ model, prompt, thinks }) => ({
      body: {
        model,
        input: { messages: [{ role: "user", content: prompt }] },
        parameters: { result_format: "message", incremental_output: true, ...(thinks ? { enable_thinking: true } : {}) },
      },
    }),
    read: readDashScope,
  },

  multimodal: {
    label: "Multimodal",
    think: () => true,
    request: ({ model, prompt, thinks }) => ({
      headers: { "X-DashScope-SSE": "enable" },
      body: {
        model,
        input: { messages: [{ role: "user", content: [{ text: prompt }] }] },
        parameters: { incremental_output: true, ...(thinks ? { enable_thinking: true } : {}) },
      },
    }),
    read: readDashScope,
  },

  application: {
    label: "Application",
    think: () => true,
    request: ({ prompt, thinks }) => ({
      headers: { "X-DashScope-SSE": "enable" },
      body: { input: { prompt }, parameters: { incremental_output: true, ...(thinks ? { has_thoughts: true } : {}) } },
    }),
    read: readDashScope,
  },
};

function readDashScope(json, sink) {
  if (json.code && json.message) sink.fail(json.message, json.code);
  const output = json.output ?? {};
  sink.think(output.reasoning_content);
  sink.text(output.text);
  if (output.finish_reason && output.finish_reason !== "null") sink.done(output.finish_reason);
  for (const choice of listOf(output.choices)) {
    sink.think(choice.message?.reasoning_content);
    readParts(choice.message?.content, sink);
    if (choice.finish_reason && choice.finish_reason !== "null") sink.done(choice.finish_reason);
  }
  const usage = json.usage?.models?.[0] ?? json.usage;
  readTokens(usage, sink);
}

/** What kind of translated event it is, in lower case; null for what is none. `names` has the operator's own. */
function typedKind(json, names) {
  const own = Object.entries(names ?? {}).find(([, name]) => name === json.t);
  if (own !== undefined && "r" in json) return own[0].toLowerCase();
  if (typeof json.t !== "string") return null;
  const kind = json.t.toLowerCase();
  return "r" in json || /^(end|cancelled)$/.test(kind) ? kind : null;
}

/** Translated streams (`events: typed`): one shape for every vendor, known by its two members. */
function readTyped(kind, json, sink) {
  switch (kind) {
    case "text":
      return sink.text(json.r);
    case "think":
      return sink.think(json.r);
    case "image":
      return sink.image(json.r);
    case "error":
      return sink.fail(json.r, json.code);
    case "cancelled":
      return sink.fail("The stream was stopped at the proxy.", "stopped");
    case "end":
      readTold(json.usage, sink);
      return sink.done();
  }
}

/** Usage in the proxy's own words, as a typed `End` and a ticket's `end` have it. */
function readTold(usage, sink) {
  if (!usage) return;
  const cost = usage.cost_usd === undefined ? undefined : Number(usage.cost_usd);
  sink.usage({ input: usage.input, output: usage.output, total: usage.total, cost }, usage.source === "estimated");
}

/** The last event of a ticket's stream, `end`: how it ended, and what it took. */
function readTicketEnd(block, sink) {
  let json;
  try {
    json = JSON.parse(block.data);
  } catch {
    return;
  }
  readTold(json.usage, sink);
  if (json.ending === "complete") sink.done();
  else sink.fail("", json.code ?? json.ending);
}

/** Content as one text, or as a list of parts. */
function readParts(content, sink) {
  if (typeof content === "string") return sink.text(content);
  for (const part of listOf(content)) {
    sink.text(part.text);
    if (part.image) sink.image(part.image);
    if (part.image_url) sink.image(part.image_url.url ?? part.image_url);
  }
}

function readTokens(usage, sink) {
  if (!usage) return;
  sink.usage({
    input: usage.input_tokens,
    output: usage.output_tokens,
    thinking: usage.output_tokens_details?.reasoning_tokens,
    total: usage.total_tokens,
  });
}

function listOf(value) {
  return Array.isArray(value) ? value.filter((item) => item !== null && typeof item === "object") : [];
}

/** Tell the sink what one event says. What cannot be read is shown among the raw events and is no error. */
function readEvent(api, block, sink, names) {
  if (block.data === "[DONE]") return sink.done();
  let json;
  try {
    json = JSON.parse(block.data);
  } catch {
    return;
  }
  if (json === null || typeof json !== "object") return;
  const kind = typedKind(json, names);
  if (kind !== null) readTyped(kind, json, sink);
  else APIS[api].read(json, sink);
}

/** The ways to ask an upstream, the usual one first: `{id, label, path}`, the path below the proxy's root. */
function waysOf(upstream) {
  const name = encodeURIComponent(upstream.name);
  const path = upstream.path ?? "";
  const usual = (id) => ({ id, label: APIS[id].label, path: () => `forward-sse?upstream=${name}` });
  const other = (id, below) => ({ id, label: APIS[id].label, path: () => name + below });
  switch (upstream.dialect) {
    case "openai":
      if (path.split("?")[0].endsWith("/responses")) return [usual("responses")];
      if (!path.endsWith("/chat/completions")) return [usual("chat")];
      return [usual("chat"), other("responses", path.replace(/chat\/completions$/, "responses"))];
    case "anthropic":
      return [usual("messages")];
    case "gemini": {
      if (path) return [{ ...usual("generate"), path: () => `forward-sse?upstream=${name}&alt=sse` }];
      const below = (model) => `${name}/v1beta/models/${encodeURIComponent(model)}:streamGenerateContent?alt=sse`;
      return [{ id: "generate", label: APIS.generate.label, path: below }];
    }
    case "dashscope":
      if (path.includes("/multimodal-generation/")) return [usual("multimodal")];
      if (path.includes("/apps/")) return [usual("application")];
      return [usual("text"), other("multimodal", "/api/v1/services/aigc/multimodal-generation/generation")];
    default:
      return [usual("chat")];
  }
}

/** The forms in which an answer can be had, the vendor's own first: `{id, label}`. A ticket stands for `POST /forward-sse`. */
function formsOf(upstream, way) {
  const forms = [{ id: "plain", label: "Vendor’s own" }];
  if (upstream.dialect !== "raw") forms.push({ id: "typed", label: "Typed events" });
  if (way.path("").startsWith("forward-sse?")) forms.push({ id: "ticket", label: "By ticket" });
  return forms;
}

// Names that people know, to begin with; which of them an upstream serves, its globs say. Any other can be typed.
const KNOWN_MODELS = [
  "gpt-4o",
  "gpt-4o-mini",
  "gpt-image-1",
  "o4-mini",
  "qwen-plus",
  "qwen3-max",
  "qwen3-30b-a3b-thinking-2507",
  "qwen-image",
  "claude-sonnet-4-5",
  "claude-haiku-4-5",
  "gemini-2.5-flash",
  "gemini-2.5-pro",
  "gemini-2.5-flash-image",
];
const KNOWN_PREFIXES = { openai: /^(gpt-|o\d)/, dashscope: /^qwen/, anthropic: /^claude/, gemini: /^gemini/ };

/** Models to offer for an upstream: those it names, those known that its globs match, else its dialect's. */
function modelsOf(upstream) {
  const literal = upstream.models.filter((glob) => !/[*?[]/.test(glob));
  const patterns = upstream.models.map((glob) => {
    const escaped = glob.replace(/[.+^${}()|[\]\\]/g, "\\$&");
    return new RegExp(`^${escaped.replace(/\*/g, ".*").replace(/\?/g, ".")}$`);
  });
  const known = KNOWN_MODELS.filter((model) => patterns.some((pattern) => pattern.test(model)));
  const models = [...new Set([...literal, ...known])];
  if (models.length > 0) return models;
  if (upstream.models.length > 0) return upstream.models.map((glob) => glob.replace(/[-.:/]?[*?[].*$/, "")).filter(Boolean);
  return KNOWN_MODELS.filter((model) => KNOWN_PREFIXES[upstream.dialect]?.test(model));
}
