"use strict";
/* Several photos: the overview of all of them, and the way from one to the next. An entry is {name, page} with what
   `showPhoto` draws, or {name, state} while a service works on it, or {name, error, retry} if it could not be located. */
const entries = [];
let current = -1;  // the entry that is shown; -1 for the overview

function drawNavigation() {
  const bar = document.getElementById("navigation");
  bar.hidden = entries.length < 2;
  bar.replaceChildren();
  if (bar.hidden || current < 0) return;
  const back = element("button", `\u2039 All ${entries.length} photos`, {type: "button", id: "back", className: "link", onclick: () => openOverview()});
  const step = (text, label, index) => {
    const button = element("button", text, {type: "button", disabled: !entries[index], onclick: () => openEntry(index)});
    button.setAttribute("aria-label", label);
    return button;
  };
  bar.append(back, element("span", "", {className: "grow"}), step("\u2190", "Previous photo", current - 1),
    element("span", `${current + 1} / ${entries.length}`), step("\u2192", "Next photo", current + 1));
}

function describe(entry) {
  if (entry.error) return `Not located: ${entry.error}`;
  if (!entry.page) return entry.state;
  const elsewhere = entry.page.elsewhere ? ", probably from elsewhere" : "";
  return entry.page.sure ? `${entry.page.answer} (${entry.page.confidence})${elsewhere}` : `not sure${elsewhere}`;
}

/* Show one entry; with `move`, the map moves to its answer. */
function openEntry(index, move = true) {
  current = index;
  const entry = entries[index];
  drawNavigation();
  document.getElementById("name").textContent = entry.name;
  if (entry.page) {
    showPhoto(entry.page);
    if (move) moveTo(viewOf(entry.page), 0);
    return;
  }
  shown = null;
  clearMap(); drawLegend();
  const box = element("div", "", {className: "place"});
  box.append(element("div", entry.error ? "Not located" : entry.state, {className: "answer"}));
  if (entry.error) box.append(element("div", entry.error, {className: "error", role: "alert"}));
  else box.append(element("progress", "", entry.share === undefined ? {} : {value: entry.share}));
  if (entry.advice) box.append(element("div", entry.advice, {className: "note"}));
  if (entry.retry) box.append(element("button", "Try again", {type: "button", onclick: entry.retry}));
  document.getElementById("about").replaceChildren(box);
  document.getElementById("more").replaceChildren();
}

/* Show all answers on the map and in a list; with `move`, the map moves to them. */
function openOverview(move = true) {
  current = -1; shown = null;
  clearMap();
  drawNavigation();
  const sure = entries.filter(entry => entry.page?.sure), list = element("ol", "", {className: "overview"});
  document.getElementById("name").textContent = `${entries.length} photos`;
  entries.forEach((entry, index) => {
    const item = element("li"), button = element("button", "", {type: "button", onclick: () => openEntry(index)});
    if (entry.page) button.append(element("img", "", {src: entry.page.image, alt: "", loading: "lazy"}));
    else button.append(element("span", entry.error ? "!" : "\u2026", {className: "thumb"}));
    const words = element("span", "", {className: "grow"});
    words.append(element("div", `${index + 1}. ${entry.name}`, {className: "file"}), element("div", describe(entry), {className: "note"}));
    button.append(words); item.append(button); list.append(item);
    if (!entry.page?.sure) return;
    const icon = L.divIcon({className: "number", iconSize: [26, 26], html: String(index + 1)});
    L.marker(entry.page.candidates[0].at, {icon, title: entry.name, alt: `Answer of ${entry.name}`, riseOnHover: true})
      .on("click", () => openEntry(index)).addTo(drawn);
  });
  const unsure = entries.filter(entry => entry.page && !entry.page.sure).length, failed = entries.filter(entry => entry.error).length;
  const waiting = entries.length - sure.length - unsure - failed;
  const counts = [[sure.length, "located"], [unsure, "not sure"], [failed, "not located"], [waiting, "waiting"]];
  const head = element("div", counts.filter(each => each[0]).map(each => each.join(" ")).join(", "), {className: "note"});
  const parts = [head, list];
  if (sure.length) {
    const row = element("div", "", {className: "actions"});
    row.append(element("button", "GeoJSON of all", {type: "button", onclick: () => saveGeoJson(sure.map(entry => entry.page), "photos.geojson")}));
    parts.splice(1, 0, row);
    legend.number = {};
    if (move) moveTo(L.latLngBounds(sure.map(entry => entry.page.candidates[0].at)).pad(0.2), 0);
  }
  document.getElementById("about").replaceChildren(...parts);
  document.getElementById("more").replaceChildren();
  drawLegend();
}

/* Open the page of `jzi locate --map`. */
function openPage(area) {
  startMap(area);
  entries.push(...area.photos.map(page => ({name: page.name, page})));
  if (entries.length > 1) openOverview(); else openEntry(0);
}
