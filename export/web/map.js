"use strict";
/* The map of one area and the display of one answer, shared by the pages of `jzi locate --map` and `jzi serve`.
   `data` holds the area's bounds and imagery. */
const map = L.map("map", {zoomSnap: 0.25});
map.attributionControl.setPrefix('<a href="https://leafletjs.com">Leaflet</a>');
const layers = {};
if (data.imagery) layers["Your imagery"] = L.imageOverlay(data.imagery.image, data.imagery.bounds).addTo(map);
const osm = L.tileLayer("https://tile.openstreetmap.org/{z}/{x}/{y}.png",
  {maxZoom: 19, attribution: "&copy; OpenStreetMap contributors"});
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
const colours = {answer: "#ff2d78", candidate: "#ffb300", truth: "#00b8d4"};

function draw(feature) {
  const {kind, ...properties} = feature.properties;
  if (kind === "tile" || kind === "circle") {
    return L.geoJSON(feature, {interactive: false, style: kind === "tile"
      ? {color: "#ffffff", weight: 1, fill: false, dashArray: "4 4"}
      : {color: "#ff2d78", weight: 2, fillOpacity: 0.06}});
  }
  const [longitude, latitude] = feature.geometry.coordinates;
  const marker = L.circleMarker([latitude, longitude],
    {radius: kind === "candidate" ? 6 : 8, color: "#fff", weight: 2, fillColor: colours[kind], fillOpacity: 1});
  const position = `${latitude.toFixed(6)}, ${longitude.toFixed(6)}`;
  const share = properties.probability === undefined ? "" : `<br>${(100 * properties.probability).toFixed(1)} %`;
  return marker.bindTooltip(`${kind === "truth" ? "true position" : kind}<br>${position}${share}`);
}

function clear() {
  heat.clearLayers(); drawn.clearLayers(); document.getElementById("about").replaceChildren();
}

function show(photo) {
  const about = document.getElementById("about");
  clear();
  if (photo.heat) L.imageOverlay(photo.heat.image, photo.heat.bounds, {opacity: 0.75}).addTo(heat);
  photo.features.forEach(feature => draw(feature).addTo(drawn));
  about.append(element("img", "", {className: "photo", src: photo.image, alt: photo.name}));
  about.append(element("div", photo.answer, {className: "answer"}));
  about.append(element("div", photo.confidence, {className: "note"}));
  if (photo.error) about.append(element("div", photo.error, {className: "note"}));
  if (photo.others.length) {
    about.append(element("div", "Other candidates:"));
    const list = element("ol", "", {className: "candidates", start: 2});
    for (const other of photo.others) {
      const item = element("li"), button = element("button", other.text, {type: "button"});
      button.onclick = () => map.flyTo(other.at, Math.max(map.getZoom(), 17));
      item.append(button); list.append(item);
    }
    about.append(list);
  }
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

