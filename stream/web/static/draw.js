// What all parts draw with: elements, colours of categories, numbers and times in words.

const COLOURS = 12;
let categories = [];

/** Categories keep their colours for as long as the page is open. */
export function nameCategories(names) {
  for (const name of names) if (!categories.includes(name)) categories.push(name);
}

/** The CSS colour of a category; those that are unknown share one. */
export function colour(category) {
  const at = categories.indexOf(category);
  return at < 0 ? "var(--c-none)" : `var(--c${at % COLOURS})`;
}

/** An element with properties (`class`, `text`, `on…` listeners, attributes) and children. */
export function element(tag, properties = {}, ...children) {
  return dress(document.createElement(tag), properties, children);
}

/** The same in SVG. */
export function shape(tag, properties = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function dress(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "c") made.style.setProperty("--c", value);
    else if (name === "fill" || name === "stroke") made.style.setProperty(name, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const byId = (id) => document.getElementById(id);

export const allowsMotion = () => !matchMedia("(prefers-reduced-motion: reduce)").matches;

export function tag(category) {
  return element("span", { class: "tag", c: colour(category) }, element("i"), category || "no category");
}

/** One place of a list; `children` as in `element`. */
export function placeBody(place, rank, moved) {
  const why = element("span", { class: "why" }, place.why);
  place.because.forEach((item, at) => {
    why.append(at === 0 ? " " : at === place.because.length - 1 ? " and " : ", ", element("b", { text: item.title }));
  });
  return [
    element("span", { class: "rank", text: rank }),
    element("span", { class: "title" }, place.item.title, " ", tag(place.item.category)),
    moved ?? element("span"),
    why,
  ];
}

export function bars(list, weights, count = 5) {
  list.replaceChildren(
    ...weights.slice(0, count).map(([label, weight]) => {
      const inner = element("i");
      inner.style.width = `${Math.round(100 * weight)}%`;
      return element(
        "li",
        { c: colour(label) },
        element("span", { text: label }),
        element("span", { class: "bar", "aria-hidden": "true" }, inner),
        element("span", { text: `${Math.round(100 * weight)} %` }),
      );
    }),
  );
}

export const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** A moment in words: the time today, else the day. */
export function moment(ms) {
  const date = new Date(ms);
  if (Date.now() - ms < 20 * 3600_000) return clock(ms);
  return date.toLocaleDateString([], { day: "numeric", month: "short" });
}

export function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

export const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** A line through points [x, y] that never overshoots between them. */
export function smooth(points) {
  let path = "";
  points.forEach(([x, y], at) => {
    if (at === 0) path = `M${x.toFixed(1)} ${y.toFixed(1)}`;
    else {
      const [px, py] = points[at - 1];
      const middle = ((px + x) / 2).toFixed(1);
      path += `C${middle} ${py.toFixed(1)} ${middle} ${y.toFixed(1)} ${x.toFixed(1)} ${y.toFixed(1)}`;
    }
  });
  return path;
}

/** Calls `redraw` when the width of a place changes. */
export function onWidth(place, redraw) {
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth !== width) {
      width = place.clientWidth;
      redraw();
    }
  }).observe(place);
}
