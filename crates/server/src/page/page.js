// The page of a bitdelta server: a chat with a user's variant beside the base, the variant's card, the server's figures,
// and trainings. It is a client as any other: all it shows comes through the interface of `openapi.json`, with the reader's
// key. Whatever the server, a model or a user wrote becomes text, never markup.

const $ = (id) => document.getElementById(id);
const KEY = "bitdelta-key";
const WATCH_MILLISECONDS = 2000;
const SAMPLES = 60;
const LINES = 8;

/** Who asks and for whom; what is under way. */
const state = {
  me: null,
  turn: 0,
  user: "",
  conversations: new Map(),
  answers: null,
  following: null,
  samples: [],
  counted: null,
};

// ---- Asking the server

/** What the server refused, or that it did not answer. */
class Problem extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function call(path, { method = "GET", body, signal } = {}) {
  const content = body === undefined ? {} : { "content-type": "application/json" };
  const request = { method, signal, headers: headers(content), cache: "no-store", credentials: "omit" };
  if (body !== undefined) request.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer.", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const message = answer?.error?.message ?? `The server answers ${response.status}.`;
  throw new Problem(message, response.status, Number(response.headers.get("retry-after")));
}

const json = async (path, options) => (await call(path, options)).json();

/** The `data:` payloads of a stream of server-sent events, up to `[DONE]`. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Problem("The server broke off.", 0);
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const ofUser = (user, rest = "") => `v1/variants/${encodeURIComponent(user)}${rest}`;
const may = (...rights) => rights.some((right) => state.me?.rights.includes(right));

// ---- Saying things

function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

function button(text, action) {
  const made = element("button", "plain", text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

/** Rows of a name and a value; those without a value are left out. */
function figures(list, rows) {
  const kept = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...kept.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", String(value))]));
}

function bullets(list, lines) {
  list.replaceChildren(...lines.map((line) => element("li", "", String(line))));
}

function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  let value = count;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

const number = (value, digits = 3) => (typeof value === "number" ? Number(value.toPrecision(digits)).toString() : null);
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "short" });
const when = (seconds) => DATE.format(new Date(seconds * 1000));
const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

/** Runs an action and shows what it could not do in `place`; a server that wants a key is told so at the key's field. */
async function attempt(place, action) {
  $(place).textContent = "";
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) askForKey(error.message);
    else $(place).textContent = error.retryAfter ? `${error.message} (${error.retryAfter} s)` : error.message;
    if (!(error instanceof Problem)) throw error;
  }
}

// ---- Who asks

function connection(text, kind = "") {
  $("connection").textContent = text;
  $("connection").className = `badge ${kind}`;
}

function askForKey(message) {
  connection("not signed in", "bad");
  $("who-problem").textContent = message;
  $("key").focus();
}

function showKey() {
  const kept = sessionStorage.getItem(KEY) !== null;
  $("key").value = "";
  $("key").placeholder = kept ? "a key is kept" : "";
  $("forget").hidden = !kept;
}

/** Asks who the key is, and for whom it is used. What an earlier call hears late is left. */
async function connect() {
  const turn = ++state.turn;
  showKey();
  await attempt("who-problem", async () => {
    let me;
    try {
      me = await json("v1/me");
    } catch (error) {
      if (turn !== state.turn) return;
      state.me = null;
      connection(error.status ? "not signed in" : "no answer", "bad");
      throw error;
    }
    if (turn !== state.turn) return;
    state.me = me;
    $("model").textContent = me.model;
    connection(me.key ?? "no key needed", "good");
    const asked = state.user;
    const others = asked && !me.all_users && !me.users.includes(asked);
    // A key for one user asks for that one.
    if (others || !asked) state.user = !me.all_users && me.users.length === 1 && me.variants ? me.users[0] : "";
    $("user").value = state.user;
    await listUsers();
    if (others) throw new Problem(`This key may not ask for ${asked}.`, 403);
  });
  if (turn === state.turn) await choose(state.user);
}

/** The users that may be asked for, as the models `base:user`. */
async function listUsers() {
  if (!may("chat")) return;
  const prefix = `${state.me.model}:`;
  const { data } = await json("v1/models");
  const users = data.map(({ id }) => id).filter((id) => id.startsWith(prefix));
  $("users").replaceChildren(
    ...users.map((id) => {
      const option = element("option");
      option.value = id.slice(prefix.length);
      return option;
    }),
  );
}

async function choose(user) {
  state.answers?.abort();
  state.following?.abort();
  state.user = user;
  showConversation();
  await Promise.all([showCard(), showTraining(), showServer()]);
}

$("who").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (key) {
    sessionStorage.setItem(KEY, key);
    // Another key may be another reader.
    state.conversations.clear();
  }
  state.user = $("user").value.trim();
  await connect();
  if (!$("who-problem").textContent) $("question").focus();
});

$("forget").addEventListener("click", async () => {
  sessionStorage.removeItem(KEY);
  state.conversations.clear();
  $("user").value = state.user = "";
  await connect();
  $("key").focus();
});

// ---- The chat

/** One user's turns, and what each side was told of them: the base goes on from its own answers. */
function conversation() {
  const fresh = () => ({ turns: [], mine: [], base: [] });
  if (!state.conversations.has(state.user)) state.conversations.set(state.user, fresh());
  return state.conversations.get(state.user);
}

function showConversation() {
  $("turns").replaceChildren(...conversation().turns);
  $("beside").disabled = state.user === "";
}

function answerView(name, mine) {
  const text = document.createTextNode("");
  const note = element("p", "hint");
  const problem = element("p", "problem");
  const view = element("article", mine ? "answer mine" : "answer", element("h3", "", name));
  view.append(element("p", "text", text), note, problem);
  view.setAttribute("aria-label", `Answer of ${name}`);
  view.setAttribute("aria-busy", "true");
  return { view, text, note, problem, name };
}

async function answer(shown, messages, user, signal) {
  const began = performance.now();
  let first = null;
  let usage = null;
  let finish = null;
  try {
    const body = {
      model: state.me.model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: $("most").valueAsNumber,
      temperature: $("temperature").valueAsNumber,
    };
    if (user) body.user_id = user;
    const response = await call("v1/chat/completions", { method: "POST", body, signal });
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Problem(chunk.error.message, 200);
      const [choice] = chunk.choices;
      if (choice?.delta.content) {
        first ??= performance.now();
        const atEnd = $("turns").scrollHeight - $("turns").scrollTop - $("turns").clientHeight < 80;
        shown.text.appendData(choice.delta.content);
        if (atEnd) $("turns").scrollTop = $("turns").scrollHeight;
      }
      finish = choice?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else shown.problem.textContent = error.message;
    if (error.status === 401) askForKey(error.message);
  }
  shown.view.setAttribute("aria-busy", "false");
  const tokens = usage?.completion_tokens;
  const seconds = (performance.now() - (first ?? began)) / 1000;
  // The first token marks the beginning of the time.
  const speed = tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  shown.note.textContent = [
    tokens === undefined ? null : `${tokens} tokens`,
    speed && `${number(speed)} tokens/s`,
    first && `first after ${number((first - began) / 1000, 2)} s`,
    finish === "length" && "cut at the most tokens",
    finish === "stopped" && "stopped",
  ]
    .filter(Boolean)
    .join(" · ");
  if (speed && !may("admin")) showSpeed(speed, "tokens a second of this page's answers");
  return shown.text.data;
}

async function send() {
  const question = $("question").value.trim();
  if (!question || state.answers || !state.me) return;
  if (!$("chat").reportValidity()) return;
  const { user } = state;
  const told = conversation();
  const withBase = user === "" || $("beside").checked;
  const views = [];
  if (user) views.push({ shown: answerView(user, true), user, messages: told.mine });
  if (withBase) views.push({ shown: answerView("the base", false), user: "", messages: told.base });
  const turn = element("div", "turn", element("p", "asked", question));
  turn.append(element("div", "answers", ...views.map(({ shown }) => shown.view)));
  told.turns.push(turn);
  $("turns").append(turn);
  $("turns").scrollTop = $("turns").scrollHeight;
  $("question").value = "";
  $("question").focus();
  $("said").textContent = "Answering.";
  const answering = new AbortController();
  state.answers = answering;
  $("stop").disabled = false;
  await Promise.all(
    views.map(async ({ shown, user: asked, messages }) => {
      messages.push({ role: "user", content: question });
      const text = await answer(shown, messages, asked, answering.signal);
      // A question without an answer would leave two questions in a row, which templates refuse.
      if (text) messages.push({ role: "assistant", content: text });
      else messages.pop();
    }),
  );
  // For screen readers whole: piece by piece nobody could follow.
  const said = ({ shown }) => `${shown.name}: ${shown.text.data || shown.problem.textContent || "nothing"}`;
  $("said").textContent = views.map(said).join("\n");
  if (document.activeElement === $("stop")) $("question").focus();
  $("stop").disabled = true;
  state.answers = null;
}

$("chat").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt("chat-problem", send);
});

$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    attempt("chat-problem", send);
  }
  if (event.key === "Escape") state.answers?.abort();
});

$("stop").addEventListener("click", () => state.answers?.abort());

$("clear").addEventListener("click", () => {
  state.answers?.abort();
  state.conversations.delete(state.user);
  showConversation();
  $("question").focus();
});

// ---- The variant's card

function cardRows(card) {
  const { notes, config } = card;
  const fidelity = notes.fidelity ?? {};
  const safety = notes.safety && typeof notes.safety === "object" ? Object.entries(notes.safety) : [];
  const threshold = config.safety_threshold > 0 ? `${config.safety_threshold} wanted` : null;
  const kind = notes.training?.type ?? notes.method;
  return [
    ["File", bytes(card.bytes)],
    ["In memory", bytes(card.resident_bytes)],
    ["Bits a weight", number(card.bits_per_weight)],
    ["Retention", card.retention === null ? null : `${(card.retention * 100).toFixed(1)} %`],
    ["Loss of the base", number(fidelity.loss_base, 4)],
    ["Loss as trained", number(fidelity.loss_trained, 4)],
    ["Loss of the variant", number(fidelity.loss_variant, 4)],
    ["Held-out conversations", fidelity.held_out],
    ["Relative error", number(notes.relative_error)],
    ["Safety", safety.length ? threshold : (threshold ?? "not measured")],
    ...safety.map(([name, value]) => [`Safety: ${name.replaceAll("_", " ")}`, number(value) ?? plain(value)]),
    ["Made by", kind && plain(kind)],
    ["Steps", notes.training?.steps],
    ["Base", card.base],
    ["Hash", card.hash.slice(0, 12)],
  ];
}

async function showCard() {
  const { user } = state;
  const shown = $("card-none");
  figures($("card"), []);
  bullets($("card-warnings"), []);
  showVersions([], null);
  shown.hidden = false;
  shown.textContent = user ? "…" : "No user is chosen.";
  if (!state.me || !user) {
    $("card-problem").textContent = "";
    return;
  }
  let hash = null;
  await attempt("card-problem", async () => {
    try {
      const card = await json(ofUser(user, "/card"));
      if (state.user !== user) return;
      ({ hash } = card);
      shown.hidden = true;
      figures($("card"), cardRows(card));
      bullets($("card-warnings"), Array.isArray(card.notes.warnings) ? card.notes.warnings : []);
    } catch (error) {
      if (error.status !== 404) throw error;
      shown.textContent = `There is no variant for ${user} yet.`;
    } finally {
      if (shown.textContent === "…") shown.hidden = true;
    }
  });
  // Also of one that cannot be served: going back is the way out.
  if (!may("publish", "admin")) return;
  const variant = await json(ofUser(user)).catch(() => ({ versions: [] }));
  if (state.user === user) showVersions(variant.versions, hash);
}

function showVersions(versions, hash) {
  $("versions").hidden = $("versions-title").hidden = versions.length === 0;
  const newest = versions.at(-1);
  const line = (version) => {
    const back = version.rolled_back_to ? `, as ${version.rolled_back_to}` : "";
    const about = `Version ${version.version}${back} · ${bytes(version.bytes)} · ${when(version.created)}`;
    const item = element("li", "", element("span", "", about));
    if (version === newest && version.hash === hash) item.append(element("strong", "", "served"));
    else if (version !== newest && may("publish")) item.append(backButton(version.version));
    return item;
  };
  $("versions").replaceChildren(...versions.toReversed().map(line));
}

function backButton(version) {
  const { user } = state;
  const back = button("Roll back", () =>
    attempt("card-problem", async () => {
      back.disabled = true;
      await json(ofUser(user, "/rollback"), { method: "POST", body: { version } });
      if (state.user !== user) return;
      await showCard();
      $("said").textContent = `Rolled back to version ${version}.`;
      $("card-title").focus();
    }),
  );
  back.setAttribute("aria-label", `Roll back to version ${version}`);
  return back;
}

// ---- The server's figures

/** Values of a text of OpenMetrics by series, labels included. */
function series(text) {
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
}

function showSpeed(value, name) {
  state.samples = [...state.samples, value].slice(-SAMPLES);
  const most = Math.max(...state.samples, 1);
  const point = (sample, index) => `${(120 * index) / Math.max(state.samples.length - 1, 1)},${31 - (29 * sample) / most}`;
  $("line").querySelector("polyline").setAttribute("points", state.samples.map(point).join(" "));
  $("speed-title").textContent = `${number(value)} ${name}`;
  $("speed").hidden = false;
}

async function showServer() {
  const { me } = state;
  state.samples = [];
  state.counted = null;
  $("speed").hidden = true;
  $("server-hint").textContent = "";
  figures($("server"), []);
  if (!me) return;
  if (may("admin")) {
    await attempt("server-hint", watch);
    return;
  }
  figures($("server"), [
    ["Base in memory", bytes(me.base_bytes)],
    ["KV cache", bytes(me.kv_cache_bytes)],
    ["Context", `${me.max_context} tokens`],
    ["Requests a minute", me.requests_per_minute],
    ["Tokens a minute", me.tokens_per_minute],
  ]);
  $("server-hint").textContent = "What all users take together is shown to a key with the right to admin.";
}

/** One look at `/metrics`. */
async function watch() {
  const found = series(await (await call("metrics")).text());
  const value = (name) => found.get(`bitdelta_${name}`) ?? 0;
  const memory = (tier) => bytes(value(`memory_bytes{tier="${tier}"}`));
  const mean = (name) => value(`${name}_sum`) / value(`${name}_count`);
  const milliseconds = (seconds) => (Number.isFinite(seconds) ? `${number(seconds * 1000)} ms` : null);
  figures($("server"), [
    ["Base in memory", memory("base")],
    ["KV cache", memory("kv_cache")],
    ["Variants in memory", memory("variants")],
    ["Variants loaded", value("variants_resident")],
    ["Answers running", value("requests_running")],
    ["Requests waiting", value("requests_waiting")],
    ["Mean time to first text", milliseconds(mean("first_token_seconds"))],
    ["Mean time between pieces", milliseconds(mean("between_tokens_seconds"))],
    ["Tokens generated", value("generated_tokens_total")],
  ]);
  const counted = { tokens: value("generated_tokens_total"), at: performance.now() };
  const before = state.counted;
  state.counted = counted;
  if (before) showSpeed((1000 * (counted.tokens - before.tokens)) / (counted.at - before.at), "tokens a second");
}

/** Looks while the page is looked at, and less often where the key's requests are limited. */
async function keepWatching() {
  let pause = WATCH_MILLISECONDS;
  if (state.me && may("admin") && !document.hidden) {
    try {
      await watch();
      $("server-hint").textContent = "";
    } catch (error) {
      $("server-hint").textContent = error.message;
      pause = Math.max(pause, 1000 * (error.retryAfter || 5));
    }
  }
  const limit = state.me?.requests_per_minute;
  // A quarter of what the key may ask.
  if (limit) pause = Math.max(pause, 240000 / limit);
  setTimeout(keepWatching, pause);
}

// ---- Training

/** Conversations in a text: JSON lines, or one JSON array. */
function conversations(text) {
  const trimmed = text.trim();
  if (!trimmed) throw new Problem("There are no conversations to train on.", 0);
  if (trimmed.startsWith("[")) {
    try {
      return JSON.parse(trimmed);
    } catch (error) {
      throw new Problem(`The array is not valid JSON: ${error.message}`, 0);
    }
  }
  const lines = trimmed.split("\n").map((line, index) => [line.trim(), index + 1]);
  return lines
    .filter(([line]) => line)
    .map(([line, at]) => {
      try {
        return JSON.parse(line);
      } catch (error) {
        throw new Problem(`Line ${at} is not valid JSON: ${error.message}`, 0);
      }
    });
}

function trainingSettings(count) {
  const settings = { num_train_epochs: $("passes").valueAsNumber };
  const held = $("held").valueAsNumber;
  // Of two conversations a tenth would be one: half of what was to be learnt.
  if (held * count >= 1) settings.val_size = held;
  for (const line of $("settings").value.split("\n").filter((text) => text.trim())) {
    const at = line.indexOf("=");
    if (at < 1) throw new Problem(`"${line.trim()}" is no setting; write name=value.`, 0);
    settings[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return settings;
}

function showJob(job) {
  const { status } = job;
  const over = ["succeeded", "failed", "cancelled"].includes(status);
  const text = {
    queued: "Waiting for other trainings.",
    running: job.phase ? `Running: ${job.phase}.` : "Running.",
    succeeded: `Published as version ${job.version}.`,
    failed: `Failed: ${job.error}`,
    cancelled: "Cancelled.",
  }[status];
  // Set when it changes: a screen reader reads it at each setting.
  if ($("job-status").textContent !== text) $("job-status").textContent = text;
  const progress = $("job-progress");
  if (status === "running" && job.total > 0) {
    progress.max = job.total;
    progress.value = job.done;
  } else if (over) {
    progress.max = progress.value = 1;
  } else {
    progress.removeAttribute("value");
  }
  progress.hidden = status === "failed" || status === "cancelled";
  const count = job.total > 0 && status === "running" ? `${job.done} of ${job.total} ${job.unit}` : "";
  const { loss_base: before, loss_variant: after } = job.result ?? {};
  const losses = typeof before === "number" && typeof after === "number";
  const result = losses ? `loss ${number(before, 4)} before, ${number(after, 4)} after` : "";
  $("job-note").textContent = [count, over ? result : job.note].filter(Boolean).join(" · ");
  bullets($("job-lines"), job.messages.slice(-LINES));
  $("job").hidden = false;
  if (over && document.activeElement === $("cancel")) $("train").focus();
  $("cancel").hidden = over;
  $("train").disabled = !over;
  return over;
}

async function showTraining() {
  const { user } = state;
  const none = $("training-none");
  $("job").hidden = true;
  $("training-problem").textContent = "";
  const allowed = Boolean(state.me && user && state.me.variants && may("train"));
  $("training").hidden = !allowed;
  $("train").disabled = false;
  none.hidden = allowed;
  none.textContent = user && state.me ? "This key may not train here." : "No user is chosen.";
  if (!allowed) return;
  await attempt("training-problem", async () => {
    try {
      await json(ofUser(user, "/train"));
    } catch (error) {
      if (error.status === 404) return;
      throw error;
    }
    follow(user, false);
  });
}

/**
 * Shows a training until it is over; a connection that breaks is made again. `moved` says that it was seen before its end:
 * the card is read again then.
 */
async function follow(user, moved) {
  state.following?.abort();
  const following = new AbortController();
  state.following = following;
  const { signal } = following;
  let over = false;
  while (!over && !signal.aborted) {
    try {
      const response = await call(ofUser(user, "/train/events"), { signal });
      $("training-problem").textContent = "";
      for await (const job of events(response)) {
        if (signal.aborted) return;
        over = showJob(job);
        moved ||= !over;
      }
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      $("training-problem").textContent = error.message;
      if (error.status && error.status !== 429) return;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter || 2)));
    }
  }
  // What was over when it was first looked at is on the card already.
  if (moved && state.user === user) {
    await showCard();
    await attempt("who-problem", listUsers);
  }
}

$("training").addEventListener("submit", (event) => {
  event.preventDefault();
  const { user } = state;
  attempt("training-problem", async () => {
    const data = conversations($("lines").value);
    const body = { data, settings: trainingSettings(data.length) };
    const job = await json(ofUser(user, "/train"), { method: "POST", body });
    if (state.user !== user) return;
    showJob(job);
    follow(user, true);
  });
});

$("file").addEventListener("change", () =>
  attempt("training-problem", async () => {
    const [file] = $("file").files;
    if (file) $("lines").value = await file.text();
  }),
);

$("cancel").addEventListener("click", () =>
  attempt("training-problem", async () => {
    await json(ofUser(state.user, "/train"), { method: "DELETE" });
  }),
);

await connect();
keepWatching();
