// One streamed answer: the text of each chunk, and the trace of its pass.

const TURN_MS = 8;

// Calls tell(text, trace) for every chunk. Throws an Error with isAnswer where the server says what is wrong.
export async function ask(request, headers, signal, tell) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers, signal, body: JSON.stringify({ ...request, stream: true }),
  });
  if (!response.ok) throw refusal((await response.json()).error);
  let isWhole = false;
  let turn = performance.now();
  for await (const data of events(response.body)) {
    if (data === "[DONE]") { isWhole = true; continue; }
    const chunk = JSON.parse(data);
    if (chunk.error) throw refusal(chunk.error);
    tell(chunk.choices[0].delta.content, chunk.slipstream);
    if (performance.now() - turn > TURN_MS) { // chunks that wait come one after another: let the page live between them
      await new Promise((go) => setTimeout(go));
      turn = performance.now();
    }
  }
  if (!isWhole) throw new Error("the stream broke off");
}

function refusal(error) {
  return Object.assign(new Error(error.message), { isAnswer: true });
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      yield text.slice("data: ".length, end);
      text = text.slice(end + 2);
    }
  }
}
