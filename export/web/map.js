"use strict";
/* The map of one area and the display of one answer, shared by the pages of `jzi locate --map` and `jzi serve`.
   `data` holds the area's bounds and imagery. */
const map = L.map("map", {zoomSnap: 0.25});
map.attributionControl.setPrefix('<a href="https://leafletjs.com">Leaflet</a>');
const layers = {};
const detail = L.layerGroup();  // finer imagery around an answer to metres
if (data.imagery) {
  const imagery = L.imageOverlay(data.imagery.image, data.imagery.bounds);
  layers["Your imagery"] = L.layerGroup([imagery, detail]).addTo(map);
}
const osm = L.tileLayer("https://tile.openstreetmap.org/{z}/{x}/{y}.png",
  {maxZoom: 22, maxNativeZoom: 19, attribution: "&copy; OpenStreetMap contributors"});
const heat = L.layerGroup().addTo(map), drawn = L.layerGroup().addTo(map);
L.control.layers({}, {...layers, "OpenStreetMap (needs network)": osm, "Probability": heat, "Answer": drawn},
  {collapsed: innerWidth < 760}).addTo(map);
L.control.scale({imperial: false}).addTo(map);
map.fitBounds(data.bounds);

const element = (name, text, attributes = {}) => {
  const node = Object.assign(document.createElement(name), attributes);
  if (text) node.textContent = text;
  return node;
};
const colours = {answer: "#ff2d78", candidate: "#ffb300", mode: "#ffb300", truth: "#00b8d4"};
const names = {truth: "true position", mode: "also probable"};
const styles = {
  tile: () => ({color: "#ffffff", weight: 1, fill: false, dashArray: "4 4"}),
  circle: (_, refined) => refined ? {color: "#ffffff", weight: 1.5, fill: false, dashArray: "2 6"}
    : {color: "#ff2d78", weight: 2, fillOpacity: 0.06},
  ellipse: () => ({color: "#ff2d78", weight: 2.5, fillOpacity: 0.1}),
  wedge: ({probability}) => ({color: "#ffffff", weight: 1, fillColor: "#2979ff", fillOpacity: 0.15 + 0.4 * probability}),
};
/* Cells are drawn while they are small on the screen; nearer to an answer to metres they would hide its probabilities. */
const LARGEST_CELL = 48;  // pixels
let cells = null;  // heat map of the cells, and their side
function fitHeat() {
  if (!cells) return;
  const pixel = 40075016.7 * Math.cos(map.getCenter().lat * Math.PI / 180) / 2 ** (map.getZoom() + 8);
  cells.overlay.setOpacity(cells.refined && cells.side / pixel > LARGEST_CELL ? 0 : 0.75);
}
map.on("zoomend", fitHeat);

function draw(feature, refined) {
  const {kind, ...properties} = feature.properties;
  if (styles[kind]) return L.geoJSON(feature, {interactive: false, style: styles[kind](properties, refined)});
  const [longitude, latitude] = feature.geometry.coordinates;
  const marker = L.circleMarker([latitude, longitude],
    {radius: kind === "mode" ? 4 : kind === "candidate" ? 6 : 8, color: "#fff", weight: 2, fillColor: colours[kind], fillOpacity: 1});
  const position = `${latitude.toFixed(6)}, ${longitude.toFixed(6)}`;
  const share = properties.probability === undefined ? "" : `<br>${(100 * properties.probability).toFixed(1)} %`;
  return marker.bindTooltip(`${names[kind] || kind}<br>${position}${share}`);
}

function clear() {
  heat.clearLayers(); drawn.clearLayers(); detail.clearLayers(); cells = null;
  document.getElementById("about").replaceChildren();
}

/* The values of an answer to metres. */
function fixList(fix) {
  const list = element("dl", "", {className: "fix"});
  const add = (name, text, note) => {
    const value = element("dd", text);
    if (note) value.append(element("div", note, {className: "note"}));
    list.append(element("dt", name), value);
    return value;
  };
  add("Ellipse", fix.ellipse, `${fix.spread}; ${fix.near}`);
  for (const direction of fix.directions) {
    const arrow = element("span", "\u2191", {className: "arrow"});
    arrow.style.transform = `rotate(${direction.deg}deg)`;
    add("Heading", direction.text).prepend(arrow);
  }
  if (!fix.heading_known) add("Heading", "unknown");
  return list;
}

/* What a re-ranker said of the candidates: a row for each, and a square for each comparison, named by the other's rank. */
function comparisonTable(rows) {
  const box = element("details", "", {className: "compared", open: true});
  box.append(element("summary", "Candidates compared"));
  const table = element("table"), head = element("tr");
  for (const name of ["", "before", "after", "score", "compared with"]) head.append(element("th", name));
  table.append(head);
  for (const row of rows) {
    const line = element("tr"), against = element("td");
    const place = element("td", `${row.rank} `);
    if (row.image) place.append(element("img", "", {src: row.image, alt: `Surroundings of candidate ${row.rank}`}));
    line.append(place);
    for (const name of ["before", "after", "score"]) line.append(element("td", row[name]));
    for (const each of row.against) {
      const verdict = each.won === null ? "none" : each.won ? "won" : "lost";
      const word = {won: "preferred to", lost: "less than", none: "not decided against"}[verdict];
      const title = `${word} ${each.rank}: ${each.text}${each.unsure ? ", the two orders disagree" : ""}`;
      against.append(element("span", String(each.rank), {className: `versus ${verdict}${each.unsure ? " unsure" : ""}`, title}));
    }
    line.append(against); table.append(line);
  }
  box.append(table, element("div", "Green: preferred to that candidate; red: less; dashed: it depended on the order in which the two were shown.",
    {className: "note"}));
  return box;
}

function show(photo) {
  const about = document.getElementById("about");
  clear();
  if (photo.heat) {
    const overlay = L.imageOverlay(photo.heat.image, photo.heat.bounds, {opacity: 0.75, zIndex: 3}).addTo(heat);
    cells = {overlay, side: photo.cell_m, refined: Boolean(photo.fix)};
  }
  if (photo.fix) {
    if (photo.fix.detail) L.imageOverlay(photo.fix.detail.image, photo.fix.detail.bounds, {zIndex: 2}).addTo(detail);
    photo.fix.heat.forEach(each => L.imageOverlay(each.image, each.bounds, {opacity: 0.6, zIndex: 3}).addTo(heat));
  }
  fitHeat();
  photo.features.filter(feature => feature.properties.kind !== "heading")
    .forEach(feature => draw(feature, Boolean(photo.fix)).addTo(drawn));
  about.append(element("img", "", {className: "photo", src: photo.image, alt: photo.name}));
  about.append(element("div", photo.answer, {className: "answer"}));
  about.append(element("div", photo.confidence, {className: "note"}));
  if (photo.fix) about.append(fixList(photo.fix));
  document.getElementById("refined-key").hidden = !photo.fix;
  document.getElementById("circles").hidden = Boolean(photo.fix);
  if (photo.error) about.append(element("div", photo.error, {className: "note"}));
  if (photo.others.length) {
    about.append(element("div", "Other candidates:"));
    const list = element("ol", "", {className: "candidates", start: 2});
    for (const other of photo.others) {
      const item = element("li"), button = element("button", other.text, {type: "button"});
      button.onclick = () => map.flyTo(other.at, Math.max(map.getZoom(), photo.fix ? 19 : 17));
      item.append(button); list.append(item);
    }
    about.append(list);
  }
  if (photo.comparisons.length) about.append(comparisonTable(photo.comparisons));
  const zoom = element("div", "", {className: "zoom"});
  for (const step of photo.zoom) {
    const figure = element("figure"), tile = element("div", "", {className: "tile"});
    tile.append(element("img", "", {src: step.image, alt: step.caption}));
    const child = element("div", "", {className: "child"}), size = 100 / data.grid;
    Object.assign(child.style, {left: `${size * (step.action % data.grid)}%`, width: `${size}%`,
      top: `${size * Math.floor(step.action / data.grid)}%`, height: `${size}%`});
    tile.append(child); figure.append(tile, element("figcaption", step.caption)); zoom.append(figure);
  }
  about.append(zoom);
}

