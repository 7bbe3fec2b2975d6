// One answer while it comes: chunks in, a message with text, reasoning, calls and measured times out.

import { chat } from "./api.js";

/** An empty message of the model. */
export const newAnswer = () => ({ role: "assistant", content: "", reasoning: "", calls: [] });

/** Fill `message` from the model's answer to `body`; `onChange` is called after every chunk that brought something.
 * Throws what `chat` throws; what has come by then stays. */
export async function fill(message, body, signal, onChange) {
  const clock = { sent: performance.now(), first: null, last: null };
  let usage = null;
  let served = null;
  for await (const chunk of chat(body, signal)) {
    usage = chunk.usage ?? usage;
    served = chunk.baton?.choices?.[0] ?? served;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    if (take(message, choice.delta)) {
      clock.last = performance.now();
      clock.first ??= clock.last;
      onChange();
    }
    message.finish = choice.finish_reason ?? message.finish;
  }
  message.stats = stats(clock, usage, served);
}

function take(message, delta) {
  message.content += delta.content ?? "";
  message.reasoning += delta.reasoning_content ?? "";
  for (const part of delta.tool_calls ?? []) {
    const call = (message.calls[part.index] ??= { id: "", name: "", arguments: "" });
    call.id = part.id ?? call.id;
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls);
}

/** Times as this browser saw them; tokens and workers as the gateway told them. */
function stats(clock, usage, served) {
  const tokens = usage?.completion_tokens ?? 0;
  const streamed = clock.first === null ? 0 : (clock.last - clock.first) / 1000;
  return {
    firstTokenS: clock.first === null ? null : (clock.first - clock.sent) / 1000,
    tokensPerS: tokens > 1 && streamed > 0 ? (tokens - 1) / streamed : null,
    tokens,
    promptTokens: usage?.prompt_tokens ?? null,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? null,
    served,
  };
}
