// One user: events in a line, interests now and next as streams, beside the truth where it is known.

import { allowsMotion, byId, clock, colour, duration, element, moment, onWidth, placeBody, shape, smooth } from "./draw.js";

const USERS_EVERY_MS = 3000;
const TYPING_MS = 200;
const MAX_BANDS = 8;
const STEPS_BEFORE = 6;
const byName = new Intl.Collator(undefined, { numeric: true });
let listen = () => {};
let isShown = false;
let follows = "";
let told = null;
let picked = false; // by hand

export const followed = () => follows;

export function start(reopen) {
  listen = reopen;
  let typing = null;
  byId("user-words").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(refresh, TYPING_MS);
  });
  setInterval(() => isShown && !document.hidden && refresh(), USERS_EVERY_MS);
  onWidth(byId("user-figure"), () => told && draw(false));
}

export function show(visible, key) {
  isShown = visible;
  if (visible && key) {
    picked = true;
    follow(key);
  }
  if (visible) refresh();
}

function follow(key) {
  if (key === follows) return;
  follows = key;
  told = null;
  byId("user-name").textContent = key;
  byId("user-sub").textContent = "Waiting for news of this user.";
  listen();
}

async function refresh() {
  const query = new URLSearchParams({ words: byId("user-words").value });
  const answer = await fetch(`/api/users?${query}`).catch(() => null);
  if (!answer?.ok) return;
  const { users } = await answer.json();
  if (!picked && !follows && users.length) {
    const worth = (user) => 1000 * Boolean(user.jump) + user.events;
    follow(users.reduce((best, user) => (worth(user) > worth(best) ? user : best)).key);
  }
  const place = byId("users");
  const focused = document.activeElement?.dataset?.key;
  users.sort((a, b) => byName.compare(a.name, b.name)); // or they would jump about while one aims
  place.replaceChildren(...users.map(line));
  if (!users.length) place.append(element("li", { class: "empty", text: "No user with this in the id." }));
  if (focused) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

function line(user) {
  return element(
    "li",
    {},
    element(
      "button",
      {
        type: "button",
        "data-key": user.key,
        "aria-pressed": String(user.key === follows),
        onclick: () => {
          location.hash = `user/${encodeURIComponent(user.key)}`;
        },
      },
      element("span", { class: "swatch", c: colour(user.interest) }),
      element("b", { text: user.name }),
      user.jump ? element("em", { text: "jumped" }) : element("span"),
      element("small", { text: `${user.events} events, last ${duration(Date.now() - user.active_at)} ago` }),
    ),
  );
}

export function take(user) {
  if (user.key !== follows) return;
  const grew = told && user.steps.length && told.steps.at(-1)?.at !== user.steps.at(-1).at;
  told = user;
  byId("user-name").textContent = user.name;
  byId("user-sub").textContent = sentence(user);
  draw(grew);
  table();
  const list = user.shown;
  byId("user-list-title").hidden = !list;
  byId("user-list").replaceChildren(
    ...(list?.places ?? []).slice(0, 5).map((place, at) => element("li", {}, element("div", { class: "place" }, ...placeBody(place, at + 1, null)))),
  );
  const raw = byId("user-raw");
  raw.hidden = !list;
  if (list) raw.href = `/raw/${encodeURIComponent(list.rec_id)}`;
}

function sentence(user) {
  const kind = user.is_simulated ? "A simulated user, so the truth is known" : "A user";
  let text = `${kind}: ${user.events} events, the last ${user.steps.length - hiddenSteps()} are drawn.`;
  if (user.jump) {
    const seen = user.jump_seen_after;
    text += ` Jumped to ${user.jump.label} at ${moment(user.jump.event_time)}: `;
    text += seen === null ? "next does not have it on top yet." : `next had it on top after ${seen} ${seen === 1 ? "event" : "events"}.`;
  }
  return text;
}

/** Steps with the last known weights carried on. */
function carried(kind) {
  let last = null;
  return told.steps.map((step) => (last = step[kind] ?? last));
}

/** How many old steps are left out: all but a few of those before the first estimate. */
function hiddenSteps() {
  const first = told.steps.findIndex((step) => step.now);
  return Math.max(0, first - STEPS_BEFORE);
}

function draw(grew) {
  const place = byId("user-figure");
  const steps = told.steps.slice(hiddenSteps());
  if (!steps.length) {
    place.replaceChildren(element("p", { class: "empty", text: "No events of this user are known." }));
    return;
  }
  const rows = [
    ["truth", "What is true", 92],
    ["now", "What the engine believes: now", 128],
    ["next", "What it expects next", 128],
  ]
    .map(([kind, title, height]) => ({ kind, title, height, weights: carried(kind).slice(hiddenSteps()) }))
    .filter((row) => row.weights.some((each) => each?.length));
  const width = Math.max(place.clientWidth, 260);
  const margin = width > 620 ? 104 : 8;
  const left = 10;
  const stepWidth = (width - left - margin) / Math.max(steps.length - 1, 1);
  const x = (at) => left + at * stepWidth;
  const moving = shape("g");
  const still = shape("g");
  const eventsAt = 48;
  events(moving, steps, x, eventsAt, stepWidth);
  still.append(shape("text", { class: "strong", x: 0, y: 12, text: "What happened" }));
  let top = eventsAt + 30;
  const labels = new Set();
  for (const row of rows) {
    still.append(shape("text", { class: "strong", x: 0, y: top + 8, text: row.title }));
    bands(moving, still, row, x, top + 16, width - margin + 8, margin > 50, labels);
    top += row.height + 34;
  }
  mark(moving, steps, x, eventsAt - 14, top - 18, width);
  times(still, steps, x, top - 4, width - margin);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${top + 6}`, role: "img", "aria-label": alternative() }, moving, still);
  place.replaceChildren(drawing);
  if (grew && allowsMotion()) {
    moving.animate([{ transform: `translateX(${Math.min(stepWidth, 40)}px)` }, { transform: "none" }], { duration: 450, easing: "ease-out" });
  }
  for (const step of steps) if (step.item) labels.add(step.item.category);
  byId("user-legend").replaceChildren(
    ...[...labels].sort().map((label) => element("li", { c: colour(label) }, element("i"), label || "no category")),
    element("li", {}, "○ visit"),
  );
}

function events(group, steps, x, y, stepWidth) {
  const radius = Math.max(2.6, Math.min(6.5, stepWidth * 0.42));
  group.append(shape("line", { class: "thread", x1: x(0), x2: x(steps.length - 1), y1: y, y2: y }));
  steps.forEach((step, at) => {
    const title = shape("title", { text: `${moment(step.at)}: ${step.type}${step.item ? ` ${step.item.title}` : ""}` });
    const dot = step.item
      ? shape("circle", { cx: x(at), cy: y, r: radius, fill: colour(step.item.category) }, title)
      : shape("circle", { class: "visit", cx: x(at), cy: y, r: radius * 0.62, fill: "var(--card)" }, title);
    group.append(dot);
  });
}

function bands(moving, still, row, x, top, labelX, hasRoom, labels) {
  const first = row.weights.findIndex((each) => each?.length);
  const known = row.weights.slice(first);
  const sums = new Map();
  for (const weights of known) for (const [label, weight] of weights) sums.set(label, (sums.get(label) ?? 0) + weight);
  const order = [...sums].sort((a, b) => b[1] - a[1]).slice(0, MAX_BANDS).map(([label]) => label);
  order.sort();
  for (const label of order) labels.add(label);
  const totals = known.map((weights) => weights.reduce((sum, [label, weight]) => sum + (order.includes(label) ? weight : 0), 0) || 1);
  const floors = known.map(() => 0);
  const ends = [];
  for (const label of order) {
    const lower = known.map((_, at) => [x(first + at), top + row.height * floors[at]]);
    known.forEach((weights, at) => (floors[at] += (weights.find(([name]) => name === label)?.[1] ?? 0) / totals[at]));
    const upper = known.map((_, at) => [x(first + at), top + row.height * floors[at]]);
    if (known.length === 1) {
      lower.push([lower[0][0] + 4, lower[0][1]]);
      upper.push([upper[0][0] + 4, upper[0][1]]);
    }
    const path = `${smooth(upper)}L${smooth(lower.reverse()).slice(1)}Z`;
    moving.append(shape("path", { class: "band", d: path, fill: colour(label) }, shape("title", { text: label })));
    const bottom = upper.at(-1)[1];
    ends.push({ label, y: (lower[0][1] + bottom) / 2, size: bottom - lower[0][1] });
  }
  if (!hasRoom) return;
  for (const { label, y, size } of ends) {
    if (size >= 13) still.append(shape("text", { x: labelX, y: y + 4, text: label }));
  }
}

function mark(group, steps, x, top, bottom, width) {
  const { jump } = told;
  if (!jump) return;
  const at = steps.findIndex((step) => step.at >= jump.event_time);
  if (at < 0 || (at === 0 && steps[0].at > jump.event_time + 1000)) return;
  const here = x(at) - (at > 0 ? (x(at) - x(at - 1)) / 2 : 0);
  group.append(
    shape("line", { class: "jump", x1: here, x2: here, y1: top, y2: bottom }),
    shape("text", { class: "strong", x: here, y: top - 4, "text-anchor": here > width * 0.7 ? "end" : here < width * 0.25 ? "start" : "middle", text: `jump to ${jump.label}` }),
  );
}

function times(group, steps, x, y, width) {
  const count = width > 500 ? 4 : 2;
  for (let n = 0; n <= count; n += 1) {
    const at = Math.round((n * (steps.length - 1)) / count);
    const anchor = n === 0 ? "start" : n === count ? "end" : "middle";
    group.append(shape("text", { x: x(at), y, "text-anchor": anchor, text: moment(steps[at].at) }));
  }
}

const top = (weights) => (weights?.length ? `${weights[0][0]} ${Math.round(100 * weights[0][1])} %` : "–");

function alternative() {
  const last = (kind) => top(carried(kind).at(-1));
  const truth = told.is_simulated ? `, truth ${last("truth")}` : "";
  return `${told.steps.length} events of ${told.name}. Strongest at the end: now ${last("now")}, next ${last("next")}${truth}. The table below says all.`;
}

function table() {
  const details = byId("user-details");
  details.hidden = !told.steps.length;
  const kinds = told.is_simulated ? ["truth", "now", "next"] : ["now", "next"];
  const weights = Object.fromEntries(kinds.map((kind) => [kind, carried(kind)]));
  const head = ["Time", "Event", ...kinds.map((kind) => ({ truth: "True", now: "Now", next: "Next" })[kind])];
  const body = told.steps.map((step, at) =>
    element(
      "tr",
      {},
      element("td", { text: `${new Date(step.at).toLocaleDateString()} ${clock(step.at)}` }),
      element("td", { text: step.item ? `${step.type} ${step.item.title} (${step.item.category})` : step.type }),
      ...kinds.map((kind) => element("td", { text: (weights[kind][at] ?? []).slice(0, 3).map((each) => top([each])).join(", ") || "–" })),
    ),
  );
  byId("user-table").replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", text })))),
    element("tbody", {}, ...body.reverse()),
  );
}
