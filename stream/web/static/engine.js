// The engine from outside: figures, hit rates over time, flow, dead letters.

import { byId, clock, duration, element, milliseconds, onWidth, shape } from "./draw.js";

const COLOURS = { engine: "var(--engine)", popularity: "var(--popularity)", chain: "var(--chain)", "chain + popularity": "var(--both)" };
const MIN_SECONDS = 20; // of the flow that are drawn
let figures = null;
let rates = null;

onWidth(byId("rates-figure"), () => rates && drawRates());
onWidth(byId("flow-figure"), () => figures && drawFlow());

export function take(told) {
  figures = told;
  const release = told.release_at === null ? ["none yet", "live counts rank until there is one"] : [told.release, `live for ${duration(told.at - told.release_at)}`];
  if (told.release && told.ranks && told.ranks !== told.release) release[1] += `, lists by ${told.ranks}`;
  const shown = [
    ["Events a second", told.events_per_s, `${told.users} users, ${told.items} items known`],
    ["Lists a second", told.lists_per_s, "mean of 10 s"],
    ["Click to list, half within", told.p50 === null ? "–" : milliseconds(told.p50), "from record to record"],
    ["99 % within", told.p99 === null ? "–" : milliseconds(told.p99), `${told.timed} lists of the last minute`],
    ["Lag", told.lag ?? "–", told.worker.answers ? "events not committed yet" : `silent for ${duration(told.worker.silent_ms)}`, !told.worker.answers],
    ["Release", release[0], release[1]],
    ["Dead letters", told.dead_letters, "records refused"],
    ["Viewers", told.viewers, "of this page"],
  ];
  const place = byId("figures");
  if (place.children.length !== shown.length) {
    place.replaceChildren(...shown.map(() => element("div", {}, element("dt"), element("dd", {}, "", element("small")))));
  }
  shown.forEach(([name, value, small, isBad], at) => {
    const [dt, dd] = place.children[at].children;
    place.children[at].className = isBad ? "bad" : "";
    dt.textContent = name;
    dd.firstChild.textContent = value;
    dd.lastChild.textContent = small;
  });
  drawFlow();
  deadLetters();
}

export function takeRates(told) {
  rates = told;
  const missing = !told.now.length;
  byId("rates-sub").textContent = missing
    ? `HR@10. ${told.judged} clicks judged so far; rates are shown from 30 on.`
    : `HR@10 over the last ${told.in_window} judged clicks (${told.judged} in all).`;
  const rows = told.now.map(({ method, rate, ahead, ahead_within }) =>
    element(
      "tr",
      { class: method === "engine" ? "own" : null },
      element("th", { scope: "row", c: COLOURS[method] }, element("i"), method),
      element("td", { class: "n", text: rate.toFixed(3) }),
      element("td", { class: "n", text: method === "engine" ? "" : `${ahead >= 0 ? "+" : "−"}${Math.abs(ahead).toFixed(3)} ± ${ahead_within.toFixed(3)}` }),
    ),
  );
  byId("rates-table").replaceChildren(
    element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "Method" }), element("th", { scope: "col", class: "n", text: "HR@10" }), element("th", { scope: "col", class: "n", text: "Engine ahead by" }))),
    element("tbody", {}, ...rows),
  );
  drawRates();
}

function drawRates() {
  const place = byId("rates-figure");
  if (rates.points.length < 2) {
    place.replaceChildren(element("p", { class: "empty", text: "The curves begin when enough clicks are judged." }));
    return;
  }
  const width = Math.max(place.clientWidth, 260);
  const height = width > 500 ? 260 : 200;
  const hasRoom = width > 520;
  const [left, right, bottom] = [34, hasRoom ? 128 : 6, 22];
  const most = Math.max(...rates.points.flat(), 0.05);
  const tick = most > 0.5 ? 0.2 : most > 0.2 ? 0.1 : 0.05;
  const ceiling = Math.ceil((most * 1.04) / tick) * tick;
  const begin = rates.at[0];
  const span = Math.max(rates.at.at(-1) - begin, 1);
  const x = (at) => left + ((at - begin) / span) * (width - left - right);
  const y = (rate) => 8 + (1 - rate / ceiling) * (height - bottom - 8);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Hit rates over time; the table below holds the newest." });
  for (let rate = 0; rate <= ceiling + 1e-9; rate += tick) {
    drawing.append(
      shape("line", { class: "grid", x1: left, x2: width - right, y1: y(rate), y2: y(rate) }),
      shape("text", { x: left - 6, y: y(rate) + 4, "text-anchor": "end", text: rate.toFixed(tick < 0.1 ? 2 : 1) }),
    );
  }
  const ends = [];
  rates.methods.map((method, at) => ({ method, at })).reverse().forEach(({ method, at }) => {
    const line = rates.points.map((point, n) => `${n ? "L" : "M"}${x(rates.at[n]).toFixed(1)} ${y(point[at]).toFixed(1)}`).join("");
    drawing.append(shape("path", { class: `curve ${method === "engine" ? "engine" : ""}`, d: line, stroke: COLOURS[method] }));
    ends.push({ method, y: y(rates.points.at(-1)[at]) + 4 });
  });
  if (hasRoom) {
    ends.sort((a, b) => a.y - b.y);
    ends.forEach((end, at) => {
      if (at) end.y = Math.max(end.y, ends[at - 1].y + 15);
      drawing.append(shape("text", { class: "strong", x: width - right + 8, y: end.y, fill: COLOURS[end.method], text: end.method }));
    });
  }
  drawing.append(
    shape("text", { x: left, y: height - 4, text: clock(begin) }),
    shape("text", { x: width - right, y: height - 4, "text-anchor": "end", text: clock(rates.at.at(-1)) }),
  );
  place.replaceChildren(drawing);
}

function drawFlow() {
  const place = byId("flow-figure");
  const width = Math.max(place.clientWidth, 240);
  const [height, left, bottom] = [130, 34, 20];
  const begin = Math.max(figures.events.findIndex((count) => count > 0), 0);
  const events = figures.events.slice(Math.min(begin, figures.events.length - MIN_SECONDS));
  const lists = figures.lists.slice(-events.length);
  const ordered = [...events, ...lists].sort((a, b) => a - b);
  const usual = ordered[Math.floor(0.96 * (ordered.length - 1))];
  const most = Math.max(4, Math.min(ordered.at(-1), Math.ceil(1.5 * usual))); // a burst would flatten all
  const step = (width - left) / events.length;
  const y = (count) => 6 + (1 - Math.min(count / most, 1)) * (height - bottom - 6);
  const floor = y(0);
  const outline = events.map((count, at) => `L${(left + at * step).toFixed(1)} ${y(count).toFixed(1)}H${(left + (at + 1) * step).toFixed(1)}`).join("");
  const line = lists.map((count, at) => `${at ? "L" : "M"}${(left + (at + 0.5) * step).toFixed(1)} ${y(count).toFixed(1)}`).join("");
  const mean = (counts) => (counts.slice(-10).reduce((sum, count) => sum + count, 0) / 10).toFixed(1);
  place.replaceChildren(
    shape(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Of the last ${events.length} seconds; of the last ten ${mean(events)} events and ${mean(lists)} lists a second.` },
      shape("line", { class: "axis", x1: left, x2: width, y1: floor, y2: floor }),
      shape("path", { class: "events", d: `M${left} ${floor}${outline}V${floor}Z` }),
      shape("path", { class: "lists", d: line }),
      shape("text", { x: left - 6, y: 14, "text-anchor": "end", text: ordered.at(-1) > most ? `≥${most}` : most }),
      shape("text", { x: left - 6, y: floor + 4, "text-anchor": "end", text: "0" }),
      shape("text", { x: left, y: height - 3, text: `${duration(1000 * events.length)} ago` }),
      shape("text", { x: width, y: height - 3, "text-anchor": "end", text: "now" }),
      shape("text", { x: left + (width - left) / 2, y: height - 3, "text-anchor": "middle", text: "▇ events  ━ lists" }),
    ),
  );
}

function deadLetters() {
  const { dead_letters: count, reasons, newest_refused: newest } = figures;
  byId("dead-sub").textContent = count ? "Records that were refused, kept with their reasons." : "None: no record was refused.";
  byId("dead-table").replaceChildren(
    ...(count
      ? [
          element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "Reason" }), element("th", { scope: "col", class: "n", text: "Records" }))),
          element("tbody", {}, ...reasons.map(([reason, records]) => element("tr", {}, element("td", { text: reason }), element("td", { class: "n", text: records })))),
        ]
      : []),
  );
  byId("dead-details").hidden = !count;
  byId("dead-newest").replaceChildren(...newest.map(({ at, place, reason }) => element("li", { text: `${clock(at)} ${place}: ${reason}` })));
}
