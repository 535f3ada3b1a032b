// Your own list: items to take, and how the list moves after each.

import { allowsMotion, bars, byId, clock, colour, element, milliseconds, placeBody, tag } from "./draw.js";

const MAX_WAITING = 20;
const TYPING_MS = 200;
const waiting = new Map(); // event id -> { at, what }
const taken = new Set();
let shown = null; // the list on display
let ranks = new Map(); // item id -> place in it
let isReadOnly = false;
let hasVisited = false;
let seed = Math.floor(Math.random() * 1e9);

export function start() {
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  let typing = null;
  byId("words").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(offer, TYPING_MS);
  });
  byId("category").addEventListener("change", offer);
  byId("others").addEventListener("click", () => {
    seed += 1;
    offer();
  });
}

export function hello(told) {
  isReadOnly = told.is_read_only;
  byId("read-only").hidden = !isReadOnly;
  byId("visitor").textContent = told.visitor ? `You are ${told.visitor}` : "";
  fillCategories(told.categories);
  offer();
  if (!hasVisited && !isReadOnly) {
    hasVisited = true;
    send("/api/visit", {}, "you came");
  }
}

function fillCategories(names) {
  const select = byId("category");
  const known = new Set([...select.options].map((option) => option.value));
  for (const name of names) if (name && !known.has(name)) select.append(element("option", { value: name, text: name }));
}

async function offer() {
  const query = new URLSearchParams({ seed, category: byId("category").value, words: byId("words").value });
  const answer = await fetch(`/api/items?${query}`).catch(() => null);
  if (!answer?.ok) return;
  const { items, categories } = await answer.json();
  fillCategories(categories);
  const tiles = items.map((item) =>
    element(
      "li",
      {},
      element(
        "button",
        {
          class: taken.has(item.id) ? "tile taken" : "tile",
          type: "button",
          c: colour(item.category),
          "data-item": item.id,
          disabled: isReadOnly,
          onclick: () => takeItem(item, null),
        },
        element("b", { text: item.title }),
        tag(item.category),
      ),
    ),
  );
  byId("tiles").replaceChildren(...tiles);
  if (!tiles.length) byId("tiles").append(element("li", { class: "empty", text: "No item has these words in its title." }));
}

function takeItem(item, rec) {
  taken.add(item.id);
  document.querySelector(`.tile[data-item="${CSS.escape(item.id)}"]`)?.classList.add("taken");
  send("/api/click", { item_id: item.id, ...(rec && { rec }) }, `you took ${item.title}`);
}

async function send(path, body, what) {
  const event_id = newId();
  waiting.set(event_id, { at: performance.now(), what });
  if (waiting.size > MAX_WAITING) waiting.delete(waiting.keys().next().value);
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ event_id, ...body }),
  }).catch(() => null);
  const told = await answer?.json().catch(() => null);
  if (answer?.ok) {
    if (waiting.has(event_id)) waiting.get(event_id).event_time = told.event_time;
    return;
  }
  waiting.delete(event_id);
  byId("list-sub").textContent = told?.error ?? "The click could not be sent.";
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A newer list of yours, or what is popular until there is one. */
export function take(told) {
  const list = told.shown;
  bars(byId("your-now"), told.now);
  bars(byId("your-next"), told.next);
  byId("your-interests").hidden = !told.now.length;
  if (list && shown && list.seq === shown.seq && list.rec_id === shown.rec_id) return;
  const places = list ? list.places : told.trending;
  draw(places, list);
  const begun = list && answered(list);
  if (begun) {
    const ms = performance.now() - begun.at;
    for (const [id, { at }] of waiting) if (at <= begun.at) waiting.delete(id);
    byId("after-ms").textContent = milliseconds(ms);
    byId("after").dataset.ms = ms.toFixed(1);
    byId("after").dataset.seq = list.seq;
    byId("after-what").textContent = `after ${begun.what}`;
    byId("after").hidden = false;
    byId("said").textContent = `New list ${milliseconds(ms)} after ${begun.what}. First: ${places[0]?.item.title ?? "nothing"}.`;
  }
  shown = list;
  byId("list-sub").textContent = list
    ? `list ${list.seq}, ranked ${clock(list.generated_at)} by ${list.release === "live-statistics/0" ? "live counts, no model yet" : list.release}`
    : "What is popular, until there is a list of your own.";
  const raw = byId("your-raw");
  raw.hidden = !list;
  if (list) raw.href = `/raw/${encodeURIComponent(list.rec_id)}`;
}

/** The click that a list answers: the one it names, else the newest that it knows. */
function answered(list) {
  const known = [...waiting.values()].filter(({ event_time }) => event_time <= list.request_time);
  return waiting.get(list.event_id) ?? known.at(-1);
}

function draw(places, list) {
  const place = byId("list");
  const old = new Map([...place.children].map((child) => [child.dataset.item, child]));
  const tops = new Map([...old].map(([item, child]) => [item, child.getBoundingClientRect().top]));
  const hadFocus = place.contains(document.activeElement);
  const before = ranks;
  ranks = new Map(places.map((each, at) => [each.item.id, at + 1]));
  const made = places.map((each, at) => {
    const row = old.get(each.item.id) ?? element("li", { "data-item": each.item.id }, element("button", { class: "place", type: "button" }));
    const button = row.firstChild;
    button.replaceChildren(...placeBody(each, at + 1, list && before.size ? moved(before.get(each.item.id), at + 1) : null));
    button.disabled = isReadOnly;
    button.onclick = () => takeItem(each.item, list && { rec_id: list.rec_id, position: at });
    return row;
  });
  arrange(place, made);
  if (hadFocus && !place.contains(document.activeElement)) byId("list-title").focus({ preventScroll: true });
  if (!allowsMotion()) return;
  for (const row of made) {
    const from = tops.get(row.dataset.item);
    const by = from === undefined ? null : from - row.getBoundingClientRect().top;
    if (by === null && tops.size) row.animate([{ opacity: 0, transform: "translateX(24px)" }, { opacity: 1, transform: "none" }], { duration: 380, easing: "ease-out" });
    else if (by) row.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: 420, easing: "cubic-bezier(.2,.8,.2,1)" });
  }
}

/** Puts rows into this order; those that stay keep their focus. */
function arrange(place, rows) {
  for (const child of [...place.children]) if (!rows.includes(child)) child.remove();
  rows.forEach((row, at) => {
    if (place.children[at] !== row) place.insertBefore(row, place.children[at] ?? null);
  });
}

function moved(before, now) {
  if (before === undefined) {
    return element("span", { class: "moved" }, element("span", { "aria-hidden": "true", text: "+" }), element("span", { class: "sr", text: "was not in the list" }));
  }
  if (before === now) return null;
  const isUp = before > now;
  return element(
    "span",
    { class: isUp ? "moved" : "moved down" },
    element("span", { "aria-hidden": "true", text: `${isUp ? "▲" : "▼"} ${Math.abs(before - now)}` }),
    element("span", { class: "sr", text: `${isUp ? "up" : "down"} ${Math.abs(before - now)}` }),
  );
}
