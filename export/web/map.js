"use strict";
/* The map of one area: imagery, what is drawn of an answer, and the legend of what is drawn. Shared by the pages of
   `jzi locate --map` and `jzi serve`, which call `startMap` once. */
const element = (name, text, attributes = {}) => {
  const node = Object.assign(document.createElement(name), attributes);
  if (text) node.textContent = text;
  return node;
};
const still = matchMedia("(prefers-reduced-motion: reduce)");  // no animation then
const TILE = 256, LARGEST_CELL = 48;  // pixels
const DENSE = devicePixelRatio > 1 ? 1 : 0;  // screens of two or more pixels to one of the page show tiles of the next zoom, half as large
let map, data;
let heat, drawn, marks;  // layers: probabilities, shapes and points, the selected place
let cells = null;  // heat map of the cells, and their side
let onPlace = () => {};  // called with the number of the candidate whose point is clicked

/* A layer of tiles that `load`, called with {z, x, y}, returns as a promise of [image, x, y, side] or null: the part of
   an image that is the tile. Tiles are drawn, not linked, so that a service may ask for a token. */
const Tiles = L.GridLayer.extend({
  createTile(coords, done) {
    const canvas = element("canvas", "", {width: TILE, height: TILE});
    this.options.load(coords).then(part => {
      if (part) canvas.getContext("2d").drawImage(part[0], part[1], part[2], part[3], part[3], 0, 0, TILE, TILE);
      done(null, canvas);
    }).catch(error => done(error, canvas));  // the picture of the area shows through
    return canvas;
  },
});

/* Tiles of the page itself: where one is missing or is finer than the imagery, a part of the next coarser one. */
async function loadEmbedded({z, x, y}) {
  for (let up = 0; z - up >= data.tiles.low; up++) {
    const source = data.embedded[`${z - up}/${x >> up}/${y >> up}`];
    if (!source) continue;
    const image = new Image(), side = TILE / 2 ** up;
    image.src = source;
    await image.decode();
    return [image, (x % 2 ** up) * side, (y % 2 ** up) * side, side];
  }
  return null;
}

/* The outline of an area whose imagery is too large for a picture of it, with a hint where tiles begin. */
function outline() {
  const hint = L.tooltip({permanent: true, direction: "center", className: "hint", interactive: false})
    .setContent(element("span", "Zoom in to see the imagery"));
  const update = () => { hint.getElement()?.classList.toggle("gone", map.getZoom() >= data.tiles.low - DENSE); };
  map.on("zoomend", update);
  const frame = L.rectangle(data.bounds, {fill: false, weight: 1, color: "#596070", interactive: false});
  return [frame.on("add", () => setTimeout(update)).bindTooltip(hint)];
}

function startMap(area, loadTile = loadEmbedded) {
  data = area;
  map = L.map("map", {zoomSnap: 0.25, minZoom: 2, maxZoom: 23, zoomAnimation: !still.matches, fadeAnimation: !still.matches});
  map.attributionControl.setPrefix('<a href="https://leafletjs.com" target="_blank" rel="noopener noreferrer">Leaflet</a>');
  if (data.credit) map.attributionControl.addAttribution(element("span", data.credit).innerHTML);  // text, not HTML
  ["osm", "overview", "imagery"].forEach((name, index) => map.createPane(name).style.zIndex = 200 + index);
  const layers = {};
  if (data.imagery || data.tiles) {
    const group = [];
    if (data.imagery)
      group.push(L.imageOverlay(data.imagery.image, data.imagery.bounds, {pane: "overview", alt: "Imagery of the area"}));
    if (data.tiles) {
      const zooms = data.embedded ? {} : {maxNativeZoom: data.tiles.high - DENSE, bounds: data.bounds};
      const load = ({z, x, y}) => loadTile({z: z + DENSE, x, y});
      group.push(new Tiles({pane: "imagery", tileSize: TILE / 2 ** DENSE, minZoom: data.tiles.low - DENSE, load, ...zooms}));
    }
    if (!data.imagery) group.push(...outline());
    layers["Imagery"] = L.layerGroup(group).addTo(map);
  }
  layers["OpenStreetMap (from the internet)"] = L.tileLayer("https://tile.openstreetmap.org/{z}/{x}/{y}.png",
    {pane: "osm", maxNativeZoom: 19, attribution: "&copy; OpenStreetMap contributors"});
  heat = L.layerGroup().addTo(map); drawn = L.layerGroup().addTo(map); marks = L.layerGroup().addTo(map);
  L.control.layers({}, {...layers, "Probability": heat, "Answer": drawn}, {collapsed: true}).addTo(map);
  L.control.scale({imperial: false}).addTo(map);
  map.on("zoomend", () => { fitHeat(); drawLegend(); });
  map.on("overlayadd overlayremove", drawLegend);
  map.fitBounds(data.bounds);
  new ResizeObserver(() => map.invalidateSize({animate: false})).observe(map.getContainer());
}

const COLOURS = {answer: "#ff2d78", candidate: "#ffb300", mode: "#ffb300", truth: "#00b8d4"};
const NAMES = {answer: "Answer", candidate: "Candidate", truth: "True position", mode: "Also probable"};
const STYLES = {
  tile: () => ({color: "#ffffff", weight: 1.5, fill: false, dashArray: "4 4"}),
  circle: (_, refined) => refined ? {color: "#ffffff", weight: 1.5, fill: false, dashArray: "2 6"}
    : {color: "#ff2d78", weight: 2, fillOpacity: 0.06},
  ellipse: () => ({color: "#ff2d78", weight: 2.5, fillOpacity: 0.1}),
  wedge: ({probability}) => ({color: "#ffffff", weight: 1, fillColor: "#2979ff", fillOpacity: 0.15 + 0.4 * probability}),
};

/* What the legend says of each kind that is drawn; null for nothing. */
const LEGEND = {
  number: () => "answer of the photo of this number",
  answer: () => "answer", candidate: () => "other candidate", mode: () => "also probable", truth: () => "position that the photo records",
  heat: () => "probability, from low to high",
  circle: ({fix, shares}) => `${shares.sort().join(" and ")} % of ${fix ? "all" : "the"} probability`,
  ellipse: () => "68 and 95 % near the answer", wedge: () => "heading, one standard deviation",
  tile: () => "steps of the zoom", prior: () => "the photo is searched in here",
};
let legend = {};  // kind to what its words depend on

function drawLegend() {
  const list = document.getElementById("legend");
  const hidden = kind => kind === "heat" ? !map.hasLayer(heat) || !visibleHeat() : kind !== "prior" && !map.hasLayer(drawn);
  list.replaceChildren(...Object.keys(LEGEND).filter(kind => legend[kind] && !hidden(kind)).map(kind => {
    const item = element("li");
    item.append(element("i", "", {className: `key ${kind}-key ${legend[kind].fix ? "refined" : ""}`}), LEGEND[kind](legend[kind]));
    return item;
  }));
}

function visibleHeat() {
  let seen = false;
  heat.eachLayer(layer => seen = seen || layer.options.opacity > 0);
  return seen;
}

/* Cells are faint where they are large on the screen, so that the imagery can be seen, and hidden where an answer to
   metres has probabilities of its own. */
function fitHeat() {
  if (!cells) return;
  const pixel = 40075016.7 * Math.cos(map.getCenter().lat * Math.PI / 180) / 2 ** (map.getZoom() + 8);
  const large = cells.side / pixel > LARGEST_CELL;
  cells.overlay.setOpacity(!large ? 0.7 : cells.refined ? 0 : 0.4);
}

function clearMap() {
  heat.clearLayers(); drawn.clearLayers(); marks.clearLayers(); cells = null;
  legend = legend.prior ? {prior: legend.prior} : {};
}

function point(at, kind, radius) {
  return L.circleMarker(at, {radius, color: "#fff", weight: 2, fillColor: COLOURS[kind], fillOpacity: 1, bubblingMouseEvents: false});
}

/* Draw a feature of GeoJSON; points of candidates, whose probabilities are `shares` in words, can be clicked. */
function drawFeature(feature, refined, shares) {
  const {kind, ...properties} = feature.properties;
  if (kind === "heading") return;
  legend[kind] = {fix: refined, shares: [...(legend[kind]?.shares || []), Math.round(100 * properties.share)]};
  if (STYLES[kind]) {
    L.geoJSON(feature, {interactive: false, style: STYLES[kind](properties, refined)}).addTo(drawn);
    return;
  }
  const [longitude, latitude] = feature.geometry.coordinates;
  const marker = point([latitude, longitude], kind, {mode: 4, candidate: 8}[kind] || 9).addTo(drawn);
  const words = [`${NAMES[kind]}${kind === "candidate" ? ` ${properties.rank}` : ""}`, `${latitude.toFixed(6)}, ${longitude.toFixed(6)}`];
  if (properties.rank) words.push(shares[properties.rank - 1]);
  else if (properties.probability !== undefined) words.push(`${(100 * properties.probability).toFixed(1)} %`);
  const tip = element("div");
  words.forEach(word => tip.append(element("div", word)));
  marker.bindTooltip(tip);
  if (properties.rank) marker.on("click", () => onPlace(properties.rank - 1));
}

function drawPhoto(photo) {
  clearMap();
  if (photo.heat) {
    const overlay = L.imageOverlay(photo.heat.image, photo.heat.bounds, {opacity: 0.7, className: "heat"}).addTo(heat);
    cells = {overlay, side: photo.cell_m, refined: Boolean(photo.fix)};
    legend.heat = {};
  }
  if (photo.fix) photo.fix.heat.forEach(each => L.imageOverlay(each.image, each.bounds, {opacity: 0.6, className: "heat"}).addTo(heat));
  fitHeat();
  const shares = photo.candidates.map(candidate => candidate.share);
  photo.features.forEach(feature => drawFeature(feature, Boolean(photo.fix), shares));
  drawLegend();
}

/* Mark a place with a ring, and move the map there. */
function markPlace(at) {
  marks.clearLayers();
  for (const [color, weight] of [["#10151f", 6], ["#fff", 3]]) L.circleMarker(at, {radius: 15, color, weight, fill: false, interactive: false}).addTo(marks);
}

/* The part of the map in which an answer can be checked: its circle of 68 %, or 100 m around it. */
function viewOf(photo) {
  if (photo.fix) return L.latLngBounds(photo.fix.view);
  const circle = photo.features.find(feature => feature.properties.share === 0.68);
  if (circle) return L.geoJSON(circle).getBounds().pad(0.25);
  return photo.candidates.length ? L.latLng(photo.candidates[0].at).toBounds(200) : L.latLngBounds(data.bounds);
}
function moveTo(bounds, seconds = 0.7) {
  if (still.matches || !seconds) map.fitBounds(bounds, {animate: false}); else map.flyToBounds(bounds, {duration: seconds});
}
