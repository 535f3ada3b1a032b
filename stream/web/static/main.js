// The frame: which part is shown, the stream of events from the server, and how the engine feels.

import { byId, clock, duration, milliseconds, nameCategories } from "./draw.js";
import * as engine from "./engine.js";
import * as user from "./user.js";
import * as you from "./you.js";

const RETRY_MS = 2000;
const GOOD_NEWS_MS = 20_000;
let source = null;
let retry = null;
let wasSilent = false;
let missed = 0; // messages that this browser was too slow for

const PARTS = ["you", "user", "engine"];
let current = ["you", ""]; // part, and what of it

function show() {
  const named = /^#(\w+)(?:\/(.*))?$/.exec(location.hash);
  if (PARTS.includes(named?.[1])) current = [named[1], decoded(named[2] ?? "")];
  const [part, key] = current;
  for (const name of PARTS) byId(`part-${name}`).hidden = name !== part;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.part === part) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  user.show(part === "user", key);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody has written it by hand
  }
}

/** Opens the stream anew; it tells all there is to show, then what changes. */
function listen() {
  clearTimeout(retry);
  source?.close();
  source = null;
  if (document.hidden) return; // a browser gives a site few connections: hidden pages hold none
  source = new EventSource(`/events?user=${encodeURIComponent(user.followed())}`);
  const on = (kind, take) => source.addEventListener(kind, (event) => take(JSON.parse(event.data)));
  on("hello", (hello) => {
    nameCategories(hello.categories);
    you.hello(hello);
  });
  on("you", you.take);
  on("user", user.take);
  on("engine", (figures) => {
    engine.take(figures);
    feel(figures);
  });
  on("rates", engine.takeRates);
  on("dropped", ({ count }) => {
    missed += count;
    listen();
  });
  source.onerror = () => {
    status("bad", "no connection to the page's server: trying again");
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(listen, RETRY_MS);
  };
}

function status(mood, text) {
  byId("status-dot").className = `dot ${mood}`;
  byId("status-text").textContent = text;
}

/** Says plainly whether the worker answers. */
function feel(figures) {
  const { worker } = figures;
  if (worker.answers) {
    const speed = figures.p50 === null ? "" : ` · half of the lists within ${milliseconds(figures.p50)}`;
    const slow = missed ? ` · ${missed} messages left out: this browser is slow` : "";
    status("good", `live · ${figures.events_per_s} events/s${speed}${slow}`);
  } else {
    status("bad", "the worker does not answer");
  }
  const alarm = byId("alarm");
  alarm.hidden = worker.answers;
  if (!worker.answers) {
    const text =
      "The worker has stopped answering: events come in, no lists come out. " +
      "Nothing is lost: the events wait on their topic until a worker is back.";
    if (alarm.firstChild?.textContent !== text) {
      alarm.replaceChildren(text, document.createElement("span"));
      alarm.lastChild.setAttribute("aria-hidden", "true"); // would be read out every second
    }
    const lag = figures.lag === null ? "" : `, ${figures.lag} events wait`;
    alarm.lastChild.textContent = ` (silent for ${duration(worker.silent_ms)}${lag})`;
  }
  const isNews = worker.answers && worker.since_ms > 0 && figures.at - worker.since_ms < GOOD_NEWS_MS;
  const notice = byId("notice");
  if (isNews && notice.hidden) {
    notice.textContent = `The worker answers again since ${clock(worker.since_ms)}, after ${duration(worker.silent_ms)} of silence.`;
  }
  notice.hidden = !isNews;
  if (wasSilent !== !worker.answers) document.title = worker.answers ? "Driftline, live" : "No answer: Driftline";
  wasSilent = !worker.answers;
}

user.start(listen);
you.start();
addEventListener("hashchange", show);
document.addEventListener("visibilitychange", listen);
show();
listen();
