// The page: a chat that shows which tokens were guessed, and a race of plain decoding against drafts.
// It speaks to the server it came from and to nobody else.

import { drawTree } from "/page/tree.js";
import { ask } from "/page/ask.js";

const byId = (id) => document.getElementById(id);
const messages = [];
let underWay = null; // the AbortController of the answer under way
let model = "";

// -- settings ----------------------------------------------------------------------------------------------------------

function settings(method) {
  const number = (id) => Number(byId(id).value);
  return {
    model, temperature: number("temperature"), seed: number("seed"), max_tokens: number("length"),
    slipstream: { trace: true, method: method ?? byId("method").value },
  };
}

async function begin() {
  try {
    const answer = await fetch("/v1/models", { headers: headers() });
    if (answer.status === 401) return say("This server asks for an API key: give it under Settings, and send.", true);
    const [card] = (await answer.json()).data;
    model = card.id;
    byId("model").textContent = card.id;
    byId("method").replaceChildren(...card.slipstream.methods.map((name) => new Option(name)));
  } catch {
    say("The server does not answer. Start it again, and send.", true);
  }
}

function headers() {
  const key = byId("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

// -- what is shown -----------------------------------------------------------------------------------------------------

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function addMessage(who, className) {
  const article = element("article", className);
  article.append(element("h2", "", who));
  const said = element("div", "said");
  article.append(said);
  const log = byId("log");
  log.append(article);
  log.scrollTop = log.scrollHeight;
  return { article, said };
}

function addParts(said, parts) {
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const tokens = document.createDocumentFragment();
  for (const [text, drafted] of parts) {
    if (!text) continue;
    const token = element("span", drafted ? "token drafted" : "token own", text);
    if (drafted) token.title = "guessed, and kept";
    tokens.append(token);
  }
  said.append(tokens);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

// Shows what comes in, at most once a frame: a fast model has more passes a second than a screen has pictures.
// Returns add(trace) and flush(), which shows the rest at once.
function display(said, counts) {
  let parts = [];
  let draft = null;
  let frame = 0;
  function flush() {
    cancelAnimationFrame(frame);
    frame = 0;
    addParts(said, parts);
    parts = [];
    showCounts(counts);
    if (draft) drawTree(byId("tree"), byId("tree-text"), draft);
    draft = null;
  }
  function add(trace) {
    parts.push(...trace.parts);
    if (trace.draft.tokens.length) draft = trace.draft;
    frame ||= requestAnimationFrame(flush);
  }
  return { add, flush };
}

// Counts of one answer, and the time since its first tokens.
function newCounts() {
  return { tokens: 0, passes: 0, drafted: 0, accepted: 0, begun: performance.now() };
}

function count(counts, trace) {
  counts.tokens += trace.num_tokens;
  counts.passes += 1;
  counts.drafted += trace.num_drafted;
  counts.accepted += trace.num_accepted;
}

const tau = (counts) => (counts.passes ? (counts.tokens / counts.passes).toFixed(2) : "-");
const speed = (counts) => ((1000 * counts.tokens) / Math.max(1, performance.now() - counts.begun)).toFixed(1);
const kept = (counts) => (counts.drafted ? `${Math.round((100 * counts.accepted) / counts.drafted)}%` : "-");

function showCounts(counts) {
  byId("speed").textContent = speed(counts);
  byId("tau").textContent = tau(counts);
  byId("kept").textContent = kept(counts);
}

function addAbout(article, text, answer) {
  const about = element("div", "about");
  about.append(element("span", "", text));
  const copy = element("button", "small", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(answer);
    say("Copied.");
  });
  about.append(copy);
  article.append(about);
  byId("log").scrollTop = byId("log").scrollHeight;
}

// -- one answer --------------------------------------------------------------------------------------------------------

function busy(controller) {
  underWay = controller;
  for (const id of ["send", "race", "clear"]) byId(id).disabled = Boolean(controller);
  byId("stop").disabled = !controller;
}

// Runs `work` with a signal that Stop sets off, and says how it ended.
async function whileBusy(work) {
  const controller = new AbortController();
  busy(controller);
  try {
    await work(controller.signal);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped; what was said stays.");
    else say(error.isAnswer ? error.message : "The server went away. Start it again, and send once more.", true);
  } finally {
    busy(null);
    byId("question").focus();
  }
}

async function takeQuestion() {
  const text = byId("question").value.trim();
  if (!text) return null;
  if (!model) await begin();
  if (!model) return null;
  byId("question").value = "";
  messages.push({ role: "user", content: text });
  addMessage("You", "user").said.textContent = text;
  return text;
}

async function answer() {
  if (underWay || !(await takeQuestion())) return;
  const { article, said } = addMessage(byId("method").value, "assistant");
  const counts = newCounts();
  const shown = display(said, counts);
  let text = "";
  drawTree(byId("tree"), byId("tree-text"), null);
  say("Answering.");
  await whileBusy(async (signal) => {
    try {
      await ask({ ...settings(), messages }, headers(), signal, (piece, trace) => {
        text += piece;
        count(counts, trace);
        shown.add(trace);
      });
      say(`Answered: ${counts.tokens} tokens.`);
    } finally {
      shown.flush();
      if (text) messages.push({ role: "assistant", content: text });
      addAbout(article, `${counts.tokens} tokens in ${counts.passes} passes, ${speed(counts)} tokens/s`, text);
    }
  });
}

// -- the race ----------------------------------------------------------------------------------------------------------

// Both run one after the other, since two on one model would slow each other, and are then shown on one clock.
async function race() {
  if (underWay || !(await takeQuestion())) return;
  const chosen = byId("method").value;
  const runs = [];
  await whileBusy(async (signal) => {
    for (const method of ["plain", chosen]) {
      say(`Running ${method}; the race is shown when both are done.`);
      runs.push(await record(method, signal));
    }
    messages.push({ role: "assistant", content: runs[1].text });
    await replay(runs, signal);
  });
}

async function record(method, signal) {
  const run = { method, pieces: [], text: "", counts: newCounts() };
  await ask({ ...settings(method), messages }, headers(), signal, (piece, trace) => {
    run.text += piece;
    count(run.counts, trace);
    run.pieces.push({ at: performance.now() - run.counts.begun, trace });
  });
  run.seconds = (performance.now() - run.counts.begun) / 1000;
  return run;
}

async function replay(runs, signal) {
  const { article, said } = addMessage("Race", "assistant race");
  said.remove();
  const lanes = element("div", "lanes");
  article.append(lanes);
  const shown = runs.map((run) => {
    const lane = element("section", "lane");
    const title = element("h3", "", run.method);
    const text = element("div", "said");
    lane.append(title, text);
    lanes.append(lane);
    return { run, text, next: 0 };
  });
  say("The race, on one clock.");
  const begun = performance.now();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  while (shown.some((lane) => lane.next < lane.run.pieces.length)) {
    const now = signal.aborted || still ? Infinity : performance.now() - begun;
    for (const lane of shown) {
      const due = [];
      while (lane.next < lane.run.pieces.length && lane.run.pieces[lane.next].at <= now) {
        due.push(...lane.run.pieces[lane.next++].trace.parts);
      }
      if (due.length) addParts(lane.text, due);
    }
    await new Promise(requestAnimationFrame);
  }
  const [plain, drafted] = runs;
  const ratio = (plain.seconds / drafted.seconds).toFixed(2);
  const same = plain.text === drafted.text ? "the same text" : "another text, by rounding";
  const line = `${plain.method} ${plain.seconds.toFixed(2)} s, ${drafted.method} ${drafted.seconds.toFixed(2)} s: `
    + `${ratio} times plain's speed, ${tau(drafted.counts)} tokens a pass, ${same}`;
  addAbout(article, line, drafted.text);
  say(line);
}

// -- events ------------------------------------------------------------------------------------------------------------

byId("form").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
byId("race").addEventListener("click", race);
byId("stop").addEventListener("click", () => underWay?.abort());
byId("clear").addEventListener("click", () => {
  messages.length = 0;
  byId("log").replaceChildren();
  say("Cleared.");
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); answer(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") underWay?.abort(); });

begin();
