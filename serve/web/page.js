"use strict";
/* The page of `jzi serve`. map.js, which it shares with `jzi locate --map`, is loaded once the area is known. */
const drop = document.getElementById("drop"), file = document.getElementById("file");
const statusLine = document.getElementById("status");
const prior = document.getElementById("prior"), near = document.getElementById("near");
const within = document.getElementById("within"), point = document.getElementById("point");
const login = document.getElementById("login"), token = document.getElementById("token");
const circle = L.layerGroup();
let data = null;  // the area, which map.js draws
let center = null;  // of the circle to search in
let last = null;  // the photo of the last request, which is located again when the circle changes
let requests = 0;  // an answer that arrives after a newer request was sent is dropped

function setStatus(text, isError = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("error", isError);
}

/* Ask the service; it asks for a token if it has one, which the tab keeps until it is closed. */
async function ask(path, options = {}) {
  const kept = sessionStorage.getItem("token");
  const response = await fetch(path, kept ? {...options, headers: {Authorization: `Bearer ${kept}`}} : options);
  const answer = await response.json().catch(() => ({detail: `the service returned status ${response.status}`}));
  if (response.status === 401) login.hidden = false;
  return {response, answer};
}

/* Draw the circle that is searched, if there is one. */
function drawPrior() {
  prior.classList.toggle("on", near.checked);
  map.getContainer().classList.toggle("placing", near.checked);
  circle.clearLayers();
  point.textContent = center ? `of ${center.lat.toFixed(6)}, ${center.lng.toFixed(6)}` : "Click on the map to place it.";
  if (!near.checked || !center) return;
  const style = {color: "#0057b8", weight: 2, dashArray: "6 5", fill: false, interactive: false};
  if (within.valueAsNumber > 0) L.circle(center, {...style, radius: within.valueAsNumber}).addTo(circle);
  L.circleMarker(center, {...style, radius: 4, dashArray: null, fill: true, fillOpacity: 1}).addTo(circle);
}

/* The query of the prior; null if it is incomplete, which the status line then says. */
function priorQuery() {
  if (!near.checked) return {};
  if (center && within.valueAsNumber > 0) {
    return {near: `${center.lat},${center.lng}`, within: within.valueAsNumber};
  }
  setStatus(center ? "Give a distance of more than 0 m." : "Click on the map to place the point to search near.", true);
  return null;
}

function changePrior() {
  drawPrior();
  if (last && (!near.checked || (center && within.valueAsNumber > 0))) locate(last);
}

async function locate(photo) {
  last = photo;
  const query = priorQuery();
  if (!query) return;
  const request = ++requests;
  setStatus(`Locating ${photo.name} ...`);
  const form = new FormData();
  form.append("photo", photo);
  try {
    const parameters = new URLSearchParams({details: true, ...query});
    const {response, answer} = await ask(`locate?${parameters}`, {method: "POST", body: form});
    if (request !== requests) return;
    if (!response.ok) {
      clear();
      setStatus(typeof answer.detail === "string" ? answer.detail : "the request is not valid", true);
      return;
    }
    show(answer.page);
    setStatus([answer.sure ? "" : "Not sure.", ...answer.notes].join(" "), !answer.sure);
    await animateZoom(answer.page);
  } catch (error) {
    if (request === requests) setStatus(`The service cannot be reached (${error.message}).`, true);
  }
}

/* Zoom the map through the tiles of the answer, one step at a time. */
async function animateZoom(page) {
  const request = requests, tiles = page.features.filter(feature => feature.properties.kind === "tile");
  for (const tile of tiles) {
    if (request !== requests) return;
    map.flyToBounds(L.geoJSON(tile).getBounds(), {duration: 0.7, maxZoom: 18});
    await new Promise(resolve => setTimeout(resolve, 900));
  }
  if (page.fix) {
    if (request === requests) map.flyToBounds(page.fix.view, {duration: 0.7});
    return;
  }
  const spread = page.features.find(feature => feature.properties.share === 0.68);
  if (request === requests && spread) map.flyToBounds(L.geoJSON(spread).getBounds(), {duration: 0.7, maxZoom: 18});
}

/* Load the area and its map, then accept photos. */
async function start() {
  try {
    const {response, answer} = await ask("area");
    if (!response.ok) return setStatus(answer.detail, true);
    data = answer;
  } catch (error) {
    return setStatus(`The service cannot be reached (${error.message}).`, true);
  }
  setStatus("Photos are not stored.");
  const script = Object.assign(document.createElement("script"), {src: "static/map.js"});
  script.onload = accept;
  document.head.append(script);
}

function accept() {
  circle.addTo(map);
  within.oninput = drawPrior;
  near.onchange = within.onchange = changePrior;
  map.on("click", event => {
    if (!near.checked) return;
    center = event.latlng.wrap();
    changePrior();
  });
  file.onchange = () => { if (file.files[0]) locate(file.files[0]); file.value = ""; };
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, event => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) locate(event.dataTransfer.files[0]);
    });
  }
  file.disabled = near.disabled = false;
  drawPrior();
}

login.onsubmit = event => {
  event.preventDefault();
  sessionStorage.setItem("token", token.value.trim());
  token.value = "";
  login.hidden = true;
  if (data) { if (last) locate(last); } else start();
};
start();
