"use strict";
(() => {
  const form = document.getElementById("controls");
  const main = document.getElementById("photos");
  const cards = [...main.children];
  const number = (name) => parseFloat(form.elements[name]?.value) || 0;

  function update() {
    const show = form.elements.show.value;
    const [, minus, key] = form.elements.sort.value.match(/^(-?)(.*)$/);
    let count = 0;
    for (const card of cards) {
      const { error, confidence, worst, left } = card.dataset;
      const kind = show === "all" || (show === "left" ? left === "1" : (worst === "1") === (show === "worst"));
      const sure = !number("sure") || 100 * confidence >= number("sure");  // a similarity may be below 0
      card.hidden = !(kind && sure && +error >= number("from"));
      count += !card.hidden;
    }
    const sign = minus ? 1 : -1;
    main.append(...[...cards].sort((a, b) => sign * (a.dataset[key] - b.dataset[key])));
    form.elements.count.value = `${count} of ${cards.length} shown`;
  }

  document.addEventListener("keydown", (event) => {
    const step = { j: 1, k: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const shown = [...main.children].filter((card) => !card.hidden);
    const at = shown.indexOf(document.activeElement.closest("article"));
    const next = shown[at < 0 ? (step > 0 ? 0 : shown.length - 1) : at + step];
    if (next) {
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "start" });
    }
  });
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
})();
