"use strict";
/* The circle that photos are searched in, if there is one. */
const prior = document.getElementById("prior"), near = document.getElementById("near");
const within = document.getElementById("within"), pointText = document.getElementById("point");
const circle = L.layerGroup();
let center = null;  // of the circle

function drawPrior() {
  prior.classList.toggle("on", near.checked);
  map.getContainer().classList.toggle("placing", near.checked);
  circle.clearLayers();
  delete legend.prior;
  pointText.textContent = center ? `of ${center.lat.toFixed(6)}, ${center.lng.toFixed(6)}` : "Click on the map to place it.";
  if (near.checked && center) {
    const style = {color: "#0057b8", weight: 2, dashArray: "6 5", fill: false, interactive: false};
    if (within.valueAsNumber > 0) {
      L.circle(center, {...style, radius: within.valueAsNumber}).addTo(circle);
      legend.prior = {};
    }
    L.circleMarker(center, {...style, radius: 4, dashArray: null, fill: true, fillOpacity: 1}).addTo(circle);
  }
  drawLegend();
}

/* The query of the prior; null if it is incomplete, which the status line then says. */
function priorQuery() {
  if (!near.checked) return {};
  if (center && within.valueAsNumber > 0) return {near: `${center.lat},${center.lng}`, within: within.valueAsNumber};
  setStatus(center ? "Give a distance of more than 0 m." : "Click on the map to place the point to search near.", true);
  return null;
}

function startPrior() {
  const change = () => {
    drawPrior();
    if (!near.checked || (center && within.valueAsNumber > 0)) locateAgain();
  };
  circle.addTo(map);
  within.oninput = drawPrior;
  near.onchange = within.onchange = change;
  map.on("click", event => {
    if (!near.checked) return;
    center = event.latlng.wrap();
    change();
  });
  near.disabled = false;
  drawPrior();
}
