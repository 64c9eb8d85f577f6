// What each Node client's error says, in the suite's words.

import { APICallError } from 'ai';

/** The error as its client words it: its name, and what stands in it where the client keeps that. */
export function failureOf(error) {
  // An error inside a stream is to the `ai` SDK whatever the vendor sent.
  if (!(error instanceof Error)) {
    return { name: 'error part', status: null, code: error.code ?? null, retryAfter: null, message: error.message };
  }
  const failure = { name: error.name, status: null, code: null, retryAfter: null, message: error.message };
  if (APICallError.isInstance(error)) {
    failure.status = error.statusCode ?? null;
    failure.code = codeOf(parsed(error.responseBody));
    failure.retryAfter = error.responseHeaders?.['retry-after'] ?? null;
    return failure;
  }
  // The vendors' SDKs give their errors no name of their own; the class is what a program asks for.
  if (error.name === 'Error') failure.name = error.constructor.name;
  failure.status = error.status ?? null;
  failure.code = (typeof error.code === 'string' ? error.code : null) ?? codeOf(error.error) ?? codeOf(parsed(error.message));
  failure.retryAfter = error.headers?.get?.('retry-after') ?? null;
  return failure;
}

/** The code of a refusal, where its dialect keeps it. */
function codeOf(body) {
  const error = body?.error;
  return error?.details?.[0]?.reason ?? (typeof error?.code === 'string' ? error.code : null);
}

/** Decoded JSON, with or without words before it; or nothing. */
function parsed(text) {
  try {
    return JSON.parse(text.slice(text.indexOf('{')));
  } catch {
    return null;
  }
}
